"""What stands where in a scene: a room, perhaps a table, things on it, tires, the camera and the
lamp; all drawn at random.
"""

from __future__ import annotations

import math

import numpy as np

from depthdist.synthetic.raytracing import tire_shape as tread
from depthdist.synthetic.raytracing.transforms import camera_axes, upright
from depthdist.synthetic.rooms.raycast import BALL, BOX, CYLINDER, ROOM, World
from depthdist.synthetic.rooms.shading import CLOUDS, Look

RUBBER = (0.008, 0.035)  # how much light black rubber gives back


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[World, Look, np.ndarray]:
    """A world, its looks and the camera's intrinsics (3, 3)."""
    height, width = size
    wide = math.radians(rng.uniform(30, 85))
    f = width / 2 / math.tan(wide / 2)
    k = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])
    num_tires = int(rng.integers(1, 14)) if rng.random() < 0.62 else 0
    away = (
        math.exp(rng.uniform(math.log(450), math.log(2400)))
        if num_tires
        else math.exp(rng.uniform(math.log(300), math.log(4000)))
    )
    seen = 2 * away * math.tan(wide / 2)  # what the picture spans at its middle
    things: list[tuple] = []  # kind, half sides, rotation, place
    table = 0.0
    if rng.random() < 0.3:
        table, top = rng.uniform(0.1, 0.8) * away, rng.uniform(0.3, 0.9, 2) * seen
        things.append((BOX, (*top, 0.5 * table), turn(rng, 0.0), (0.0, 0.0, 0.5 * table)))
    for _ in range(int(rng.integers(1, 5)) if num_tires else int(rng.integers(3, 26))):
        things.append(thing(rng, seen, table))
    target = np.array([0.0, 0.0, table + rng.uniform(0.0, 0.15) * away])
    tires, grooves, turns, places = tires_on(rng, num_tires, seen, table)
    if len(tires):
        nearest = places[int(rng.integers(len(places)))]
        target = nearest + rng.normal(0, 0.1, 3) * seen
    below, heading = math.radians(rng.uniform(12, 88)), rng.uniform(-math.pi, math.pi)
    forward = np.array(
        [math.cos(below) * math.sin(heading), math.cos(below) * math.cos(heading), -math.sin(below)]
    )
    camera = target - away * forward
    things = [t for t in things if clear(camera, t[3], np.linalg.norm(t[1]), away)]
    clear_tires = [clear(camera, p, float(t["radius_mm"]), away) for t, p in zip(tires, places)]
    tires, turns, places = tires[clear_tires], turns[clear_tires], places[clear_tires]
    things.append(room(rng, camera, away))
    axes = camera_axes(forward, rng.normal(0, 0.08))
    lamp = camera + rng.uniform(-0.25, 0.25, 3) * away
    if rng.random() < 0.6:
        lamp = target + np.array([*rng.uniform(-1.2, 1.2, 2), rng.uniform(0.6, 1.8)]) * away
    half = np.array(things[-1][1])
    lamp = np.clip(lamp, things[-1][3] - 0.95 * half, things[-1][3] + 0.95 * half)
    world = World(
        kind=np.array([t[0] for t in things], np.int64),
        half=np.array([t[1] for t in things], float),
        to_thing=np.stack(
            [np.column_stack([t[2].T, -t[2].T @ np.asarray(t[3], float)]) for t in things]
        ),
        tires=tires,
        grooves=grooves,
        to_tire=(
            np.stack([np.column_stack([r.T, -r.T @ p]) for r, p in zip(turns, places)])
            if len(tires)
            else np.zeros((0, 3, 4))
        ),
        camera=np.column_stack([axes.T, -axes.T @ camera]),
        light=lamp,
    )
    return world, looks(rng, things, len(tires), float(np.linalg.norm(lamp - target))), k


def clear(camera: np.ndarray, place: np.ndarray, radius_mm: float, away: float) -> bool:
    """Whether a ball around a thing leaves room before the lens."""
    return float(np.linalg.norm(camera - np.asarray(place))) - radius_mm > 0.2 * away


def turn(rng: np.random.Generator, tilt: float) -> np.ndarray:
    """A rotation (3, 3) about the vertical, tilted off it by about `tilt` radians."""
    heading = rng.uniform(-math.pi, math.pi)
    lean = rng.normal(0, 1) * tilt
    return upright(
        np.array(
            [math.sin(lean) * math.cos(heading), math.sin(lean) * math.sin(heading), math.cos(lean)]
        ),
        rng.uniform(0, 2 * math.pi),
    )


def reach(kind: int, half: np.ndarray, rotation: np.ndarray) -> float:
    """How far below its middle a thing reaches."""
    up = np.abs(rotation[2])
    if kind == BALL:
        return float(np.linalg.norm(up * half))
    if kind == CYLINDER:
        return float(half[0] * math.hypot(up[0], up[1]) + half[2] * up[2])
    return float(up @ half)


def thing(rng: np.random.Generator, seen: float, table: float) -> tuple:
    """A box, ball or cylinder on the floor or the table, now and then one in the air."""
    kind = int(rng.choice([BOX, BALL, CYLINDER], p=[0.45, 0.25, 0.3]))
    half = (
        np.exp(rng.normal(0, 0.45, 3))
        * seen
        * math.exp(rng.uniform(math.log(0.025), math.log(0.2)))
    )
    if kind == CYLINDER:
        half[1] = half[0]
    if kind == BALL and rng.random() < 0.6:
        half[:] = half[0]
    style = rng.random()
    rotation = turn(rng, 0.0 if style < 0.6 else 0.12 if style < 0.75 else 1.5)
    x, y = rng.normal(0, 0.32, 2) * seen
    z = (table if abs(x) + abs(y) < 0.6 * seen else 0.0) + reach(kind, half, rotation)
    if rng.random() < 0.15:
        z += rng.uniform(0, 0.3) * seen
    return kind, tuple(half), rotation, (x, y, z)


def tires_on(
    rng: np.random.Generator, num: int, seen: float, table: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tires that lie, stand, lean or are stacked: TIRE rows, GROOVE rows, rotations (T, 3, 3),
    places (T, 3).
    """
    tires, grooves, turns, places, next_id = [], [], [], [], 1
    spread = max(rng.uniform(0.12, 0.35) * seen, 300.0)
    mood = rng.dirichlet((1.0, 1.0, 1.0))
    for _ in range(num):
        radius = rng.uniform(215, 390)
        tire = tread.tire_shape(rng, radius, radius * rng.uniform(0.28, 0.36))
        pattern = tread.PATTERNS[int(rng.integers(len(tread.PATTERNS)))](
            rng, tread.tread_half_mm(tire), 2 * math.pi * radius
        )
        rows = tread.pattern_rows(tire, pattern, next_id)
        next_id = int(
            rows[-1]["line"] + (rows[-1]["repeats"] if rows[-1]["way"] == tread.ACROSS else 1)
        )
        tire["first"], tire["last"] = len(grooves), len(grooves) + len(rows)
        grooves += list(rows)
        style = int(rng.choice(3, p=mood))  # lying, standing, anyhow
        heading, lean = (
            rng.uniform(-math.pi, math.pi),
            (rng.normal(0, 0.08), math.pi / 2 - abs(rng.normal(0, 0.12)), math.acos(rng.random()))[
                style
            ],
        )
        rotation = upright(
            np.array(
                [
                    math.sin(lean) * math.cos(heading),
                    math.sin(lean) * math.sin(heading),
                    math.cos(lean),
                ]
            ),
            rng.uniform(0, 2 * math.pi),
        )
        low = float(tire["radius_mm"]) * math.hypot(rotation[2, 0], rotation[2, 1]) + float(
            tire["half_mm"]
        ) * abs(rotation[2, 2])
        x, y = rng.normal(0, 1, 2) * spread
        z = table + low
        for other, place in zip(tires, places):  # on top of what lies there
            if math.hypot(x - place[0], y - place[1]) < 0.7 * (radius + float(other["radius_mm"])):
                z = max(z, place[2] + 0.55 * (low + float(other["half_mm"])))
        tires.append(tire)
        turns.append(rotation)
        places.append(np.array([x, y, z]))
    return (
        np.array(tires, tread.TIRE) if tires else np.zeros(0, tread.TIRE),
        np.array(grooves, tread.GROOVE) if grooves else np.zeros(0, tread.GROOVE),
        np.array(turns).reshape(-1, 3, 3),
        np.array(places).reshape(-1, 3),
    )


def room(rng: np.random.Generator, camera: np.ndarray, away: float) -> tuple:
    """The room around it all, as a thing: its floor at z = 0, the camera inside."""
    low = np.minimum(camera[:2], 0) - rng.uniform(0.25, 2.2, 2) * away
    high = np.maximum(camera[:2], 0) + rng.uniform(0.25, 2.2, 2) * away
    top = max(camera[2], 0.6 * away) + rng.uniform(0.1, 1.2) * away
    middle = np.array([*(low + high) / 2, top / 2])
    return ROOM, (*(high - low) / 2, top / 2), np.eye(3), middle


def looks(rng: np.random.Generator, things: list[tuple], num_tires: int, reach_mm: float) -> Look:
    """Colours, patterns and shine of every thing and tire, and the light."""
    num = len(things) + num_tires
    hue = rng.uniform(0.03, 0.75, (num, 1)) * np.exp(rng.normal(0, 0.35, (num, 3)))
    other = np.clip(
        hue * np.exp(rng.normal(0, 0.5, (num, 1)) + rng.normal(0, 0.15, (num, 3))), 0.01, 0.95
    )
    pattern, size = rng.integers(0, 6, num), np.exp(rng.uniform(math.log(0.08), math.log(1.5), num))
    size *= [float(np.mean(t[1])) for t in things] + [120.0] * num_tires
    room_at = len(things) - 1
    size[room_at] = reach_mm * math.exp(rng.uniform(math.log(0.03), math.log(0.6)))
    dirt, gloss = rng.beta(1.2, 3.0, num), rng.beta(1.0, 3.0, num)
    black = slice(len(things), num)
    hue[black] = rng.uniform(*RUBBER, (num_tires, 1))
    other[black], pattern[black] = hue[black] * rng.uniform(0.7, 1.6, (num_tires, 1)), CLOUDS
    around = rng.uniform(0.05, 0.6)
    return Look(
        base=np.clip(hue, 0.005, 0.95),
        other=other,
        pattern=pattern,
        size_mm=np.maximum(size, 1.0),
        dirt=dirt,
        gloss=gloss,
        lamp=1.0 + rng.normal(0, 0.06, 3),
        reach_mm=reach_mm,
        around=around * (1.0 + rng.normal(0, 0.05, 3)),
    )
