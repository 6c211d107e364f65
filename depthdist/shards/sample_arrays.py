"""The arrays of one sample as it is stored, and buffers for them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from depthdist.shards.index import Index


class Arrays(NamedTuple):
    """One sample as it is stored.

    rgb    (h, w, 3) uint8
    depth  (H, W) uint16, in steps of the index's step_mm, 0 where invalid
    mask   (H, ceil(W / 8)) uint8, the valid pixels, np.packbits along W
    """

    rgb: np.ndarray
    depth: np.ndarray
    mask: np.ndarray


def empty_arrays(index: Index, *batch: int) -> Arrays:
    """Return buffers of undefined content for a sample of this dataset, or for (B,) of them."""
    (h, w), (height, width) = index.size, index.depth_size
    return Arrays(
        np.empty((*batch, h, w, 3), np.uint8),
        np.empty((*batch, height, width), np.uint16),
        np.empty((*batch, height, -(-width // 8)), np.uint8),
    )
