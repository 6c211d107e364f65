"""One run, from settings to the best adapter."""
