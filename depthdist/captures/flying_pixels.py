"""Find flying pixels: measured points that stand alone in space.

Structured light produces them at silhouettes, between the surface in front and the one behind, and
before the lens, by reflections.
"""

from __future__ import annotations

import numpy as np

# A pixel is flying where no neighbor is nearer than both of these: mm, and a share of its depth.
FLYING_MM = 20.0
FLYING_SHARE = 0.02
# Share of the 3 x 3 window around a flying pixel (itself included) that must be valid.
FLYING_NEIGHBORS = 2.5 / 9


def find_flying(depth_mm: np.ndarray) -> np.ndarray:
    """Return (H, W) bool: valid pixels that none of their 8 neighbors is near in depth.

    depth_mm  (H, W) float32; not finite or <= 0 where nothing was measured

    Where most neighbors are not measured (sparse depth) nothing is known, and no pixel is flying.
    """
    # imported here because numba takes long
    from depthdist.captures.flying_kernel import fill_flying

    flying = np.empty(depth_mm.shape, np.bool_)
    fill_flying(
        np.ascontiguousarray(depth_mm, np.float32),
        FLYING_MM,
        FLYING_SHARE,
        FLYING_NEIGHBORS,
        flying,
    )
    return flying
