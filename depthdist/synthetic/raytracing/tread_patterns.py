"""Tread patterns: the grooves, sipes and lugs that are cut into a tire."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from depthdist.synthetic.raytracing.tire_shape import ACROSS, AROUND, GROOVE, tread_half_mm

NEW_DEPTH_MM = (6.0, 9.0)  # of a new tread
WEAR = (0.15, 1.0)  # the share of it that is left
PAINTED_SHARE = 1 / 8  # of the tires have no relief, only its picture
GROOVE_KINDS = ("circumferential", "zigzag", "sipe", "lug")
Groove = dict[str, Any]  # values of a GROOVE row by name


class PlacedTires(NamedTuple):
    """Tires and where they are. T tires, G groove rows."""

    shapes: np.ndarray  # (T,) TIRE
    grooves: np.ndarray  # (G,) GROOVE
    rotations: np.ndarray  # (T, 3, 3) the tire's frame to the scene's
    positions: np.ndarray  # (T, 3) mm


def _around(
    center_mm: float, width_mm: float, depth_mm: float, wave_mm: float = 0.0, repeats: int = 1
) -> Groove:
    return dict(
        way=AROUND,
        center_mm=center_mm,
        half_mm=width_mm / 2,
        depth_mm=depth_mm,
        wave_mm=wave_mm,
        repeats=repeats,
    )


def _across(
    span_mm: tuple[float, float],
    width_mm: float,
    depth_mm: float,
    repeats: int,
    *,
    slope: float = 0.0,
    fold: int = 0,
    phase: float = 0.0,
) -> Groove:
    low, high = span_mm
    return dict(
        way=ACROSS,
        center_mm=(low + high) / 2,
        extent_mm=(high - low) / 2,
        half_mm=width_mm / 2,
        depth_mm=depth_mm,
        repeats=repeats,
        slope=slope,
        fold=fold,
        phase=phase,
    )


def road(rng: np.random.Generator, half: float, arc: float) -> list[Groove]:
    """Draw three or four straight grooves, slanted sipes between them, slots over the shoulders."""
    num = int(rng.integers(3, 5))
    depth = rng.uniform(5.0, 8.0)
    width = rng.uniform(7.0, 12.0)
    lines = np.linspace(-0.62, 0.62, num) * half
    grooves = [_around(c, width, depth) for c in lines]
    repeats = int(arc / rng.uniform(28, 40))
    slope = rng.uniform(-0.6, 0.6)
    for low, high in pairwise(lines):
        span = (low, (low + 2 * high) / 3)
        sipe_mm = rng.uniform(2.0, 3.0)
        phase = rng.random()
        grooves.append(_across(span, sipe_mm, depth * 0.7, repeats, slope=slope, phase=phase))
    for end in (-1, 1):
        span = _ordered(end * half * 0.7, end * half * 1.2)
        slot_mm = rng.uniform(3.0, 5.0)
        phase = rng.random()
        grooves.append(
            _across(span, slot_mm, depth * 0.8, repeats, slope=0.15, fold=1, phase=phase)
        )
    return grooves


def winter(rng: np.random.Generator, half: float, arc: float) -> list[Groove]:
    """Draw zigzag grooves, many sipes, and cross slots that divide the ribs into blocks."""
    depth = rng.uniform(6.0, 9.0)
    repeats = int(arc / rng.uniform(50, 70))
    grooves = [
        _around(c * half, rng.uniform(5.0, 8.0), depth, rng.uniform(3.0, 6.0), repeats)
        for c in (-0.5, 0.5)
    ]
    grooves.append(_around(0.0, rng.uniform(6.0, 9.0), depth))
    span = (-half * 1.2, half * 1.2)
    slot_mm = rng.uniform(5.0, 7.5)
    phase = rng.random()
    grooves.append(_across(span, slot_mm, depth * 0.9, repeats, slope=0.25, fold=1, phase=phase))
    slope = rng.uniform(-0.4, 0.4)
    phase = rng.random()
    grooves.append(_across((-half, half), 2.0, depth * 0.6, repeats * 3, slope=slope, phase=phase))
    return grooves


def arrow(rng: np.random.Generator, half: float, arc: float) -> list[Groove]:
    """Draw grooves that join as arrows in the middle of the tread, for rain."""
    depth = rng.uniform(5.0, 8.0)
    repeats = int(arc / rng.uniform(52, 75))
    slope = rng.uniform(0.7, 1.1)
    span = (-half * 1.2, half * 1.2)
    width = rng.uniform(7.0, 10.0)
    phase = rng.random()
    arrows = _across(span, width, depth, repeats, slope=slope, fold=1, phase=phase)
    span = (-half * 0.8, half * 0.8)
    phase = rng.random()
    sipes = _across(span, 2.5, depth * 0.6, repeats, slope=slope * 0.8, fold=1, phase=phase)
    lines = [_around(c * half, rng.uniform(6.0, 10.0), depth) for c in (-0.22, 0.22)]
    return [arrows, sipes, *lines]


def off_road(rng: np.random.Generator, half: float, arc: float) -> list[Groove]:
    """Draw big lugs: wide gaps that alternate between the shoulders, a zigzag between them."""
    depth = rng.uniform(7.5, 9.0)
    repeats = int(arc / rng.uniform(64, 84))
    slope = rng.uniform(0.2, 0.5)
    grooves = [_around(0.0, rng.uniform(8.0, 11.0), depth * 0.85, half * 0.16, repeats)]
    for end, phase in ((-1, 0.0), (1, 0.5)):
        low, high = _ordered(end * half * 0.18, end * half * 1.25)
        gap_mm = rng.uniform(11.5, 14.0)
        grooves.append(
            _across((low, high), gap_mm, depth, repeats, slope=slope, fold=1, phase=phase)
        )
        sipe = (low, high * 0.7 if end > 0 else high)
        grooves.append(
            _across(sipe, 4.0, depth * 0.5, repeats, slope=slope, fold=1, phase=phase + 0.5)
        )
    return grooves


def worn(rng: np.random.Generator, half: float, arc: float) -> list[Groove]:
    """Draw what wear leaves of four straight grooves, 1 to 3 mm deep, and some sipes."""
    depth = rng.uniform(1.2, 3.0)
    grooves = [_around(c * half, rng.uniform(7.0, 11.0), depth) for c in (-0.66, -0.22, 0.22, 0.66)]
    span = (-half * 0.2, half * 0.2)
    sipe_depth = max(1.0, depth * 0.6)
    grooves.append(_across(span, 2.5, sipe_depth, int(arc / 45), slope=0.5, phase=rng.random()))
    return grooves


def _ordered(a: float, b: float) -> tuple[float, float]:
    return min(a, b), max(a, b)


NEW_PATTERNS = (road, road, winter, arrow, off_road)
PATTERNS = (*NEW_PATTERNS, worn)


def groove_rows(tire: np.ndarray, pattern: list[Groove], first_id: int) -> np.ndarray:
    """Return the grooves of one tire as GROOVE rows.

    Ids count up from `first_id`, one for each groove and repeat.
    """
    rows = np.zeros(len(pattern), GROOVE)
    for row, groove in zip(rows, pattern):
        for name, value in groove.items():
            row[name] = value
        row["foot_mm"] = tire["radius_mm"] - 30.0
        if row["way"] == ACROSS:  # so that the width is right at the surface
            row["half_mm"] *= row["foot_mm"] / tire["radius_mm"]
        row["line"] = first_id
        first_id += num_ids(row)
    return rows


def num_ids(row: np.ndarray | np.void) -> int:
    """Return how many groove ids a GROOVE row occupies."""
    return int(row["repeats"]) if row["way"] == ACROSS else 1


def cut_random_pattern(
    rng: np.random.Generator, tire: np.ndarray, table: list[np.ndarray], first_id: int
) -> int:
    """Cut a random pattern into `tire`, append its rows to `table`, return the next free id.

    Each pattern has its own depths: the rooms that the built-in model learned from have these.
    """
    draw = PATTERNS[int(rng.integers(len(PATTERNS)))]
    pattern = draw(rng, tread_half_mm(tire), 2 * math.pi * float(tire["radius_mm"]))
    return _add_rows(groove_rows(tire, pattern, first_id), tire, table, painted=False)


def cut_worn_pattern(
    rng: np.random.Generator,
    tire: np.ndarray,
    table: list[np.ndarray],
    first_id: int,
    depth_scale: float,
) -> int:
    """Cut a random pattern of random wear into `tire`, or paint it on; return the next free id.

    Depth is independent of pattern and widths. Grooves around the tire have the tread's depth, each
    kind of slot or sipe across it a share of that.

    table        gets the pattern's rows
    depth_scale  of all depths; 0 cuts nothing. It changes no random draw
    """
    draw = NEW_PATTERNS[int(rng.integers(len(NEW_PATTERNS)))]
    pattern = draw(rng, tread_half_mm(tire), 2 * math.pi * float(tire["radius_mm"]))
    depth_mm = rng.uniform(*NEW_DEPTH_MM) * rng.uniform(*WEAR)
    shares = rng.uniform(0.5, 1.0, len(pattern))
    for groove, share in zip(pattern, shares):
        groove["depth_mm"] = depth_mm * (share if groove["way"] == ACROSS else 1.0) * depth_scale
    painted = bool(rng.random() < PAINTED_SHARE)
    return _add_rows(groove_rows(tire, pattern, first_id), tire, table, painted)


def _add_rows(rows: np.ndarray, tire: np.ndarray, table: list[np.ndarray], painted: bool) -> int:
    """Append the rows of `tire` to `table`, return the next free id."""
    tire["first"] = len(table)
    tire["last"] = len(table) + (0 if painted else len(rows))
    tire["painted_last"] = len(table) + len(rows)
    table += list(rows)
    return int(rows[-1]["line"]) + num_ids(rows[-1])


def groove_kind(groove: np.ndarray | np.void) -> str:
    """Return which of GROOVE_KINDS a GROOVE row is."""
    if groove["way"] == AROUND:
        return GROOVE_KINDS[1] if groove["wave_mm"] else GROOVE_KINDS[0]
    return GROOVE_KINDS[2] if groove["half_mm"] < 2.0 else GROOVE_KINDS[3]
