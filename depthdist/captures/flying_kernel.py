"""The compiled loop of `find_flying`, in a module of its own because numba takes long to import."""

from __future__ import annotations

import numpy as np

from depthdist.core.kernel import kernel


@kernel
def fill_flying(depth_mm, flying_mm, flying_share, min_valid_share, flying):
    """Fill flying (H, W) bool; return how many pixels are."""
    height, width = depth_mm.shape
    count = 0
    for row in range(height):
        for column in range(width):
            here = depth_mm[row, column]
            flying[row, column] = False
            if not (here > 0 and here < np.inf):
                continue
            limit = max(flying_mm, flying_share * here)
            if column and abs(depth_mm[row, column - 1] - here) <= limit:
                continue  # nearly always
            alone, valid, window = True, 0, 0
            for y in range(max(0, row - 1), min(height, row + 2)):
                for x in range(max(0, column - 1), min(width, column + 2)):
                    other = depth_mm[y, x]
                    window += 1
                    if not (other > 0 and other < np.inf):
                        continue
                    valid += 1
                    if abs(other - here) <= limit and not (y == row and x == column):
                        alone = False
                        break
                if not alone:
                    break
            if alone and valid > min_valid_share * window:
                flying[row, column] = True
                count += 1
    return count
