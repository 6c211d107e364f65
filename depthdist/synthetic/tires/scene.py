"""What stands where in one capture: crate, pile of tires, gripper, room, and the camera.

The crate and its light follow from (seed, session), the pile and the view from (seed, pose).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from depthdist.synthetic.raytracing.tire_shape import draw_tire
from depthdist.synthetic.raytracing.transforms import leaning_axis, rotation_to_axis
from depthdist.synthetic.raytracing.tread_patterns import PlacedTires, cut_worn_pattern
from depthdist.synthetic.tires.crate import RIM_MM, SLAT_MM, Session, crate_boxes, draw_session
from depthdist.synthetic.tires.pile import Start, empty_pile, settle_tire
from depthdist.synthetic.tires.plan import PlannedCapture, Settings, random_stream
from depthdist.synthetic.tires.raycast import CrateScene
from depthdist.synthetic.tires.view import BASELINE_MM, CameraView, draw_view, gripper_cylinders


class TireAppearance(NamedTuple):
    """The rubber of each tire, (T,) each."""

    dark: np.ndarray  # diffuse albedo
    gloss: np.ndarray  # 0 dull .. 1 wet
    dust: np.ndarray  # 0 clean .. 1 brown
    settled: np.ndarray  # dust where the tread is little open: 0 none .. 1 much
    dusty: np.ndarray  # strong patches of dust on the ribs: 0 none .. 1
    wet: np.ndarray  # dark, glossy patches: 0 none .. 1
    paint: np.ndarray  # factor of the brightness where a groove is painted on
    paint_gloss: np.ndarray  # factor of the gloss there
    label: np.ndarray  # -1 none, 0 on the tread, 1 on the sidewall
    label_angle: np.ndarray  # radians


class CaptureScene(NamedTuple):
    """Everything that one capture shows, in the camera's frame, and its light."""

    crate: CrateScene
    appearance: TireAppearance
    session: Session


class PlacementStyle(NamedTuple):
    """How a tire comes to lie in the crate."""

    tries: int  # places it is dropped from
    shakes: int
    tilt: float  # of a shake, radians


STYLES = {
    "flat": PlacementStyle(10, 10, 0.05),
    "row": PlacementStyle(16, 12, 0.06),
    "wall": PlacementStyle(8, 14, 0.1),
    "mixed": PlacementStyle(8, 30, 0.16),
}


def _draw_start(
    rng: np.random.Generator, style: str, inner: tuple[float, float, float], index: int
) -> Start:
    """Draw where tire number `index` is dropped from."""
    x = rng.uniform(-0.5, 0.5) * inner[0]
    y = rng.uniform(-0.5, 0.5) * inner[1]
    heading = rng.uniform(-math.pi, math.pi)
    if style == "flat":
        lean = rng.normal(0, 0.06)
    elif style == "row":  # like books, axis across the crate
        lean = math.pi / 2 - rng.uniform(0.0, 0.3)
        heading = rng.normal(0, 0.1) + (index % 2) * math.pi
    elif style == "wall":  # against the back wall, tread towards the lens
        lean = rng.uniform(0.9, 1.35)
        heading = -math.pi / 2 + rng.normal(0, 0.35)
        y = 0.5 * inner[1]
    else:
        lean = math.acos(rng.uniform(0.0, 1.0))
    axis = leaning_axis(lean, heading)
    return Start(rotation_to_axis(axis, rng.uniform(0, 2 * math.pi)), x, y)


@functools.lru_cache(maxsize=16)
def draw_pile(
    settings: Settings, session_number: int, pose: int
) -> tuple[PlacedTires, TireAppearance]:
    """Draw the tires of a pose, 4 to 20 of them, in the crate's frame, and their rubber."""
    session = draw_session(settings, session_number)
    rng = random_stream(settings, 2, pose)
    num = int(rng.integers(4, 21))
    weights = rng.dirichlet((1.0, 1.0, 0.8, 1.6))
    shapes = []
    for _ in range(num):
        radius = rng.uniform(*session.size_mm)
        shapes.append(draw_tire(rng, radius, radius * rng.uniform(0.28, 0.36)))
    pile = empty_pile(np.array(shapes), session.inner)
    grooves: list[np.ndarray] = []
    next_id = 1
    count = 0
    for i in range(num):
        style = list(STYLES)[int(rng.choice(4, p=weights))]
        tries, shakes, tilt = STYLES[style]
        starts = [_draw_start(rng, style, session.inner, i) for _ in range(tries)]
        fits = settle_tire(rng, pile, count, starts, shakes, tilt)
        if not fits or (pile.positions[count, 2] > session.inner[2] + 120.0 and count >= 4):
            continue  # the crate is full here
        next_id = cut_worn_pattern(rng, pile.shapes[count], grooves, next_id, settings.groove_depth)
        count += 1
    appearance = TireAppearance(
        dark=rng.uniform(0.008, 0.021, num),
        gloss=rng.beta(1.5, 2.0, num),
        dust=rng.beta(1.2, 3.0, num),
        settled=rng.beta(0.5, 3.0, num),
        dusty=rng.uniform(0.5, 1.0, num) * (rng.random(num) < 0.2),
        wet=rng.uniform(0.5, 1.0, num) * (rng.random(num) < 0.2),
        paint=np.where(
            rng.random(num) < 0.75, rng.uniform(0.45, 0.85, num), rng.uniform(1.3, 1.8, num)
        ),
        paint_gloss=rng.uniform(0.7, 1.3, num),
        label=rng.choice([-1, 0, 1], num, p=[0.55, 0.25, 0.2]),
        label_angle=rng.uniform(-math.pi, math.pi, num),
    )
    tires = PlacedTires(
        pile.shapes[:count], np.array(grooves), pile.rotations[:count], pile.positions[:count]
    )
    return tires, appearance


def build_scene(settings: Settings, capture: PlannedCapture) -> CaptureScene:
    """Return everything that one capture shows, in the camera's frame."""
    tires, appearance = draw_pile(settings, capture.session, capture.pose)
    session = draw_session(settings, capture.session)
    view = draw_view(settings, capture, session, float(tires.positions[:, 2].max()))
    boxes, kinds = crate_boxes(session)
    to_tire = [
        np.column_stack([r.T @ view.axes, r.T @ (view.position - p)])
        for r, p in zip(tires.rotations, tires.positions)
    ]
    crate = CrateScene(
        tires=tires.shapes,
        to_tire=np.stack(to_tire),
        grooves=tires.grooves,
        boxes=boxes,
        box_kind=kinds,
        to_crate=np.column_stack([view.axes, view.position]),
        cylinders=gripper_cylinders(view, random_stream(settings, 5, capture.pose)),
        room=_room_planes(session, view),
        projector=np.array([BASELINE_MM, 0.0, 0.0]),
    )
    return CaptureScene(crate, appearance, session)


def _room_planes(session: Session, view: CameraView) -> np.ndarray:
    """Return the room's planes (3, 4) n . p = d in the camera's frame: far wall, back wall, floor.

    The line of sight over the crate's rim meets the back wall at view.far_mm.
    """
    ahead = view.axes[:, 2] * (1.0, 1.0, 0.0)
    rim = np.array([view.position[0], session.inner[1] / 2 + SLAT_MM, session.inner[2] + RIM_MM])
    rim -= view.position
    rim *= view.far_mm / (rim @ view.axes[:, 2])
    ahead /= np.linalg.norm(ahead)
    planes = [
        (0, 0, 1, view.far_mm),
        (*(view.axes.T @ ahead), ahead @ rim),
        (*(view.axes.T @ (0.0, 0.0, -1.0)), view.position[2] + 160.0),
    ]
    return np.array(planes, float)
