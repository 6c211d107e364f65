"""The second stage: a small network that adds relief from the image at its full size."""
