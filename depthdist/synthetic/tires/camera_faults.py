"""Depth errors of a structured-light camera.

* noise that grows with z squared, and where little light returns
* holes where the projector does not reach, on rubber too dark, on glare too bright, and on surfaces
  seen at a grazing angle
* shadowed strips beside edges, because the projector stands beside the lens
* flying pixels: at an edge some pixels see both sides and report a depth between them
"""

from __future__ import annotations

import math

import numpy as np

from depthdist.core.kernel import kernel
from depthdist.synthetic.raytracing.noise import cloud_noise
from depthdist.synthetic.tires.raycast import CHROME, CrateHits, projector_light

WEAK, GLARE = 0.0026, 1.6  # echoes below and above which a pixel is lost
GRAZING, MIRROR = 0.14, 0.975  # the least cosine of the viewing angle; on chrome
EDGE_MM = 14.0  # a step in z that makes flying pixels, at 1 m


@kernel
def _measure_depth(hits, echo, rays, baseline, normal, chance, seed, out):
    fx, fy, px, py = rays
    height, width = hits.z.shape
    per_mm = width / 1944.0
    for v in range(height):
        for u in range(width):
            z = hits.z[v, u]
            out[v, u] = math.nan
            if not hits.lit[v, u]:
                continue
            dx, dy = (u + 0.5 - px) / fx, (v + 0.5 - py) / fy
            patch = (
                cloud_noise(u / per_mm / 21.0, v / per_mm / 21.0, seed) * 0.7
                + cloud_noise(u / per_mm / 6.0, v / per_mm / 6.0, seed + 1) * 0.3
            )
            if projector_light(dx * z, dy * z, z, baseline) < 0.25 + 0.2 * patch:
                continue
            nx, ny, nz = hits.normal[v, u]
            towards = -(nx * dx + ny * dy + nz)
            facing = towards / math.sqrt(1 + dx * dx + dy * dy)
            if facing < (MIRROR if hits.kind[v, u] == CHROME else GRAZING * (0.4 + 1.2 * patch)):
                continue
            back = echo[v, u]
            if back < WEAK * (0.1 + 2.2 * patch * patch) * (0.8 + 0.4 * chance[v, u]):
                continue
            if back > GLARE * (0.6 + 0.8 * patch) and hits.kind[v, u] != CHROME:
                continue
            near, far, dim = z, z, 0
            for dv in range(-1, 2):
                for du in range(-1, 2):
                    a, b = min(max(v + dv, 0), height - 1), min(max(u + du, 0), width - 1)
                    if not math.isnan(hits.z[a, b]):
                        near, far = min(near, hits.z[a, b]), max(far, hits.z[a, b])
                    dim += not hits.lit[a, b]
            luck = chance[v, u]
            # the range of z that a surface at this slope spans without an edge
            level = 2.0 * z * (abs(nx) / fx + abs(ny) / fy) / towards
            if far - near > EDGE_MM * z / 1000.0 + 1.5 * level:
                if luck < 0.55:
                    continue
                if luck < 0.8:
                    z = near + (far - near) * (luck - 0.55) * 4.0
            elif dim > 0 and luck < 0.12 * dim:
                continue
            grain = 0.6 * normal[v, u] + 0.2 * (normal[v - 1, u] + normal[v, u - 1])
            weak = 1.0 + min(2.5, WEAK * 2.0 / (back + 1e-6))
            out[v, u] = z + grain * 0.11 * (z / 1000.0) ** 2 * weak


def add_camera_faults(
    hits: CrateHits, echo: np.ndarray, k: np.ndarray, baseline_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Return depth (H, W) float32 mm as the camera would measure it, NaN where it finds nothing.

    echo  (H, W) float32, the projector's light that returns to the camera
    """
    out = np.empty(hits.z.shape, np.float32)
    normal = rng.standard_normal(hits.z.shape, np.float32)
    chance = rng.random(hits.z.shape, np.float32)
    rays = (k[0, 0], k[1, 1], k[0, 2], k[1, 2])
    seed = int(rng.integers(1 << 20))
    _measure_depth(hits, echo, rays, baseline_mm, normal, chance, seed, out)
    return out
