"""Repeatable noise: hashed, smooth, and blurred images."""

from __future__ import annotations

import math

import numpy as np

from depthdist.core.kernel import kernel

# The grid of random numbers that `cloud_noise` interpolates.
LATTICE = np.random.Generator(np.random.Philox(2021)).random((128, 128), np.float32)


@kernel
def hash_noise(i, j, seed):
    """Return a number in 0 .. 1 for the cell (i, j) of a grid."""
    h = np.uint32(i * 374761393 + j * 668265263 + seed * 974711)
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(1274126177))
    return np.float64(h ^ (h >> np.uint32(16))) / 4294967295.0


@kernel
def cloud_noise(x, y, seed):
    """Return smooth noise in 0 .. 1 that varies over distances of 1."""
    i, j = math.floor(x), math.floor(y)
    a, b = x - i, y - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    i, j = (int(i) + 57 * seed) & 127, (int(j) + 131 * seed) & 127
    k, m = (i + 1) & 127, (j + 1) & 127
    return (LATTICE[j, i] * (1 - a) + LATTICE[j, k] * a) * (1 - b) + (
        LATTICE[m, i] * (1 - a) + LATTICE[m, k] * a
    ) * b


@kernel
def blur(image, radius, out):
    """Write to `out` the mean over squares of 2 radius + 1 pixels of an (H, W) float32 image.

    Pixels at the edges are repeated.
    """
    height, width = image.shape
    rows = np.empty_like(image)
    scale = np.float32(1.0 / (2 * radius + 1))
    for v in range(height):
        total = image[v, 0] * float(radius)
        for u in range(radius):
            total += image[v, min(u, width - 1)]
        for u in range(width):
            total += image[v, min(u + radius, width - 1)]
            rows[v, u] = total * scale
            total -= image[v, max(u - radius, 0)]
    totals = np.zeros(width)
    for v in range(-2 * radius, height):  # sums over the rows v .. v + 2 radius, updated row by row
        add, take = min(max(v + radius, 0), height - 1), max(v - radius - 1, 0)
        for u in range(width):
            totals[u] += rows[add, u]
            if v > 0:
                totals[u] -= rows[take, u]
            if v >= 0:
                out[v, u] = totals[u] * scale


def surrounding_depth(depth: np.ndarray) -> np.ndarray:
    """Return the lesser of a fine and a coarse blur of depth (H, W) float32.

    A surface far behind it lies in a hollow and receives less light from all around.
    """
    width = depth.shape[1]
    fine = np.empty_like(depth)
    coarse = np.empty_like(depth)
    blur(depth, max(1, width // 120), fine)
    blur(fine, max(1, width // 60), coarse)
    return np.minimum(fine, coarse)
