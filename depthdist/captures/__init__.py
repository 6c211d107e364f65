"""A camera's raw files: which belong together, and what is in them."""
