"""Pile tires in a crate: each is dropped until it touches, then shaken into a lower rest.

Collisions are detected with points on the tires' surfaces: the clearance of two tires is the least
distance from the points of one to the body of the other. Lowering a tire by its clearance never
makes it pass through another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from depthdist.core.kernel import kernel
from depthdist.synthetic.raytracing.tire_shape import body_distance

TOUCH_MM = 0.6
POINTS_PER_RING = 28


class Pile(NamedTuple):
    """The tires in a crate while they are placed; rows are changed in place. T tires."""

    shapes: np.ndarray  # (T,) TIRE
    points: np.ndarray  # (T, N, 3) mm, on each tire's surface, in its own frame
    rotations: np.ndarray  # (T, 3, 3) the tire's frame to the crate's
    positions: np.ndarray  # (T, 3) mm, crate frame
    inner: tuple[float, float, float]  # width, depth, height of the crate's inside, mm


class Start(NamedTuple):
    """Where a tire is dropped from."""

    rotation: np.ndarray  # (3, 3)
    x: float
    y: float


def empty_pile(shapes: np.ndarray, inner: tuple[float, float, float]) -> Pile:
    """Return a pile of `shapes` (T,) TIRE that are not placed yet."""
    points = np.stack([surface_points(shape) for shape in shapes])
    num = len(shapes)
    return Pile(shapes, points, np.zeros((num, 3, 3)), np.zeros((num, 3)), inner)


def surface_points(tire: np.ndarray) -> np.ndarray:
    """Return points on the edges and the tread of a tire, (N, 3) mm in its own frame."""
    half = float(tire["half_mm"])
    radius = float(tire["radius_mm"])
    rings = [(radius, 0.0)]  # radius, axial
    for end in (-1, 1):
        rings += [
            (radius - 4.0, end * half * 0.5),
            (radius - 14.0, end * (half - 22.0)),
            (float(tire["middle_mm"]), end * half),
            (float(tire["bore_mm"]), end * half * 0.75),
        ]
    angles = np.arange(POINTS_PER_RING) * (2 * math.pi / POINTS_PER_RING)
    return np.array([(r * math.cos(a), r * math.sin(a), z) for r, z in rings for a in angles])


@kernel
def _distance_to_body(points, turn, place, other, other_turn, other_place, most):
    """Return the least distance, at most `most`, from points of one tire to the body of another."""
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
            most = min(most, body_distance(other, r, along)[1])
    return most


@kernel
def clearance(pile, i, num):
    """Return a lower bound of the distance from tire `i` to the first `num` tires, mm.

    1000 where none is near.
    """
    shapes, points, turns, places = pile.shapes, pile.points, pile.rotations, pile.positions
    least = 1000.0
    for j in range(num):
        dx, dy, dz = (
            places[i, 0] - places[j, 0],
            places[i, 1] - places[j, 1],
            places[i, 2] - places[j, 2],
        )
        apart = math.sqrt(dx * dx + dy * dy + dz * dz)
        reach_i = math.hypot(shapes[i].radius_mm, shapes[i].half_mm)
        reach_j = math.hypot(shapes[j].radius_mm, shapes[j].half_mm)
        if apart - reach_i - reach_j < least:
            least = _distance_to_body(
                points[i], turns[i], places[i], shapes[j], turns[j], places[j], least
            )
            least = _distance_to_body(
                points[j], turns[j], places[j], shapes[i], turns[i], places[i], least
            )
    return least


@kernel
def _half_extent(tire, turn, axis):
    """Return how far a tire reaches from its middle along one of the crate's axes."""
    a = abs(turn[axis, 2])
    return (tire.half_mm - 4.0) * a + tire.radius_mm * math.sqrt(max(1.0 - a * a, 0.0))


@kernel
def drop_tire(pile, i):
    """Push tire `i` inside the crate, lower it until it touches, and return its height.

    Infinite where it has no room.
    """
    places = pile.positions
    for axis in range(2):
        slack = 0.5 * pile.inner[axis] - _half_extent(pile.shapes[i], pile.rotations[i], axis)
        if slack < 0.0:
            return math.inf
        places[i, axis] = min(max(places[i, axis], -slack), slack)
    ground = _half_extent(pile.shapes[i], pile.rotations[i], 2)
    for _ in range(60):
        room = min(clearance(pile, i, i), places[i, 2] - ground)
        if room < -TOUCH_MM:
            return math.inf
        places[i, 2] -= max(room, 0.0)
        if room < TOUCH_MM:
            break
    return places[i, 2]


def _tilted(rotation: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return `rotation` tilted by the small rotation vector `vector`, radians."""
    angle = float(np.linalg.norm(vector)) + 1e-12
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return (np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * (k @ k)) @ rotation


def settle_tire(
    rng: np.random.Generator, pile: Pile, i: int, starts: list[Start], shakes: int, tilt: float
) -> bool:
    """Drop tire `i` from each of `starts`, keep the lowest rest, and shake it into lower ones.

    tilt     radians by which the first shakes rotate it, about
    returns  False where none of the starts has room
    """
    rotations, positions = pile.rotations, pile.positions
    top = max((p[2] for p in positions[:i]), default=0.0) + 900.0
    lowest = math.inf
    rest = None
    for start in starts:
        rotations[i] = start.rotation
        positions[i] = (start.x, start.y, top)
        height = drop_tire(pile, i)
        if height < lowest:
            lowest = height
            rest = rotations[i].copy(), positions[i].copy()
    if rest is None:
        return False
    for shake in range(shakes):
        size = 1.0 - 0.85 * shake / shakes
        rotations[i] = _tilted(rest[0], rng.normal(0.0, tilt * size, 3))
        positions[i] = rest[1] + np.array([*rng.normal(0.0, 35.0 * size, 2), 45.0 * size])
        height = drop_tire(pile, i)
        if height < lowest:
            lowest = height
            rest = rotations[i].copy(), positions[i].copy()
    rotations[i], positions[i] = rest
    return True
