"""The shape of one tire: a solid of revolution with grooves cut into its tread, as a signed
distance in mm.

A tire lives in its own frame: the axis is z (`axial`), `r` is the distance from it. Its section is
drawn by two curves:

    crown   a flat arc of radius `crown_mm` over the tread, 0 at r = radius_mm
    side    an arc of radius `side_mm` that bulges to |axial| = half_mm, widest at r = middle_mm

`body` rounds them together, opens the bore at r = bore_mm and hollows the inside. A groove takes
away what is closer than `depth_mm` to the crown and within half its width of the groove's line, so
its depth is exact along the normal of the tread. Every term has a slope of at most 1, so a ray may
step on by the distance and never steps through.
"""

from __future__ import annotations

import math

import numpy as np

from depthdist.synthetic.raytracing.kernel import kernel

AROUND, ACROSS = 0, 1  # a groove runs around the tire, or from side to side
MAX_DEPTH_MM, MAX_HALF_MM = 9.0, 7.0
NEAR_MM = 0.5  # where grooves begin to count in a distance

TIRE = np.dtype(
    [
        (name, "f8")
        for name in (
            "radius_mm",
            "half_mm",
            "bore_mm",
            "crown_mm",
            "side_mm",
            "middle_mm",
            "tread_mm",
            "wall_mm",
        )
    ]
    + [("first", "i8"), ("last", "i8")]  # its rows in the table of grooves
)
GROOVE = np.dtype(
    [
        ("way", "i8"),
        ("line", "i8"),
        ("repeats", "i8"),
    ]  # ACROSS: `repeats` of them, ids line .. line + repeats - 1
    + [
        (name, "f8")
        for name in (
            "center_mm",
            "extent_mm",
            "wave_mm",
            "slope",
            "fold",
            "phase",
            "half_mm",
            "depth_mm",
            "foot_mm",
        )
    ]
)
KINDS = ("circumferential", "zigzag", "sipe", "lug")


@kernel
def smooth_max(a, b, k):
    """The larger of two distances, rounded over the width `k`.

    As steep as the steeper of the two.
    """
    h = max(k - abs(a - b), 0.0)
    return max(a, b) + h * h / (4.0 * k)


@kernel
def body(tire, r, axial):
    """Signed distance to the crown, and to the tire without its grooves."""
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
def across(groove, angle, axial):
    """How far inside the groove's outline a place on the tread is (negative outside), mm, and which
    repeat it is.

    `foot_mm` is a radius below every groove floor: arcs measured there never grow faster than the
    real way.
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
def distance(tire, grooves, x, y, axial):
    """Signed distance from a point in the tire's frame to the tire, mm.

    Never more than the true distance.

    Grooves only make it larger, so more than NEAR_MM away they are left out: a march then still
    never oversteps.
    """
    crown, base = body(tire, math.sqrt(x * x + y * y), axial)
    if base > NEAR_MM or crown < -MAX_DEPTH_MM:
        return base
    angle = math.atan2(y, x)
    for g in range(tire.first, tire.last):
        groove = grooves[g]
        if crown + groove.depth_mm > base:
            base = max(base, min(crown + groove.depth_mm, across(groove, angle, axial)[0]))
    return base


@kernel
def groove_at(tire, grooves, x, y, axial):
    """The groove (row, repeat) whose floor or wall passes through a point of the surface, and
    whether one does.

    The row is -1 where none does, and on the rounded shoulder, where a groove is shallower than its
    depth says.
    """
    r = math.sqrt(x * x + y * y)
    crown, base = body(tire, r, axial)
    row, which, best, cut_here = -1, 0, base + 0.02, False
    if crown < -MAX_DEPTH_MM - 0.1 or base > 0.1:
        return row, which, cut_here
    angle = math.atan2(y, x)
    for g in range(tire.first, tire.last):
        inside, repeat = across(grooves[g], angle, axial)
        cut = min(crown + grooves[g].depth_mm, inside)
        if cut > best:
            row, which, best = g, repeat, cut
        cut_here = cut_here or cut > base - 0.05
    if row >= 0 and body(tire, r - crown, axial)[1] > 0.02:
        row = -1
    return row, which, cut_here


@kernel
def slope(tire, grooves, x, y, axial, cut):
    """The direction out of the surface at a point of it, in the tire's frame, not of unit length.

    `cut`: by a groove.
    """
    e = 0.01
    if not cut:  # a solid of revolution: the section's slope will do
        r = math.sqrt(x * x + y * y)
        out = (body(tire, r + e, axial)[1] - body(tire, r - e, axial)[1]) / r
        return out * x, out * y, body(tire, r, axial + e)[1] - body(tire, r, axial - e)[1]
    a = distance(tire, grooves, x + e, y - e, axial - e)
    b = distance(tire, grooves, x - e, y - e, axial + e)
    c = distance(tire, grooves, x - e, y + e, axial - e)
    d = distance(tire, grooves, x + e, y + e, axial + e)
    return a - b - c + d, -a - b + c + d, -a + b - c + d


def tire_shape(rng: np.random.Generator, radius_mm: float, half_mm: float) -> np.ndarray:
    """A bare tire of that outer radius and half width: a TIRE record without grooves."""
    tire = np.zeros((), TIRE)
    height = radius_mm * rng.uniform(0.34, 0.42)
    tire["radius_mm"], tire["half_mm"], tire["bore_mm"] = radius_mm, half_mm, radius_mm - height
    tire["crown_mm"] = half_mm * rng.uniform(4.0, 7.0)
    tire["side_mm"] = min(height * rng.uniform(0.66, 0.9), half_mm)
    tire["middle_mm"] = radius_mm - height * rng.uniform(0.48, 0.54)
    tire["tread_mm"], tire["wall_mm"] = 17.0, 9.0
    return tire


def tread_half_mm(tire: np.ndarray) -> float:
    """Half the width of the flat of the tread, where the sidewall's arc comes down to it."""
    rise = float(tire["radius_mm"] - tire["middle_mm"])
    return float(
        tire["half_mm"] - tire["side_mm"] + math.sqrt(max(tire["side_mm"] ** 2 - rise**2, 0.0))
    )


def _around(
    center_mm: float, width_mm: float, depth_mm: float, wave_mm: float = 0.0, repeats: int = 1
) -> dict:
    return dict(
        way=AROUND,
        center_mm=center_mm,
        half_mm=width_mm / 2,
        depth_mm=depth_mm,
        wave_mm=wave_mm,
        repeats=repeats,
    )


def _across(
    lo_mm: float,
    hi_mm: float,
    width_mm: float,
    depth_mm: float,
    repeats: int,
    slope=0.0,
    fold=0,
    phase=0.0,
) -> dict:
    middle, extent = (lo_mm + hi_mm) / 2, (hi_mm - lo_mm) / 2
    return dict(
        way=ACROSS,
        center_mm=middle,
        extent_mm=extent,
        half_mm=width_mm / 2,
        depth_mm=depth_mm,
        repeats=repeats,
        slope=slope,
        fold=fold,
        phase=phase,
    )


def road(rng: np.random.Generator, half: float, arc: float) -> list[dict]:
    """Three or four straight grooves, fine slanted sipes between them, slots over the shoulders."""
    num, depth, width = int(rng.integers(3, 5)), rng.uniform(5.0, 8.0), rng.uniform(7.0, 12.0)
    lines = np.linspace(-0.62, 0.62, num) * half
    found = [_around(c, width, depth) for c in lines]
    repeats, slope = int(arc / rng.uniform(28, 40)), rng.uniform(-0.6, 0.6)
    for lo, hi in zip(lines, lines[1:]):
        found.append(
            _across(
                lo,
                (lo + 2 * hi) / 3,
                rng.uniform(2.0, 3.0),
                depth * 0.7,
                repeats,
                slope,
                0,
                rng.random(),
            )
        )
    for end in (-1, 1):
        lo, hi = sorted((end * half * 0.7, end * half * 1.2))
        found.append(
            _across(lo, hi, rng.uniform(3.0, 5.0), depth * 0.8, repeats, 0.15, 1, rng.random())
        )
    return found


def winter(rng: np.random.Generator, half: float, arc: float) -> list[dict]:
    """Zigzag grooves, many sipes, and cross slots that cut the ribs into blocks."""
    depth, repeats = rng.uniform(6.0, 9.0), int(arc / rng.uniform(50, 70))
    found = [
        _around(c * half, rng.uniform(5.0, 8.0), depth, rng.uniform(3.0, 6.0), repeats)
        for c in (-0.5, 0.5)
    ]
    found.append(_around(0.0, rng.uniform(6.0, 9.0), depth))
    found.append(
        _across(
            -half * 1.2,
            half * 1.2,
            rng.uniform(5.0, 7.5),
            depth * 0.9,
            repeats,
            0.25,
            1,
            rng.random(),
        )
    )
    found.append(
        _across(-half, half, 2.0, depth * 0.6, repeats * 3, rng.uniform(-0.4, 0.4), 0, rng.random())
    )
    return found


def arrow(rng: np.random.Generator, half: float, arc: float) -> list[dict]:
    """Grooves that run together as arrows in the middle of the tread, for rain."""
    depth, repeats, slope = (
        rng.uniform(5.0, 8.0),
        int(arc / rng.uniform(52, 75)),
        rng.uniform(0.7, 1.1),
    )
    found = [
        _across(
            -half * 1.2, half * 1.2, rng.uniform(7.0, 10.0), depth, repeats, slope, 1, rng.random()
        )
    ]
    found.append(
        _across(-half * 0.8, half * 0.8, 2.5, depth * 0.6, repeats, slope * 0.8, 1, rng.random())
    )
    return found + [_around(c * half, rng.uniform(6.0, 10.0), depth) for c in (-0.22, 0.22)]


def off_road(rng: np.random.Generator, half: float, arc: float) -> list[dict]:
    """Big lugs: wide gaps that come in from both shoulders in turn, a zigzag between them."""
    depth, repeats, slope = (
        rng.uniform(7.5, 9.0),
        int(arc / rng.uniform(64, 84)),
        rng.uniform(0.2, 0.5),
    )
    found = [_around(0.0, rng.uniform(8.0, 11.0), depth * 0.85, half * 0.16, repeats)]
    for end, phase in ((-1, 0.0), (1, 0.5)):
        lo, hi = sorted((end * half * 0.18, end * half * 1.25))
        found.append(_across(lo, hi, rng.uniform(11.5, 14.0), depth, repeats, slope, 1, phase))
        found.append(
            _across(
                lo, hi * 0.7 if end > 0 else hi, 4.0, depth * 0.5, repeats, slope, 1, phase + 0.5
            )
        )
    return found


def worn(rng: np.random.Generator, half: float, arc: float) -> list[dict]:
    """What is left of four straight grooves, 1 to 3 mm, and some sipes."""
    depth = rng.uniform(1.2, 3.0)
    found = [_around(c * half, rng.uniform(7.0, 11.0), depth) for c in (-0.66, -0.22, 0.22, 0.66)]
    found.append(
        _across(
            -half * 0.2, half * 0.2, 2.5, max(1.0, depth * 0.6), int(arc / 45), 0.5, 0, rng.random()
        )
    )
    return found


PATTERNS = (road, road, winter, arrow, off_road, worn)


def pattern_rows(tire: np.ndarray, pattern: list[dict], first_id: int) -> np.ndarray:
    """The grooves of one tire as GROOVE rows.

    Ids count up from `first_id`, one for each groove and repeat.
    """
    rows = np.zeros(len(pattern), GROOVE)
    for row, groove in zip(rows, pattern):
        for name, value in groove.items():
            row[name] = value
        row["foot_mm"] = tire["radius_mm"] - 30.0
        if row["way"] == ACROSS:
            row["half_mm"] *= (
                row["foot_mm"] / tire["radius_mm"]
            )  # so the width is right at the surface
        row["line"] = first_id
        first_id += row["repeats"] if row["way"] == ACROSS else 1
    return rows


def kind(groove: np.ndarray) -> str:
    """What a person would call the groove: one of KINDS."""
    if groove["way"] == AROUND:
        return KINDS[1] if groove["wave_mm"] else KINDS[0]
    return KINDS[2] if groove["half_mm"] < 2.0 else KINDS[3]
