"""A model at work: predictions, the page, exports."""
