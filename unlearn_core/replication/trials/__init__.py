"""What a method goes through, a file a modality: the rows of the notebooks are made here."""
