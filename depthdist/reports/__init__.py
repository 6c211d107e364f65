"""Pages to read: of a run, and of a dataset."""
