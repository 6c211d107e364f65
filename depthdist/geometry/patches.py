"""The patch size of DINOv2, which decides what image sizes the network takes."""

PATCH_SIZE = 14  # pixels: both sides of an image that the network sees are multiples of it
MAX_SIDE = 8192  # pixels of an image that the network sees
