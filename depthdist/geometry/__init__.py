"""Depth ranges, cameras, lines and resampling: arrays in, arrays out."""
