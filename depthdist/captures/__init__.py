"""A camera's raw files: which belong to one capture, how they are read, near-duplicates."""
