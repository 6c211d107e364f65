"""Depth ranges, cameras and resampling: arrays in, arrays out."""
