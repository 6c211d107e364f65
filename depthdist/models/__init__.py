"""Depth Anything V2, what trains in it, and its adapter on the disk."""
