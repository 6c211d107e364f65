"""Repeatable noise: hashed, smooth and blurred."""

from __future__ import annotations

import math

import numpy as np

from depthdist.synthetic.raytracing.kernel import kernel

LATTICE = np.random.Generator(np.random.Philox(2021)).random(
    (128, 128), np.float32
)  # what `cloud` is woven from


@kernel
def hash_noise(i, j, seed):
    """A number in 0 .. 1 for a cell of a grid."""
    h = np.uint32(i * 374761393 + j * 668265263 + seed * 974711)
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(1274126177))
    return np.float64(h ^ (h >> np.uint32(16))) / 4294967295.0


@kernel
def cloud_noise(x, y, seed):
    """Smooth noise in 0 .. 1, one bump a unit."""
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
    """Mean over a square of 2 radius + 1 pixels, edges repeated, of an (H, W) float32 image."""
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
    for v in range(-2 * radius, height):  # the rows from v to v + 2 radius, so far
        add, take = min(max(v + radius, 0), height - 1), max(v - radius - 1, 0)
        for u in range(width):
            totals[u] += rows[add, u]
            if v > 0:
                totals[u] -= rows[take, u]
            if v >= 0:
                out[v, u] = totals[u] * scale
