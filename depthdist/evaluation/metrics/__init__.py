"""Metrics of an image (pixels, edges, surfaces, grooves), and the confidence of their means."""
