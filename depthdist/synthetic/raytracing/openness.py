"""How much of the surroundings a point of a tread sees: what darkens a groove as it gets deeper.

A groove is taken for an endless trench with upright walls, whose view factor to the open half space
has a closed form: the mean of the sines of the two angles between which a point sees out (Hottel's
crossed strings in two dimensions, e.g. Howell, A Catalog of Radiation Heat Transfer Configuration
Factors, factors of an infinitely long strip). Light that the walls reflect is left out: black
rubber returns 2 % of it.
"""

from __future__ import annotations

import math

from depthdist.core.kernel import kernel
from depthdist.synthetic.raytracing.tire_shape import ACROSS, body_distance, groove_inside

REACH_MM = 0.1  # nearer than this to a floor or wall, a point lies on it


@kernel
def floor_openness(depth_mm, left_mm, right_mm):
    """Return what a point at the bottom of a trench sees of the sky, 1 in the open.

    left_mm, right_mm  its distances to the two walls
    """
    left = left_mm / math.sqrt(left_mm * left_mm + depth_mm * depth_mm + 1e-12)
    right = right_mm / math.sqrt(right_mm * right_mm + depth_mm * depth_mm + 1e-12)
    return 0.5 * (left + right) if depth_mm > 0.0 else 1.0


@kernel
def wall_openness(depth_mm, width_mm):
    """Return what a point of a trench's wall sees of the sky, `depth_mm` below its rim."""
    return 0.5 * (1.0 - depth_mm / math.sqrt(depth_mm * depth_mm + width_mm * width_mm))


@kernel
def openness_at(tire, grooves, x, y, axial, normal):
    """Return what a point of the tread that a groove has cut sees of the surroundings, 0 to 1.

    normal  (3,) the surface's, of any length; floor and wall are blended by its angle to the
            crown's. Where grooves cross, the widest view counts.
    """
    r = math.sqrt(x * x + y * y)
    crown, base = body_distance(tire, r, axial)
    rise = r - tire.radius_mm + tire.crown_mm
    size = math.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2])
    upright = ((normal[0] * x + normal[1] * y) / r * rise + normal[2] * axial) / (
        size * (crown + tire.crown_mm) + 1e-30
    )
    upright = min(max(upright, 0.0), 1.0)
    depth = max(-base, 0.0)  # on the shoulder, below its own rounding
    angle = math.atan2(y, x)
    best = -1.0
    for g in range(tire.first, tire.last):
        groove = grooves[g]
        inside = groove_inside(groove, angle, axial)[0]
        if inside < -REACH_MM or groove.depth_mm < -crown - REACH_MM:
            continue
        # across the tread, widths are stored at the foot
        scale = r / groove.foot_mm if groove.way == ACROSS else 1.0
        width = 2.0 * groove.half_mm * scale
        left = min(max(inside * scale, 0.0), width)
        floor = floor_openness(depth, left, width - left)
        best = max(best, upright * floor + (1.0 - upright) * wall_openness(depth, width))
    return best if best >= 0.0 else 1.0
