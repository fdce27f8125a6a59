"""Methods that the papers compare with: small files, one idea each."""
