"""What the simulated cameras deliver: an 8-bit image and a point map."""

from __future__ import annotations

import math

import numpy as np

from depthdist.core.kernel import kernel
from depthdist.geometry.camera import pinhole, pixel_rays, points_from_depth


def expose_image(
    color: np.ndarray, exposure: float, white: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Return the 8-bit image (H, W, 3) of linear color (H, W, 3) float32.

    Soft lens, vignette, exposure, white balance, sensor noise, soft highlights and gamma.
    """
    out = np.empty(color.shape, np.uint8)
    noise = rng.standard_normal(color.shape, np.float32)
    _develop(color, exposure * np.asarray(white), noise, out)
    return out


@kernel
def _develop(color, gain, noise, out):
    height, width, _ = color.shape
    for v in range(height):
        for u in range(width):
            a, b = (u + 0.5) / width * 2 - 1, (v + 0.5) / height * 2 - 1
            shade = 1.0 - 0.16 * (a * a + 0.5 * b * b)
            for c in range(3):
                total = 2.0 * color[v, u, c]  # a soft lens: 1 2 1 in both directions
                for dv in range(-1, 2):
                    for du in range(-1, 2):
                        weight = 2.0 if dv == 0 or du == 0 else 1.0
                        row = min(max(v + dv, 0), height - 1)
                        column = min(max(u + du, 0), width - 1)
                        total += weight * color[row, column, c]
                value = total / 16.0 * gain[c] * shade
                value += noise[v, u, c] * math.sqrt(1.2e-6 + 1.4e-4 * max(value, 0.0))
                value = 1.0 - math.exp(-1.15 * max(value, 0.0))  # highlights roll off, no clipping
                out[v, u, c] = np.uint8(255.0 * value ** (1 / 2.2) + 0.5)


def point_map(depth_mm: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return the points (H, W, 3) float32 mm of depth (H, W), seen with intrinsics `k` (3, 3)."""
    size = depth_mm.shape
    rays = pixel_rays(pinhole(size, k[0, 0], k[1, 1], k[0, 2], k[1, 2]), size)
    assert rays is not None, "a pinhole always has rays"
    return points_from_depth(depth_mm, rays).astype(np.float32)
