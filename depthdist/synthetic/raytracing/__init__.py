"""Rays, shapes and noise that all built-in scenes share."""
