"""Resize images as the network sees them, with Pillow: nothing here imports torch."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_rgb(rgb: np.ndarray | Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return an RGB image, (H, W, 3) uint8 or Pillow's, as (*size, 3) uint8: bicubic, any aspect.

    Pillow's antialiased bicubic on uint8, which is what transformers' DPTImageProcessor does
    (keep_aspect_ratio=False).
    """
    height, width = size
    image = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def resize_nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `image` (H, W) at `size`, each pixel copied from the nearest center.

    Depths are never averaged across an edge.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, image.shape)
    )
    return image[rows[:, None], columns]
