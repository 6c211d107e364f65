"""How tires come to lie in a crate: each is dropped until it touches, then shaken into a lower
rest.

Tires are told apart by points on their surface: two are clear of each other by at least the
smallest distance from the points of one to the body of the other. Going down by that clearance
never goes too far.
"""

from __future__ import annotations

import math

import numpy as np

from depthdist.synthetic.raytracing.kernel import kernel
from depthdist.synthetic.raytracing.tire_shape import body

TOUCH_MM = 0.6
RINGS = 28  # points around each of a tire's edges


def surface_points(tire: np.ndarray) -> np.ndarray:
    """Points on the edges and the tread of a tire, (N, 3) mm in its own frame."""
    half, radius = float(tire["half_mm"]), float(tire["radius_mm"])
    rings = [(radius, 0.0)]
    for end in (-1, 1):
        rings += [
            (radius - 4.0, end * half * 0.5),
            (radius - 14.0, end * (half - 22.0)),
            (float(tire["middle_mm"]), end * half),
        ]
        rings += [(float(tire["bore_mm"]), end * half * 0.75)]
    angles = np.arange(RINGS) * (2 * math.pi / RINGS)
    return np.array([(r * math.cos(a), r * math.sin(a), z) for r, z in rings for a in angles])


@kernel
def _to_body(points, turn, place, other, other_turn, other_place, most):
    """The smallest distance, at most `most`, from the points of one tire to the body of another."""
    for i in range(len(points)):
        x = (
            turn[0, 0] * points[i, 0]
            + turn[0, 1] * points[i, 1]
            + turn[0, 2] * points[i, 2]
            + place[0]
            - other_place[0]
        )
        y = (
            turn[1, 0] * points[i, 0]
            + turn[1, 1] * points[i, 1]
            + turn[1, 2] * points[i, 2]
            + place[1]
            - other_place[1]
        )
        z = (
            turn[2, 0] * points[i, 0]
            + turn[2, 1] * points[i, 1]
            + turn[2, 2] * points[i, 2]
            + place[2]
            - other_place[2]
        )
        along = other_turn[0, 2] * x + other_turn[1, 2] * y + other_turn[2, 2] * z
        r = math.sqrt(max(x * x + y * y + z * z - along * along, 0.0))
        if max(r - other.radius_mm, abs(along) - other.half_mm) < most:
            most = min(most, body(other, r, along)[1])
    return most


@kernel
def clearance(tires, points, turns, places, i, num):
    """How far tire `i` is at least from all of the first `num` tires, mm.

    1000 where none is near.
    """
    least = 1000.0
    for j in range(num):
        dx, dy, dz = (
            places[i, 0] - places[j, 0],
            places[i, 1] - places[j, 1],
            places[i, 2] - places[j, 2],
        )
        apart = math.sqrt(dx * dx + dy * dy + dz * dz)
        reach_i = math.hypot(tires[i].radius_mm, tires[i].half_mm)
        reach_j = math.hypot(tires[j].radius_mm, tires[j].half_mm)
        if apart - reach_i - reach_j < least:
            least = _to_body(points[i], turns[i], places[i], tires[j], turns[j], places[j], least)
            least = _to_body(points[j], turns[j], places[j], tires[i], turns[i], places[i], least)
    return least


@kernel
def _reach(tire, turn, axis):
    """How far a tire reaches from its middle along one of the crate's axes."""
    a = abs(turn[axis, 2])
    return (tire.half_mm - 4.0) * a + tire.radius_mm * math.sqrt(max(1.0 - a * a, 0.0))


@kernel
def drop(tires, points, turns, places, i, inner):
    """Push tire `i` inside the crate and lower it until it touches.

    Its height then, or inf where it has no room.
    """
    for axis in range(2):
        slack = 0.5 * inner[axis] - _reach(tires[i], turns[i], axis)
        if slack < 0.0:
            return math.inf
        places[i, axis] = min(max(places[i, axis], -slack), slack)
    ground = _reach(tires[i], turns[i], 2)
    for _ in range(60):
        room = min(clearance(tires, points, turns, places, i, i), places[i, 2] - ground)
        if room < -TOUCH_MM:
            return math.inf
        places[i, 2] -= max(room, 0.0)
        if room < TOUCH_MM:
            break
    return places[i, 2]


def _tilt(turn: np.ndarray, about: np.ndarray) -> np.ndarray:
    """`turn` tilted by the small rotation vector `about`, radians."""
    angle = float(np.linalg.norm(about)) + 1e-12
    x, y, z = about / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * (k @ k)) @ turn


def settle(rng, tires, points, turns, places, i, inner, starts, shakes: int, tilt: float) -> bool:
    """Try tire `i` at each of `starts` (rotation, x, y), keep the lowest, shake it lower.

    False where none has room.
    """
    best, top = math.inf, (max((p[2] for p in places[:i]), default=0.0)) + 900.0
    kept = None
    for turn, x, y in starts:
        turns[i], places[i] = turn, (x, y, top)
        height = drop(tires, points, turns, places, i, inner)
        if height < best:
            best, kept = height, (turns[i].copy(), places[i].copy())
    if kept is None:
        return False
    for s in range(shakes):
        size = 1.0 - 0.85 * s / shakes
        turns[i] = _tilt(kept[0], rng.normal(0.0, tilt * size, 3))
        places[i] = kept[1] + np.array([*rng.normal(0.0, 35.0 * size, 2), 45.0 * size])
        height = drop(tires, points, turns, places, i, inner)
        if height < best:
            best, kept = height, (turns[i].copy(), places[i].copy())
    turns[i], places[i] = kept
    return True
