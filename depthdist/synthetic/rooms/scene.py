"""Draw a room at random: perhaps a table, objects and tires in it, the camera and the lamp."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from depthdist.synthetic.raytracing.tire_shape import GROOVE, TIRE, draw_tire
from depthdist.synthetic.raytracing.transforms import (
    camera_axes,
    leaning_axis,
    rotation_to_axis,
    view_direction,
)
from depthdist.synthetic.raytracing.tread_patterns import PlacedTires, cut_random_pattern
from depthdist.synthetic.rooms.raycast import BALL, BOX, CYLINDER, ROOM, RoomScene
from depthdist.synthetic.rooms.shading import CLOUDS, RoomAppearance

RUBBER = (0.008, 0.035)  # albedo of black rubber


class PlacedObject(NamedTuple):
    """An object and where it is."""

    kind: int  # BOX, BALL, CYLINDER or ROOM
    half: tuple[float, float, float]  # half sides or half axes, mm
    rotation: np.ndarray  # (3, 3) its frame to the world's
    position: np.ndarray  # (3,) its middle, mm


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[RoomScene, RoomAppearance, np.ndarray]:
    """Draw a scene, its materials and light, and the camera's intrinsics (3, 3)."""
    height, width = size
    field_of_view = math.radians(rng.uniform(30, 85))
    f = width / 2 / math.tan(field_of_view / 2)
    k = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])
    num_tires = int(rng.integers(1, 14)) if rng.random() < 0.62 else 0
    nearest, farthest = (450, 2400) if num_tires else (300, 4000)
    distance = math.exp(rng.uniform(math.log(nearest), math.log(farthest)))
    span = 2 * distance * math.tan(field_of_view / 2)  # mm across the image at that distance
    objects, table = _draw_objects(rng, distance, span, has_tires=num_tires > 0)
    target = np.array([0.0, 0.0, table + rng.uniform(0.0, 0.15) * distance])
    tires = draw_tires(rng, num_tires, span, table)
    if num_tires:
        chosen = tires.positions[int(rng.integers(num_tires))]
        target = chosen + rng.normal(0, 0.1, 3) * span
    below = math.radians(rng.uniform(12, 88))
    forward = view_direction(below, rng.uniform(-math.pi, math.pi))
    camera = target - distance * forward
    objects = [
        o
        for o in objects
        if is_clear_of_camera(camera, o.position, float(np.linalg.norm(o.half)), distance)
    ]
    tires = _tires_clear_of_camera(tires, camera, distance)
    room = draw_room(rng, camera, distance)
    objects.append(room)
    axes = camera_axes(forward, rng.normal(0, 0.08))
    lamp = _draw_lamp(rng, camera, target, distance, room)
    scene = RoomScene(
        kind=np.array([o.kind for o in objects], np.int64),
        half=np.array([o.half for o in objects], float),
        to_object=np.stack([_to_frame(o.rotation, o.position) for o in objects]),
        tires=tires.shapes,
        grooves=tires.grooves,
        to_tire=np.array(
            [_to_frame(r, p) for r, p in zip(tires.rotations, tires.positions)]
        ).reshape(-1, 3, 4),
        camera=_to_frame(axes, camera),
        light=lamp,
    )
    reach_mm = float(np.linalg.norm(lamp - target))
    return scene, draw_appearance(rng, objects, len(tires.shapes), reach_mm), k


def _to_frame(rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the transform (3, 4) from the world's frame to that of something placed there."""
    return np.column_stack([rotation.T, -rotation.T @ position])


def _draw_objects(
    rng: np.random.Generator, distance: float, span: float, has_tires: bool
) -> tuple[list[PlacedObject], float]:
    """Draw the table and the objects, and return them and the table's height (0: none), mm."""
    objects = []
    table = 0.0
    if rng.random() < 0.3:
        table = rng.uniform(0.1, 0.8) * distance
        top = rng.uniform(0.3, 0.9, 2) * span
        half = (*top, 0.5 * table)
        position = np.array([0.0, 0.0, 0.5 * table])
        objects.append(PlacedObject(BOX, half, draw_rotation(rng, 0.0), position))
    num_objects = int(rng.integers(1, 5)) if has_tires else int(rng.integers(3, 26))
    objects += [draw_object(rng, span, table) for _ in range(num_objects)]
    return objects, table


def _draw_lamp(
    rng: np.random.Generator,
    camera: np.ndarray,
    target: np.ndarray,
    distance: float,
    room: PlacedObject,
) -> np.ndarray:
    """Draw where the lamp is (3,): near the camera or over the target, inside the room."""
    lamp = camera + rng.uniform(-0.25, 0.25, 3) * distance
    if rng.random() < 0.6:
        lamp = target + np.array([*rng.uniform(-1.2, 1.2, 2), rng.uniform(0.6, 1.8)]) * distance
    half = np.array(room.half)
    return np.clip(lamp, room.position - 0.95 * half, room.position + 0.95 * half)


def is_clear_of_camera(
    camera: np.ndarray, position: np.ndarray, radius_mm: float, distance: float
) -> bool:
    """Return whether a ball around an object leaves room in front of the lens."""
    return float(np.linalg.norm(camera - position)) - radius_mm > 0.2 * distance


def _tires_clear_of_camera(tires: PlacedTires, camera: np.ndarray, distance: float) -> PlacedTires:
    kept = [
        is_clear_of_camera(camera, position, float(shape["radius_mm"]), distance)
        for shape, position in zip(tires.shapes, tires.positions)
    ]
    return PlacedTires(
        tires.shapes[kept], tires.grooves, tires.rotations[kept], tires.positions[kept]
    )


def draw_rotation(rng: np.random.Generator, tilt: float) -> np.ndarray:
    """Draw a rotation (3, 3) about the vertical, tilted off it by about `tilt` radians."""
    heading = rng.uniform(-math.pi, math.pi)
    lean = rng.normal(0, 1) * tilt
    return rotation_to_axis(leaning_axis(lean, heading), rng.uniform(0, 2 * math.pi))


def height_above_base(kind: int, half: np.ndarray, rotation: np.ndarray) -> float:
    """Return how far an object reaches below its middle, mm."""
    up = np.abs(rotation[2])
    if kind == BALL:
        return float(np.linalg.norm(up * half))
    if kind == CYLINDER:
        return float(half[0] * math.hypot(up[0], up[1]) + half[2] * up[2])
    return float(up @ half)


def draw_object(rng: np.random.Generator, span: float, table: float) -> PlacedObject:
    """Draw a box, ellipsoid or cylinder on the floor or the table, sometimes in the air."""
    kind = int(rng.choice([BOX, BALL, CYLINDER], p=[0.45, 0.25, 0.3]))
    shape = np.exp(rng.normal(0, 0.45, 3))
    half = shape * span * math.exp(rng.uniform(math.log(0.025), math.log(0.2)))
    if kind == CYLINDER:
        half[1] = half[0]
    if kind == BALL and rng.random() < 0.6:
        half[:] = half[0]
    style = rng.random()
    if style < 0.6:
        tilt = 0.0
    elif style < 0.75:
        tilt = 0.12
    else:
        tilt = 1.5
    rotation = draw_rotation(rng, tilt)
    x, y = rng.normal(0, 0.32, 2) * span
    base = table if abs(x) + abs(y) < 0.6 * span else 0.0
    z = base + height_above_base(kind, half, rotation)
    if rng.random() < 0.15:
        z += rng.uniform(0, 0.3) * span
    return PlacedObject(kind, tuple(half), rotation, np.array([x, y, z]))


def draw_tires(rng: np.random.Generator, num: int, span: float, table: float) -> PlacedTires:
    """Draw tires that lie, stand, lean or are stacked."""
    shapes: list[np.ndarray] = []
    grooves: list[np.ndarray] = []
    rotations: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    next_id = 1
    spread = max(rng.uniform(0.12, 0.35) * span, 300.0)
    weights = rng.dirichlet((1.0, 1.0, 1.0))
    for _ in range(num):
        radius = rng.uniform(215, 390)
        shape = draw_tire(rng, radius, radius * rng.uniform(0.28, 0.36))
        next_id = cut_random_pattern(rng, shape, grooves, next_id)
        rotation = _draw_tire_rotation(rng, weights)
        low = float(shape["radius_mm"]) * math.hypot(rotation[2, 0], rotation[2, 1])
        low += float(shape["half_mm"]) * abs(rotation[2, 2])
        x, y = rng.normal(0, 1, 2) * spread
        z = table + low
        for other, (other_x, other_y, other_z) in zip(shapes, positions):  # on top of what is there
            reach = 0.7 * (radius + float(other["radius_mm"]))
            if math.hypot(x - other_x, y - other_y) < reach:
                z = max(z, other_z + 0.55 * (low + float(other["half_mm"])))
        shapes.append(shape)
        rotations.append(rotation)
        positions.append(np.array([x, y, z]))
    return PlacedTires(
        np.array(shapes, TIRE),
        np.array(grooves, GROOVE),
        np.array(rotations).reshape(-1, 3, 3),
        np.array(positions).reshape(-1, 3),
    )


def _draw_tire_rotation(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """Draw the rotation (3, 3) of a tire that lies, stands, or does neither, by their weights."""
    style = int(rng.choice(3, p=weights))
    heading = rng.uniform(-math.pi, math.pi)
    leans = (  # every one is drawn, so that the numbers after them do not depend on the style
        rng.normal(0, 0.08),
        math.pi / 2 - abs(rng.normal(0, 0.12)),
        math.acos(rng.random()),
    )
    axis = leaning_axis(leans[style], heading)
    return rotation_to_axis(axis, rng.uniform(0, 2 * math.pi))


def draw_room(rng: np.random.Generator, camera: np.ndarray, distance: float) -> PlacedObject:
    """Draw the room around everything: its floor at z = 0, the camera inside."""
    low = np.minimum(camera[:2], 0) - rng.uniform(0.25, 2.2, 2) * distance
    high = np.maximum(camera[:2], 0) + rng.uniform(0.25, 2.2, 2) * distance
    top = max(camera[2], 0.6 * distance) + rng.uniform(0.1, 1.2) * distance
    middle = np.array([*(low + high) / 2, top / 2])
    half = (*(high - low) / 2, top / 2)
    return PlacedObject(ROOM, half, np.eye(3), middle)


def draw_appearance(
    rng: np.random.Generator, objects: list[PlacedObject], num_tires: int, reach_mm: float
) -> RoomAppearance:
    """Draw colors, patterns and gloss of every object and tire, and the light.

    objects   the room is the last of them
    reach_mm  the lamp's distance from what the camera looks at
    """
    num = len(objects) + num_tires
    base = rng.uniform(0.03, 0.75, (num, 1)) * np.exp(rng.normal(0, 0.35, (num, 3)))
    change = np.exp(rng.normal(0, 0.5, (num, 1)) + rng.normal(0, 0.15, (num, 3)))
    other = np.clip(base * change, 0.01, 0.95)
    pattern = rng.integers(0, 6, num)
    size = np.exp(rng.uniform(math.log(0.08), math.log(1.5), num))
    size *= [float(np.mean(o.half)) for o in objects] + [120.0] * num_tires
    size[len(objects) - 1] = reach_mm * math.exp(rng.uniform(math.log(0.03), math.log(0.6)))
    dirt = rng.beta(1.2, 3.0, num)
    gloss = rng.beta(1.0, 3.0, num)
    tires = slice(len(objects), num)
    base[tires] = rng.uniform(*RUBBER, (num_tires, 1))
    other[tires] = base[tires] * rng.uniform(0.7, 1.6, (num_tires, 1))
    pattern[tires] = CLOUDS
    ambient = rng.uniform(0.05, 0.6)
    return RoomAppearance(
        base=np.clip(base, 0.005, 0.95),
        other=other,
        pattern=pattern,
        size_mm=np.maximum(size, 1.0),
        dirt=dirt,
        gloss=gloss,
        lamp=1.0 + rng.normal(0, 0.06, 3),
        reach_mm=reach_mm,
        around=ambient * (1.0 + rng.normal(0, 0.05, 3)),
    )
