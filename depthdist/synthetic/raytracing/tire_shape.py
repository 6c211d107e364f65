"""The shape of one tire as a signed distance in mm: a solid of revolution with cut grooves.

A tire lives in its own frame: the axis is z (`axial`), `r` is the distance from it. Its section is
drawn by two curves:

    crown   a flat arc of radius `crown_mm` over the tread, 0 at r = radius_mm
    side    an arc of radius `side_mm` that bulges to |axial| = half_mm, widest at r = middle_mm

`body_distance` rounds them together, opens the bore at r = bore_mm and hollows the inside. A groove
removes what is closer than `depth_mm` to the crown and within half its width of the groove's line,
so its depth is exact along the normal of the tread. Every term has a slope of at most 1, so a ray
may advance by the distance and never passes through the surface.
"""

from __future__ import annotations

import math

import numpy as np

from depthdist.core.kernel import kernel

AROUND, ACROSS = 0, 1  # a groove runs around the tire, or from side to side
MAX_DEPTH_MM, MAX_HALF_MM = 9.0, 7.0
NEAR_MM = 0.5  # nearer than this to the body, grooves count in a distance


def _float_fields(names: str) -> list[tuple[str, str]]:
    return [(name, "f8") for name in names.split()]


TIRE = np.dtype(
    [
        *_float_fields("radius_mm half_mm bore_mm crown_mm side_mm middle_mm tread_mm wall_mm"),
        ("first", "i8"),  # its rows in the table of grooves: first .. last - 1
        ("last", "i8"),
        ("painted_last", "i8"),  # rows last .. painted_last - 1 are painted on: nothing is cut
    ]
)
GROOVE = np.dtype(
    [
        ("way", "i8"),
        ("line", "i8"),  # its id; ACROSS: `repeats` of them, line .. line + repeats - 1
        ("repeats", "i8"),
        *_float_fields("center_mm extent_mm wave_mm slope fold phase half_mm depth_mm foot_mm"),
    ]
)


@kernel
def smooth_max(a, b, k):
    """Return the larger of two distances, rounded over the width `k`.

    Its slope is at most that of the steeper one.
    """
    h = max(k - abs(a - b), 0.0)
    return max(a, b) + h * h / (4.0 * k)


@kernel
def body_distance(tire, r, axial):
    """Return the signed distance to the crown, and to the tire without its grooves."""
    away = abs(axial)
    dr = r - tire.radius_mm + tire.crown_mm
    crown = math.sqrt(dr * dr + away * away) - tire.crown_mm
    dr, da = r - tire.middle_mm, max(away - tire.half_mm + tire.side_mm, 0.0)
    side = math.sqrt(dr * dr + da * da) - tire.side_mm
    outer = max(smooth_max(crown, side, 16.0), tire.bore_mm - r)
    if outer > 40.0:
        return crown, outer
    inner = smooth_max(crown + tire.tread_mm, side + tire.wall_mm, 32.0)
    return crown, max(outer, -inner)


@kernel
def groove_inside(groove, angle, axial):
    """Return how far inside a groove's outline a point of the tread is, mm, and in which repeat.

    Negative outside. Arcs are measured at `foot_mm`, a radius below every groove floor, so they
    never grow faster than the true distance.
    """
    turn = angle / (2.0 * math.pi)
    if groove.way == AROUND:
        if groove.wave_mm == 0.0:
            return groove.half_mm - abs(axial - groove.center_mm), 0
        period = 2.0 * math.pi * groove.foot_mm / groove.repeats
        saw = turn * groove.repeats + groove.phase
        wave = 4.0 * abs(saw - math.floor(saw + 0.5)) - 1.0
        steep = 4.0 * groove.wave_mm / period
        return (
            groove.half_mm
            - abs(axial - groove.center_mm - groove.wave_mm * wave)
            / math.sqrt(1.0 + steep * steep),
            0,
        )
    ends = groove.extent_mm - abs(axial - groove.center_mm)
    if ends < -MAX_HALF_MM:
        return ends, 0
    period = 2.0 * math.pi * groove.foot_mm / groove.repeats
    shift = groove.slope * (abs(axial) if groove.fold > 0.0 else axial)
    saw = turn * groove.repeats + groove.phase + shift / period
    nearest = math.floor(saw + 0.5)
    aside = abs(saw - nearest) * period / math.sqrt(1.0 + groove.slope * groove.slope)
    return min(groove.half_mm - aside, ends), int(nearest) % groove.repeats


@kernel
def signed_distance(tire, grooves, x, y, axial):
    """Return the signed distance from a point in the tire's frame to the tire, mm.

    It never exceeds the true distance. Grooves only make it larger, so farther than NEAR_MM they
    are left out, and a march still never oversteps.
    """
    crown, base = body_distance(tire, math.sqrt(x * x + y * y), axial)
    if base > NEAR_MM or crown < -MAX_DEPTH_MM:
        return base
    angle = math.atan2(y, x)
    for g in range(tire.first, tire.last):
        groove = grooves[g]
        if crown + groove.depth_mm > base:
            base = max(base, min(crown + groove.depth_mm, groove_inside(groove, angle, axial)[0]))
    return base


@kernel
def groove_at(tire, grooves, x, y, axial):
    """Return the groove (row, repeat) at a point of the surface, and whether a groove cuts there.

    The point lies on the groove's floor or wall. The row is -1 where there is no groove, and on the
    rounded shoulder, where a groove is shallower than its nominal depth.
    """
    r = math.sqrt(x * x + y * y)
    crown, base = body_distance(tire, r, axial)
    row, which, best, cut_here = -1, 0, base + 0.02, False
    if crown < -MAX_DEPTH_MM - 0.1 or base > 0.1:
        return row, which, cut_here
    angle = math.atan2(y, x)
    for g in range(tire.first, tire.last):
        inside, repeat = groove_inside(grooves[g], angle, axial)
        cut = min(crown + grooves[g].depth_mm, inside)
        if cut > best:
            row, which, best = g, repeat, cut
        cut_here = cut_here or cut > base - 0.05
    if row >= 0 and _is_on_shoulder(tire, r, crown, axial):
        row = -1
    return row, which, cut_here


@kernel
def _is_on_shoulder(tire, r, crown, axial):
    """Return whether the tread is rounded over a point that is `crown` mm from the crown."""
    return body_distance(tire, r - crown, axial)[1] > 0.02


@kernel
def painted_at(tire, grooves, x, y, axial):
    """Return the painted-on groove (row, repeat) at a point of the surface, (-1, 0) for none.

    Paint ends where the shoulder's rounding begins.
    """
    if tire.last == tire.painted_last:
        return -1, 0
    r = math.sqrt(x * x + y * y)
    crown = body_distance(tire, r, axial)[0]
    if crown < -0.1 or _is_on_shoulder(tire, r, crown, axial):
        return -1, 0
    angle = math.atan2(y, x)
    row, which, best = -1, 0, 0.0
    for g in range(tire.last, tire.painted_last):
        inside, repeat = groove_inside(grooves[g], angle, axial)
        if inside > best:
            row, which, best = g, repeat, inside
    return row, which


@kernel
def surface_normal(tire, grooves, x, y, axial, cut):
    """Return the outward normal at a surface point in the tire's frame, not of unit length.

    cut  whether a groove cuts the surface there
    """
    e = 0.01
    if not cut:  # a solid of revolution: the slope of its section suffices
        r = math.sqrt(x * x + y * y)
        out = (body_distance(tire, r + e, axial)[1] - body_distance(tire, r - e, axial)[1]) / r
        return (
            out * x,
            out * y,
            body_distance(tire, r, axial + e)[1] - body_distance(tire, r, axial - e)[1],
        )
    a = signed_distance(tire, grooves, x + e, y - e, axial - e)
    b = signed_distance(tire, grooves, x - e, y - e, axial + e)
    c = signed_distance(tire, grooves, x - e, y + e, axial - e)
    d = signed_distance(tire, grooves, x + e, y + e, axial + e)
    return a - b - c + d, -a - b + c + d, -a + b - c + d


def draw_tire(rng: np.random.Generator, radius_mm: float, half_mm: float) -> np.ndarray:
    """Return a TIRE record of that outer radius and half width, without grooves."""
    tire = np.zeros((), TIRE)
    height = radius_mm * rng.uniform(0.34, 0.42)
    tire["radius_mm"] = radius_mm
    tire["half_mm"] = half_mm
    tire["bore_mm"] = radius_mm - height
    tire["crown_mm"] = half_mm * rng.uniform(4.0, 7.0)
    tire["side_mm"] = min(height * rng.uniform(0.66, 0.9), half_mm)
    tire["middle_mm"] = radius_mm - height * rng.uniform(0.48, 0.54)
    tire["tread_mm"] = 17.0
    tire["wall_mm"] = 9.0
    return tire


def tread_half_mm(tire: np.ndarray) -> float:
    """Return half the width of the tread's flat part, which ends at the sidewall's arc, mm."""
    rise = float(tire["radius_mm"] - tire["middle_mm"])
    under = float(tire["side_mm"] ** 2 - rise**2)
    return float(tire["half_mm"] - tire["side_mm"] + math.sqrt(max(under, 0.0)))
