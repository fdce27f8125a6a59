"""From papers to records to pages: profiles, rows, claims, the cache, the runner and the book."""
