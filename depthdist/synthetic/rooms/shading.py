"""Shade a room: colors, patterns and gloss under one lamp, ambient light and darker hollows."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from depthdist.core.kernel import kernel
from depthdist.synthetic.raytracing.noise import cloud_noise, hash_noise, surrounding_depth
from depthdist.synthetic.rooms.raycast import RoomHits, RoomScene, camera_position

PLAIN, CHECKS, STRIPES, CLOUDS, SPECKS, GRAIN = range(6)


class RoomAppearance(NamedTuple):
    """The materials of all objects, then all tires, N together; and the light."""

    base: np.ndarray  # (N, 3) diffuse color
    other: np.ndarray  # (N, 3) the pattern's second color
    pattern: np.ndarray  # (N,) int64
    size_mm: np.ndarray  # (N,) of the pattern
    dirt: np.ndarray  # (N,) 0..1
    gloss: np.ndarray  # (N,) 0..1
    lamp: np.ndarray  # (3,) color of its light at a distance of reach_mm
    reach_mm: float
    around: np.ndarray  # (3,) ambient light


@kernel
def _pattern_weight(pattern, size, seed, x, y, z):
    """Return the share of the second color at a point, 0..1."""
    a, b = x / size, y / size
    if pattern == CHECKS:
        return float((math.floor(a) + math.floor(b) + math.floor(z / size + 0.013)) & 1)
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
                math.floor(6 * a),
                math.floor(6 * b) + 57 * math.floor(6 * z / size),
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
def _shade(scene, hits, appearance, surroundings, color):
    height, width = hits.z.shape
    lens = camera_position(scene)
    for v in range(height):
        for u in range(width):
            item = hits.item[v, u]
            if item < 0:
                continue
            px, py, pz = hits.local[v, u]
            nx, ny, nz = hits.normal[v, u]
            x, y, z = hits.place[v, u]
            is_tire = item >= len(scene.kind)
            if is_tire:  # its pattern follows angle, width and radius
                k = item - len(scene.kind)
                r = math.sqrt(px * px + py * py)
                px, py, pz = math.atan2(py, px) * scene.tires[k].radius_mm, pz, r
            mix = _pattern_weight(
                appearance.pattern[item], appearance.size_mm[item], item, px, py, pz
            )
            dirt = appearance.dirt[item] * cloud_noise(
                (px + 0.3 * pz) / 55.0, (py + 0.7 * pz) / 40.0, item + 20
            )
            groove = hits.groove[v, u] > 0
            gloss = appearance.gloss[item] * (0.4 if groove else 1.0)
            lx, ly, lz = scene.light[0] - x, scene.light[1] - y, scene.light[2] - z
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
            arrives = min((appearance.reach_mm / far) ** 2, 6.0)
            open_sky = 0.25 + 0.75 * math.exp(
                -max(hits.z[v, u] - surroundings[v, u], 0.0) / (0.04 * hits.z[v, u])
            )
            if groove:
                open_sky *= 0.6
            above = 0.65 + 0.35 * nz
            for i in range(3):
                albedo = appearance.base[item, i] + mix * (
                    appearance.other[item, i] - appearance.base[item, i]
                )
                albedo += dirt * (0.13 - 0.02 * i - albedo)
                color[v, u, i] = (
                    albedo
                    * (
                        appearance.lamp[i] * arrives * facing
                        + appearance.around[i] * open_sky * above
                    )
                    + appearance.lamp[i] * arrives * shine
                )


def shade_room(scene: RoomScene, hits: RoomHits, appearance: RoomAppearance) -> np.ndarray:
    """Return linear color (H, W, 3) float32."""
    color = np.zeros((*hits.z.shape, 3), np.float32)
    surroundings = surrounding_depth(hits.z.astype(np.float32))
    _shade(scene, hits, appearance, surroundings, color)
    return color
