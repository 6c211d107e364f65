"""The crate and the light of a session.

The crate's frame: x to the right, y to the back wall, z up from its floor, mm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from depthdist.synthetic.tires.plan import Settings, random_stream
from depthdist.synthetic.tires.raycast import FLOOR, WALL, WOOD

SLAT_MM = 22.0
RIM_MM = 28.0  # of wood on top of the back wall


class Session(NamedTuple):
    """What all captures of a session share: the crate, its light and the camera's exposure."""

    inner: tuple[float, float, float]  # width, depth, height of the crate's inside, mm
    slats: tuple[int, int]  # boards on the back wall, on each side wall
    grey: float  # reflectance of the steel
    exposure: float
    white: tuple[float, float, float]  # gain of red, green, blue
    ambient: float  # light from all around
    size_mm: tuple[float, float]  # least and greatest radius of a tire


def draw_session(settings: Settings, session: int) -> Session:
    """Draw the crate and the light of a session."""
    rng = random_stream(settings, 1, session)
    small = rng.uniform(215, 285)
    cast = rng.normal(0, 0.06, 3)
    return Session(
        inner=(rng.uniform(1500, 1900), rng.uniform(1050, 1300), rng.uniform(620, 800)),
        slats=(int(rng.integers(1, 4)), int(rng.integers(2, 5))),
        grey=rng.uniform(0.2, 0.4),
        exposure=rng.uniform(0.58, 0.84),
        white=(1.0 + cast[0] + rng.uniform(-0.06, 0.08), 1.0, 1.0 + cast[2]),
        ambient=rng.uniform(0.045, 0.135),
        size_mm=(small, min(380.0, small + rng.uniform(40, 110))),
    )


def crate_boxes(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Return the crate's boxes (B, 6), low and high corners in its own frame, and their kinds (B,).

    A floor, three high walls, a low front, a wooden rim, slats and posts.
    """
    w = session.inner[0] / 2 + SLAT_MM
    d = session.inner[1] / 2 + SLAT_MM
    h = session.inner[2]
    front = 0.38 * h
    boxes = [
        (FLOOR, -w, -d, -40, w, d, 0),
        (WALL, -w - 30, d, -40, w + 30, d + 30, h),
        (WALL, -w - 30, -d, -40, -w, d, h * 0.92),
        (WALL, w, -d, -40, w + 30, d, h * 0.92),
        (WALL, -w - 30, -d - 30, -40, w + 30, -d, front),
        (WOOD, -w - 45, d - SLAT_MM, h, w + 45, d + 40, h + RIM_MM),
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
    for x in (-w * 0.96, 0.0, w * 0.96):
        boxes.append((WOOD, x - 35, -d - 65, -160, x + 35, -d - 30, front + 60))
    table = np.array(boxes, float)
    return table[:, 1:].copy(), table[:, 0].astype(np.uint8)
