"""Use a trained model: predict files, serve the page, export to other formats."""
