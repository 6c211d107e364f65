"""File formats of points and depth: one module each, listed in `registry`."""
