"""What surfaces in a room look like: colours, patterns and shine under one lamp, light from all
around, and darker hollows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from depthdist.synthetic.raytracing.kernel import kernel
from depthdist.synthetic.raytracing.noise import blur, cloud_noise, hash_noise
from depthdist.synthetic.rooms.raycast import Hits, World, lens_of

PLAIN, CHECKS, STRIPES, CLOUDS, SPECKS, GRAIN = range(6)


class Look(NamedTuple):
    """Of each thing and then each tire, N of them; and the lamp."""

    base: np.ndarray  # (N, 3) diffuse colour
    other: np.ndarray  # (N, 3) the pattern's second colour
    pattern: np.ndarray  # (N,) int64
    size_mm: np.ndarray  # (N,) of the pattern
    dirt: np.ndarray  # (N,) 0..1
    gloss: np.ndarray  # (N,) 0..1
    lamp: np.ndarray  # (3,) its light's colour at a distance of reach_mm
    reach_mm: float
    around: np.ndarray  # (3,) light from all sides


@kernel
def _mix(pattern, size, seed, x, y, z):
    """How much of the second colour a point has, 0..1."""
    a, b = x / size, y / size
    if pattern == CHECKS:
        return float(
            (int(math.floor(a)) + int(math.floor(b)) + int(math.floor(z / size + 0.013))) & 1
        )
    if pattern == STRIPES:
        return 1.0 if (a + 0.35 * b + z / size) % 1.0 < 0.4 else 0.0
    if pattern == CLOUDS:
        return 0.6 * cloud_noise(a, b + z / size, seed) + 0.4 * cloud_noise(
            a * 3.7, b * 3.7 + z / size, seed + 1
        )
    if pattern == SPECKS:
        return (
            1.0
            if hash_noise(
                int(math.floor(6 * a)),
                int(math.floor(6 * b)) + 57 * int(math.floor(6 * z / size)),
                seed,
            )
            > 0.85
            else 0.0
        )
    if pattern == GRAIN:
        return 0.6 * cloud_noise(a * 0.4, 8.0 * (b + z / size), seed) + 0.4 * cloud_noise(
            a, 20.0 * (b + z / size), seed + 3
        )
    return 0.0


@kernel
def _paint(world, hits, look, hollow, color):
    height, width = hits.z.shape
    lens = lens_of(world)
    for v in range(height):
        for u in range(width):
            item = hits.item[v, u]
            if item < 0:
                continue
            px, py, pz = hits.local[v, u]
            nx, ny, nz = hits.normal[v, u]
            x, y, z = hits.place[v, u]
            thing = item < len(world.kind)
            if not thing:  # a tire: angle, width and radius are its own directions
                k = item - len(world.kind)
                r = math.sqrt(px * px + py * py)
                px, py, pz = math.atan2(py, px) * world.tires[k].radius_mm, pz, r
            mix = _mix(look.pattern[item], look.size_mm[item], item, px, py, pz)
            dirt = look.dirt[item] * cloud_noise(
                (px + 0.3 * pz) / 55.0, (py + 0.7 * pz) / 40.0, item + 20
            )
            groove = hits.groove[v, u] > 0
            gloss = look.gloss[item] * (0.4 if groove else 1.0)
            lx, ly, lz = world.light[0] - x, world.light[1] - y, world.light[2] - z
            far = math.sqrt(lx * lx + ly * ly + lz * lz) + 1e-9
            lx, ly, lz = lx / far, ly / far, lz / far
            facing = max(nx * lx + ny * ly + nz * lz, 0.0) * hits.lit[v, u]
            ex, ey, ez = lens[0] - x, lens[1] - y, lens[2] - z
            size = math.sqrt(ex * ex + ey * ey + ez * ez) + 1e-9
            ex, ey, ez = ex / size, ey / size, ez / size
            hx, hy, hz = lx + ex, ly + ey, lz + ez
            half = max(
                (nx * hx + ny * hy + nz * hz) / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9), 0.0
            )
            shine = (0.02 * half**10 + 0.5 * gloss * half**60) * gloss * hits.lit[v, u]
            arrives = min((look.reach_mm / far) ** 2, 6.0)
            open_sky = 0.25 + 0.75 * math.exp(
                -max(hits.z[v, u] - hollow[v, u], 0.0) / (0.04 * hits.z[v, u])
            )
            if groove:
                open_sky *= 0.6
            above = 0.65 + 0.35 * nz
            for i in range(3):
                albedo = look.base[item, i] + mix * (look.other[item, i] - look.base[item, i])
                albedo += dirt * (0.13 - 0.02 * i - albedo)
                color[v, u, i] = (
                    albedo * (look.lamp[i] * arrives * facing + look.around[i] * open_sky * above)
                    + look.lamp[i] * arrives * shine
                )


def paint(world: World, hits: Hits, look: Look) -> np.ndarray:
    """Linear colour (H, W, 3) float32."""
    height, width = hits.z.shape
    color = np.zeros((height, width, 3), np.float32)
    near = hits.z.astype(np.float32)
    small, large = np.empty_like(near), np.empty_like(near)
    blur(near, max(1, width // 120), small)
    blur(small, max(1, width // 60), large)
    _paint(world, hits, look, np.minimum(small, large), color)
    return color
