"""Built-in captures: a crate of tires as the real camera sees it, with the truth that no camera
gives.

    settings = tires.Settings(pairs=58, size=(1200, 1944), seed=0)
    for i, pair in enumerate(tires.plan(settings)):
        capture = tires.render(settings, i)            # capture.rgb, capture.xyz, capture.truth

Data flows one way: `plan` says which captures there are, `pile` and `scene` what stands where,
`tread` the exact shape of a tire, `meet` and `raycast` what each pixel sees, `shade` the picture,
`faults` what the camera makes of the depth.

Camera: pinhole, X right, Y down, Z forward, mm. Pixel (u, v) has its middle at (u + 0.5, v + 0.5),
so XYZ = ((u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy, 1) * Z. The field of view is 55 degrees wide at
every size.

The truth of a capture, all made from the same rays as the picture:

    z       (H, W) float32 mm, exact to 0.01 mm; NaN only where the ray hits nothing
    tire    (H, W) uint8   0 no tire, else 1, 2, ...
    groove  (H, W) uint16  0 no groove, else the groove whose floor or wall is seen
    K       (3, 3) float64 intrinsics, pixels
    groove_id, groove_tire, groove_depth_mm, groove_width_mm, groove_kind
            one row for each groove in the map; kinds: circumferential, zigzag, sipe, lug. Depth is
            normal to the tread; slots that run out over the rounded shoulder get shallower there
            and are not in the map from there on

Every random draw comes from (seed, session, pose, take): the same seed gives the same bytes, in any
order, on any number of workers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from depthdist.synthetic.raytracing import tire_shape as tread
from depthdist.synthetic.tires import camera_faults as faults
from depthdist.synthetic.tires import raycast, scene
from depthdist.synthetic.tires import shading as shade
from depthdist.synthetic.tires.plan import Pair, Settings, draws, plan
from depthdist.synthetic.tires.scene import intrinsics

__all__ = ["Capture", "Pair", "Settings", "intrinsics", "plan", "render"]


class Capture(NamedTuple):
    """One rendered pair."""

    stem: str
    rgb: np.ndarray  # (H, W, 3) uint8
    xyz: np.ndarray  # (H, W, 3) float32 mm, camera frame, NaN where nothing was measured
    truth: dict[str, np.ndarray]  # see the module's docstring


def render(settings: Settings, index: int) -> Capture:
    """The capture number `index` of the set that `settings` describe."""
    pair, k = plan(settings)[index], intrinsics(settings.size)
    world, look, session, _ = scene.build(settings, pair)
    hits = raycast.cast(world, k, *settings.size)
    color, echo = shade.paint(world, hits, look, session.grey, session.ambient, k)
    rng = draws(settings, 6, pair.pose, pair.take)
    rgb = shade.expose_image(color, session.exposure, session.white, rng)
    depth = (
        faults.add_camera_faults(hits, echo, k, scene.BASELINE_MM, rng)
        if settings.faults
        else hits.z.astype(np.float32)
    )
    return Capture(pair.stem, rgb, points(depth, k), truth_of(world, hits, k))


def points(depth_mm: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The point map (H, W, 3) float32 mm of a depth map (H, W)."""
    height, width = depth_mm.shape
    xyz = np.empty((height, width, 3), np.float32)
    xyz[..., 0] = ((np.arange(width) + 0.5 - k[0, 2]) / k[0, 0])[None, :] * depth_mm
    xyz[..., 1] = ((np.arange(height) + 0.5 - k[1, 2]) / k[1, 1])[:, None] * depth_mm
    xyz[..., 2] = depth_mm
    return xyz


def truth_of(world: raycast.Scene, hits: raycast.Hits, k: np.ndarray) -> dict[str, np.ndarray]:
    """What no camera gives; see the module's docstring."""
    ids = np.unique(hits.groove)
    ids = ids[ids > 0]
    rows = np.searchsorted(world.grooves["line"], ids, side="right") - 1
    owner = np.searchsorted(world.tires["last"], rows, side="right") + 1
    groove = world.grooves[rows]
    width = (
        2
        * groove["half_mm"]
        * np.where(
            groove["way"] == tread.ACROSS, (groove["foot_mm"] + 30.0) / groove["foot_mm"], 1.0
        )
    )
    return {
        "z": hits.z.astype(np.float32),
        "tire": np.where(hits.kind == raycast.TIRE_HIT, hits.item + 1, 0).astype(np.uint8),
        "groove": hits.groove,
        "K": k,
        "groove_id": ids.astype(np.uint16),
        "groove_tire": owner.astype(np.uint8),
        "groove_depth_mm": groove["depth_mm"].astype(np.float32),
        "groove_width_mm": width.astype(np.float32),
        "groove_kind": np.array([tread.kind(g) for g in groove], "U15"),
    }
