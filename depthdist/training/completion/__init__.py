"""A second stage: a network that fills what the camera missed, and says how sure it is."""
