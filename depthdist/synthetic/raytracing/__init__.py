"""Rays, shapes, noise and the camera's output: what both kinds of synthetic scenes share."""
