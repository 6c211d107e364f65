"""The camera: its intrinsics, where it is in the crate's frame, and the gripper before its lens.

The camera's frame: X right, Y down, Z forward, mm.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from depthdist.synthetic.raytracing.transforms import camera_axes, view_direction
from depthdist.synthetic.tires.crate import RIM_MM, Session
from depthdist.synthetic.tires.plan import NATIVE_SIZE, PlannedCapture, Settings, random_stream

HALF_VIEW = math.tan(math.radians(27.5))  # half the image's width at Z = 1
NEAREST_MM, FARTHEST_MM = 252.0, 3904.0
BASELINE_MM = 130.0  # the projector, to the right of the lens


class CameraView(NamedTuple):
    """Where the camera is and how far it sees."""

    position: np.ndarray  # (3,) mm, crate frame
    axes: np.ndarray  # (3, 3) its X, Y, Z as columns, crate frame
    far_mm: float  # the room's back wall; nothing is visible beyond
    gripper_mm: float | None  # least Z of the gripper; None: there is none


def intrinsics(size: tuple[int, int]) -> np.ndarray:
    """Return K (3, 3) of an image (height, width), 55 degrees wide; pixel centers at u + 0.5."""
    height, width = size
    f = NATIVE_SIZE.width / 2 / HALF_VIEW
    return np.array(
        [
            [f * width / NATIVE_SIZE.width, 0, width / 2],
            [0, f * height / NATIVE_SIZE.height, height / 2],
            [0, 0, 1.0],
        ]
    )


def draw_view(
    settings: Settings, capture: PlannedCapture, session: Session, top_mm: float
) -> CameraView:
    """Draw the camera of a capture; `top_mm` is the height of the pile.

    It looks from above, or at every third pose from the front, sometimes past the crate's rim. Pose
    0 has the gripper at NEAREST_MM and pose 1 the room at FARTHEST_MM, so any set of 4 captures or
    more contains both bounds.
    """
    rng = random_stream(settings, 3, capture.pose)
    shake = random_stream(settings, 4, capture.pose, capture.take)
    if capture.pose % 3 == 1:
        rim_lit = capture.pose % 9 == 1
        position, below, heading, roll = _view_from_front(rng, session.inner, rim_lit)
    else:
        position, below, heading, roll = _view_from_above(rng, session.inner, top_mm)
    position = position + shake.normal(0, 1.0, 3)
    below, heading, roll = np.array([below, heading, roll]) + shake.normal(0, 0.0012, 3)
    far = FARTHEST_MM if capture.pose == 1 else rng.uniform(3000, FARTHEST_MM)
    near = NEAREST_MM + (0 if capture.pose == 0 else rng.uniform(5, 90))
    has_gripper = capture.pose % 5 in (0, 3)
    axes = camera_axes(view_direction(below, heading), roll)
    return CameraView(position, axes, far, near if has_gripper else None)


Pose = tuple[np.ndarray, float, float, float]  # position; below the horizon, heading, roll in rad


def _view_from_front(
    rng: np.random.Generator, inner: tuple[float, float, float], rim_lit: bool
) -> Pose:
    """Draw a camera in front of the crate that also sees the room above the back wall's rim.

    rim_lit  whether the rim lies within the projector's cone
    """
    _, depth, height = inner
    x = rng.uniform(-200, 200)
    y = -depth / 2 - rng.uniform(560, 800)
    position = np.array([x, y, height + rng.uniform(560, 820)])
    below = math.atan2(position[2] - height - RIM_MM, depth / 2 - position[1])
    below += math.atan(rng.uniform(0.258, 0.275) if rim_lit else rng.uniform(0.32, 0.40))
    return position, below, rng.normal(0, 0.06), rng.normal(0, 0.02)


def _view_from_above(
    rng: np.random.Generator, inner: tuple[float, float, float], top_mm: float
) -> Pose:
    """Draw a camera that looks down at the pile."""
    width, depth, _ = inner
    below = math.radians(rng.uniform(48, 84))
    heading = rng.normal(0, 0.3)
    roll = rng.normal(0, 0.05)
    target = np.array(
        [rng.uniform(-0.14, 0.14) * width, rng.uniform(-0.12, 0.12) * depth, 0.8 * top_mm]
    )
    distance = rng.uniform(1340, 1640)
    return target - distance * view_direction(below, heading), below, heading, roll


def gripper_cylinders(view: CameraView, rng: np.random.Generator) -> np.ndarray:
    """Return chrome cylinders (C, 8) in the camera's frame: two fingers with pads, a bar, a piston.

    Each: middle, unit axis, radius, half length. The fingers hang into the image; C is 0 without a
    gripper.
    """
    if view.gripper_mm is None:
        return np.zeros((0, 8))
    near = view.gripper_mm
    radius = rng.uniform(8, 12)
    z = near + radius
    middle = rng.uniform(25, 60)
    gap = rng.uniform(26, 36)
    tip = -near * rng.uniform(0.07, 0.16)
    fingers = [(middle + s * gap, tip - 150, z, 0, 1, 0, radius, 150) for s in (-1, 1)]
    pads = [(middle + s * gap, tip - 6, z + 3, 0, 1, 0, radius * 1.28, 7) for s in (-1, 1)]
    bar = [
        (middle, -near * 0.29, z + 26, 1, 0, 0, 12.0, gap + 18),
        (middle, -near * 0.4, z + 48, 0, 0, 1, 24.0, 20),
    ]
    rows = np.array(fingers + pads + bar, float)
    rows[2:4, 2] = near + rows[2:4, 6]  # nothing is nearer than `near`
    return rows
