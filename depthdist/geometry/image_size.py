"""The size at which the network sees a camera's images: its aspect at the recipe's resolution.

choose_image_size((1200, 1944))          # (756, 1260): the recipe's own camera and size
stretch((1024, 1224), (756, 1260))       # 0.394: as much wider, against its height, as it was
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from depthdist.geometry.patches import MAX_SIDE, PATCH_SIZE

RECIPE_SIZE = 756, 1260  # height, width
MAX_STRETCH = 0.03  # of a chosen size, unless no size has as little
LARGE_STRETCH = 0.05  # is worth a warning


def stretch(image: tuple[int, int], size: tuple[int, int]) -> float:
    """Return by what share an image (H, W) is stretched in one direction when resized to `size`."""
    ratio = size[1] * image[0] / (size[0] * image[1])
    return max(ratio, 1 / ratio) - 1


def choose_image_size(camera: tuple[int, int]) -> tuple[int, int]:
    """Return the size with the camera's aspect and at most as many pixels as the recipe's.

    camera   height and width of its images
    returns  of all sizes whose sides are multiples of the patch and that stretch an image by
             MAX_STRETCH at most, the one with the most pixels; of equals the least stretched. Where
             there is none, for an extreme aspect, the least stretched
    """
    max_patches = math.prod(RECIPE_SIZE) // PATCH_SIZE**2
    max_side = MAX_SIDE // PATCH_SIZE
    sizes = [
        (rows * PATCH_SIZE, columns * PATCH_SIZE)
        for rows in range(1, max_side + 1)
        for columns in range(1, min(max_side, max_patches // rows) + 1)
    ]
    close = [size for size in sizes if stretch(camera, size) <= MAX_STRETCH]
    if not close:
        return min(sizes, key=lambda size: (stretch(camera, size), -math.prod(size)))
    return max(close, key=lambda size: (math.prod(size), -stretch(camera, size)))


def most_stretched(images: Iterable[tuple[int, ...]], size: tuple[int, int]) -> list[int]:
    """Return height and width of the image that `size` stretches most; [] if none by much."""
    found = max(((stretch((h, w), size), h, w) for h, w in images), default=(0.0, 0, 0))
    return list(found[1:]) if found[0] > LARGE_STRETCH else []


def describe_stretch(image: tuple[int, int], size: tuple[int, int]) -> str | None:
    """Return how an image is stretched when it is resized to `size`, None where that is little."""
    found = stretch(image, size)
    if found <= LARGE_STRETCH:
        return None
    return f"{image[0]}x{image[1]} is stretched by {100 * found:.0f} % at {size[0]}x{size[1]}"
