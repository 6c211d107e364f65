"""What stands where in one capture: the crate, the pile of tires, the gripper, the room, and the
camera over them.

The crate's frame: x to the right, y to the back wall, z up from its floor, mm. The camera's frame:
X right, Y down, Z forward. All of it is drawn from (seed, session) for the crate and its light,
(seed, pose) for the pile and the view.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from depthdist.synthetic.raytracing import tire_shape as tread
from depthdist.synthetic.raytracing.transforms import camera_axes, upright
from depthdist.synthetic.tires.pile import settle, surface_points
from depthdist.synthetic.tires.plan import NATIVE_SIZE, Pair, Settings, draws
from depthdist.synthetic.tires.raycast import FLOOR, WALL, WOOD, Scene

HALF_VIEW = math.tan(math.radians(27.5))  # half the picture's width at Z = 1
NEAREST_MM, FARTHEST_MM = 252.0, 3904.0
BASELINE_MM = 130.0  # the projector, to the right of the lens
SLAT_MM = 22.0


class Session(NamedTuple):
    """What all captures of a session share: the crate's inside (width, depth, height), mm.

    Light and colour.
    """

    inner: tuple[float, float, float]
    slats: tuple[int, int]  # boards on the back wall, on each side wall
    grey: float
    exposure: float
    white: tuple[float, float, float]
    ambient: float
    size_mm: tuple[float, float]  # the tires' radii


class Look(NamedTuple):
    """What each tire's rubber looks like: (T,) each."""

    dark: np.ndarray  # diffuse albedo
    gloss: np.ndarray  # 0 dull .. 1 wet
    dust: np.ndarray  # 0 clean .. 1 brown
    label: np.ndarray  # -1 none, 0 on the tread, 1 on the sidewall
    label_angle: np.ndarray  # radians


class View(NamedTuple):
    """Where the camera is: `place` in the crate's frame, `axes` (3, 3) its X, Y, Z as columns
    there.
    """

    place: np.ndarray
    axes: np.ndarray
    far_mm: float  # nothing is seen beyond
    gripper_mm: float | None  # how near the gripper comes to the lens


def intrinsics(size: tuple[int, int]) -> np.ndarray:
    """K (3, 3) for a picture of (height, width): 55 degrees wide at any width, a pixel's middle at
    u + 0.5.
    """
    height, width = size
    f = NATIVE_SIZE[1] / 2 / HALF_VIEW
    return np.array(
        [
            [f * width / NATIVE_SIZE[1], 0, width / 2],
            [0, f * height / NATIVE_SIZE[0], height / 2],
            [0, 0, 1.0],
        ]
    )


def session_of(settings: Settings, session: int) -> Session:
    """The crate and the light of a session."""
    rng = draws(settings, 1, session)
    small, cast = rng.uniform(215, 285), rng.normal(0, 0.06, 3)
    return Session(
        inner=(rng.uniform(1500, 1900), rng.uniform(1050, 1300), rng.uniform(620, 800)),
        slats=(int(rng.integers(1, 4)), int(rng.integers(2, 5))),
        grey=rng.uniform(0.2, 0.4),
        exposure=rng.uniform(1.1, 2.3),
        white=(1.0 + cast[0] + rng.uniform(-0.06, 0.08), 1.0, 1.0 + cast[2]),
        ambient=rng.uniform(0.03, 0.09),
        size_mm=(small, min(380.0, small + rng.uniform(40, 110))),
    )


def crate(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """The crate's boxes (B, 6) in its own frame and their kinds (B,): floor, three high walls, a
    low front, slats, posts.
    """
    w, d, h = session.inner[0] / 2 + SLAT_MM, session.inner[1] / 2 + SLAT_MM, session.inner[2]
    front = 0.38 * h
    boxes = [
        (FLOOR, -w, -d, -40, w, d, 0),
        (WALL, -w - 30, d, -40, w + 30, d + 30, h),
        (WALL, -w - 30, -d, -40, -w, d, h * 0.92),
        (WALL, w, -d, -40, w + 30, d, h * 0.92),
        (WALL, -w - 30, -d - 30, -40, w + 30, -d, front),
        (WOOD, -w - 45, d - SLAT_MM, h, w + 45, d + 40, h + 28),  # the rim
    ]
    for x in (-w - 30, w - SLAT_MM):
        boxes.append((WOOD, x, -d - 30, h * 0.92, x + 30 + SLAT_MM, d - SLAT_MM, h * 0.92 + 26))
    num_back, num_side = session.slats
    for i in range(num_back):
        z = h * (i + 0.75) / (num_back + 0.5)
        boxes.append((WOOD, -w, d - SLAT_MM, z - 48, w, d, z + 48))
    for i in range(num_side):
        y = -d + 2 * d * (i + 0.5) / num_side
        boxes += [
            (WOOD, -w, y - 45, 0, -w + SLAT_MM, y + 45, h * 0.92),
            (WOOD, w - SLAT_MM, y - 45, 0, w, y + 45, h * 0.92),
        ]
    for z in (0.22 * front, 0.78 * front):
        boxes.append((WOOD, -w, -d, z - 40, w, -d + SLAT_MM, z + 40))
    boxes += [
        (WOOD, x - 35, -d - 65, -160, x + 35, -d - 30, front + 60)
        for x in (-w * 0.96, 0.0, w * 0.96)
    ]
    table = np.array(boxes, float)
    return table[:, 1:].copy(), table[:, 0].astype(np.uint8)


def _start(rng: np.random.Generator, style: str, inner, row: int):
    """A first guess for a tire: its rotation and (x, y)."""
    x, y = rng.uniform(-0.5, 0.5) * inner[0], rng.uniform(-0.5, 0.5) * inner[1]
    around = rng.uniform(-math.pi, math.pi)
    if style == "flat":
        lean, heading = rng.normal(0, 0.06), around
    elif style == "row":  # like books, axis across the crate
        lean, heading = (
            math.pi / 2 - rng.uniform(0.0, 0.3),
            rng.normal(0, 0.1) + (row % 2) * math.pi,
        )
    elif style == "wall":  # against the back wall, tread towards the lens
        lean, heading, y = (
            rng.uniform(0.9, 1.35),
            -math.pi / 2 + rng.normal(0, 0.35),
            0.5 * inner[1],
        )
    else:
        lean, heading = math.acos(rng.uniform(0.0, 1.0)), around
    axis = np.array(
        [math.sin(lean) * math.cos(heading), math.sin(lean) * math.sin(heading), math.cos(lean)]
    )
    return upright(axis, rng.uniform(0, 2 * math.pi)), x, y


STYLES = {
    "flat": (10, 10, 0.05),
    "row": (16, 12, 0.06),
    "wall": (8, 14, 0.1),
    "mixed": (8, 30, 0.16),
}  # tries, shakes, tilt


@functools.lru_cache(maxsize=16)
def pile(
    settings: Settings, session_id: int, pose: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Look]:
    """The tires of a pose: TIRE rows, GROOVE rows, rotations (T, 3, 3), places (T, 3) in the
    crate's frame, their look.
    """
    session, rng = session_of(settings, session_id), draws(settings, 2, pose)
    num = int(rng.integers(4, 21))
    mood = rng.dirichlet((1.0, 1.0, 0.8, 1.6))
    shapes = [
        tread.tire_shape(
            rng, radius := rng.uniform(*session.size_mm), radius * rng.uniform(0.28, 0.36)
        )
        for _ in range(num)
    ]
    tires, turns, places = np.array(shapes), np.zeros((num, 3, 3)), np.zeros((num, 3))
    points = np.stack([surface_points(t) for t in tires])
    grooves, next_id, count, ceiling = [], 1, 0, session.inner[2] + 120.0
    for i in range(num):
        style = list(STYLES)[int(rng.choice(4, p=mood))]
        tries, shakes, tilt = STYLES[style]
        starts = [_start(rng, style, session.inner, i) for _ in range(tries)]
        fits = settle(rng, tires, points, turns, places, count, session.inner, starts, shakes, tilt)
        if not fits or (places[count, 2] > ceiling and count >= 4):
            continue  # the crate is full here
        flat = tread.tread_half_mm(tires[count])
        pattern = tread.PATTERNS[int(rng.integers(len(tread.PATTERNS)))](
            rng, flat, 2 * math.pi * tires[count]["radius_mm"]
        )
        rows = tread.pattern_rows(tires[count], pattern, next_id)
        tires[count]["first"], tires[count]["last"] = len(grooves), len(grooves) + len(rows)
        grooves += list(rows)
        next_id = int(
            rows[-1]["line"] + (rows[-1]["repeats"] if rows[-1]["way"] == tread.ACROSS else 1)
        )
        count += 1
    look = Look(
        dark=rng.uniform(0.008, 0.021, num),
        gloss=rng.beta(1.5, 2.0, num),
        dust=rng.beta(1.2, 3.0, num),
        label=rng.choice([-1, 0, 1], num, p=[0.55, 0.25, 0.2]),
        label_angle=rng.uniform(-math.pi, math.pi, num),
    )
    return tires[:count], np.array(grooves), turns[:count], places[:count], look


def view_of(settings: Settings, pair: Pair, top_mm: float) -> View:
    """The camera of a pair: from above, or every third pose from the side, at times past the rim of
    the crate.

    Pose 0 has the gripper at 252 mm and pose 1 the room at 3904 mm, so any set of 4 pairs or more
    holds both bounds.
    """
    session, rng, shake = (
        session_of(settings, pair.session),
        draws(settings, 3, pair.pose),
        draws(settings, 4, pair.pose, pair.take),
    )
    width, depth, height = session.inner
    if pair.pose % 3 == 1:
        place = np.array(
            [
                rng.uniform(-200, 200),
                -depth / 2 - rng.uniform(560, 800),
                height + rng.uniform(560, 820),
            ]
        )
        below = math.atan2(place[2] - height - 28, depth / 2 - place[1])
        above = (
            rng.uniform(0.258, 0.275) if pair.pose % 9 == 1 else rng.uniform(0.32, 0.40)
        )  # the rim: in the projector's cone or not
        below += math.atan(above)
        heading, roll = rng.normal(0, 0.06), rng.normal(0, 0.02)
    else:
        steep, heading, roll = (
            math.radians(rng.uniform(48, 84)),
            rng.normal(0, 0.3),
            rng.normal(0, 0.05),
        )
        target = np.array(
            [rng.uniform(-0.14, 0.14) * width, rng.uniform(-0.12, 0.12) * depth, 0.8 * top_mm]
        )
        back = rng.uniform(1340, 1640)
        place = target - back * np.array(
            [
                math.cos(steep) * math.sin(heading),
                math.cos(steep) * math.cos(heading),
                -math.sin(steep),
            ]
        )
        below = steep
    place = place + shake.normal(0, 1.0, 3)
    below, heading, roll = np.array([below, heading, roll]) + shake.normal(0, 0.0012, 3)
    forward = np.array(
        [math.cos(below) * math.sin(heading), math.cos(below) * math.cos(heading), -math.sin(below)]
    )
    far = FARTHEST_MM if pair.pose == 1 else rng.uniform(3000, FARTHEST_MM)
    near = NEAREST_MM + (0 if pair.pose == 0 else rng.uniform(5, 90))
    return View(place, camera_axes(forward, roll), far, near if pair.pose % 5 in (0, 3) else None)


def gripper(view: View, rng: np.random.Generator) -> np.ndarray:
    """Chrome cylinders (C, 8) in the camera's frame: two fingers that hang into the picture, a bar,
    a piston.
    """
    if view.gripper_mm is None:
        return np.zeros((0, 8))
    near, radius = view.gripper_mm, rng.uniform(8, 12)
    z, middle, gap, tip = (
        near + radius,
        rng.uniform(25, 60),
        rng.uniform(26, 36),
        -near * rng.uniform(0.07, 0.16),
    )
    fingers = [(middle + s * gap, tip - 150, z, 0, 1, 0, radius, 150) for s in (-1, 1)]
    pads = [(middle + s * gap, tip - 6, z + 3, 0, 1, 0, radius * 1.28, 7) for s in (-1, 1)]
    bar = [
        (middle, -near * 0.29, z + 26, 1, 0, 0, 12.0, gap + 18),
        (middle, -near * 0.4, z + 48, 0, 0, 1, 24.0, 20),
    ]
    rows = np.array(fingers + pads + bar, float)
    rows[2:4, 2] = near + rows[2:4, 6]  # nothing comes nearer than `near`
    return rows


def build(settings: Settings, pair: Pair) -> tuple[Scene, Look, Session, View]:
    """Everything one capture sees, in the camera's frame."""
    tires, grooves, turns, places, look = pile(settings, pair.session, pair.pose)
    session = session_of(settings, pair.session)
    view = view_of(settings, pair, float(places[:, 2].max()))
    boxes, kinds = crate(session)
    to_tire = np.stack(
        [np.column_stack([t.T @ view.axes, t.T @ (view.place - p)]) for t, p in zip(turns, places)]
    )
    ahead = view.axes[:, 2] * (1.0, 1.0, 0.0)
    rim = (
        np.array([view.place[0], session.inner[1] / 2 + SLAT_MM, session.inner[2] + 28])
        - view.place
    )
    rim *= view.far_mm / (
        rim @ view.axes[:, 2]
    )  # the line of sight over the rim meets the room's wall at far_mm
    ahead /= np.linalg.norm(ahead)
    room = [
        (0, 0, 1, view.far_mm),
        (*(view.axes.T @ ahead), ahead @ rim),
        (*(view.axes.T @ (0.0, 0.0, -1.0)), view.place[2] + 160.0),
    ]
    scene = Scene(
        tires=tires,
        to_tire=to_tire,
        grooves=grooves,
        boxes=boxes,
        box_kind=kinds,
        to_crate=np.column_stack([view.axes, view.place]),
        cylinders=gripper(view, draws(settings, 5, pair.pose)),
        room=np.array(room, float),
        projector=np.array([BASELINE_MM, 0.0, 0.0]),
    )
    return scene, look, session, view
