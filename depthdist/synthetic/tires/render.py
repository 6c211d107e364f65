"""Render captures of a crate of tires as the real camera sees it, with exact ground truth.

    settings = tires.Settings(pairs=58, size=Size(1200, 1944), seed=0)
    capture = tires.render(settings, 17)  # capture.rgb, capture.xyz, capture.truth

`plan` determines which captures there are, `crate`, `pile`, `view` and `scene` what stands where,
`raycast` what each pixel sees, `shading` the image, `camera_faults` the measured depth.

Camera: pinhole, X right, Y down, Z forward, mm. The center of pixel (u, v) is (u + 0.5, v + 0.5),
so XYZ = ((u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy, 1) * Z. The field of view is 55 degrees wide at
every size.

The ground truth of a capture, from the same rays as the image:

    z       (H, W) float32 mm, exact to 0.01 mm; NaN only where the ray hits nothing
    tire    (H, W) uint8   0 no tire, else 1, 2, ...
    groove  (H, W) uint16  0 no groove, else the groove whose floor or wall is seen
    painted (H, W) uint16  0 none, else the groove that is seen there and only painted on
    K       (3, 3) float64 intrinsics, pixels
    groove_id, groove_tire, groove_depth_mm, groove_width_mm, groove_kind
            one row for each groove in the map; kinds: circumferential, zigzag, sipe, lug. Depth is
            normal to the tread; slots that end on the rounded shoulder get shallower there and are
            not in the map from there on
    painted_id, ...
            the same columns for the painted-on grooves; their depth is 0

Every random draw depends only on (seed, session, pose, take): the same seed gives the same bytes,
in any order, on any number of workers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from depthdist.synthetic.raytracing.camera_output import expose_image, point_map
from depthdist.synthetic.raytracing.kernel_cache import use_fresh_kernels
from depthdist.synthetic.raytracing.tire_shape import ACROSS
from depthdist.synthetic.raytracing.tread_patterns import groove_kind
from depthdist.synthetic.tires.camera_faults import add_camera_faults
from depthdist.synthetic.tires.plan import Settings, plan_captures, random_stream
from depthdist.synthetic.tires.raycast import TIRE_HIT, CrateHits, CrateScene, raycast_crate
from depthdist.synthetic.tires.scene import build_scene
from depthdist.synthetic.tires.shading import shade_crate
from depthdist.synthetic.tires.view import BASELINE_MM, intrinsics

__all__ = ["Settings", "TireCapture", "render"]


class TireCapture(NamedTuple):
    """One rendered capture."""

    stem: str
    rgb: np.ndarray  # (H, W, 3) uint8
    xyz: np.ndarray  # (H, W, 3) float32 mm, camera frame, NaN where nothing was measured
    truth: dict[str, np.ndarray]  # see the module's docstring


def render(settings: Settings, index: int) -> TireCapture:
    """Render capture number `index` of the set that `settings` describe."""
    use_fresh_kernels()
    capture = plan_captures(settings)[index]
    k = intrinsics(settings.size)
    crate, appearance, session = build_scene(settings, capture)
    hits = raycast_crate(crate, k, *settings.size)
    color, echo = shade_crate(crate, hits, appearance, session, k)
    rng = random_stream(settings, 6, capture.pose, capture.take)
    rgb = expose_image(color, session.exposure, session.white, rng)
    if settings.faults:
        depth_mm = add_camera_faults(hits, echo, k, BASELINE_MM, rng)
    else:
        depth_mm = hits.z.astype(np.float32)
    return TireCapture(capture.stem, rgb, point_map(depth_mm, k), ground_truth(crate, hits, k))


def ground_truth(crate: CrateScene, hits: CrateHits, k: np.ndarray) -> dict[str, np.ndarray]:
    """Return the exact depth, tires and grooves of a capture; see the module's docstring."""
    return {
        "z": hits.z.astype(np.float32),
        "tire": np.where(hits.kind == TIRE_HIT, hits.item + 1, 0).astype(np.uint8),
        "groove": hits.groove,
        "painted": hits.painted,
        "K": k,
        **_table("groove", crate, hits.groove),
        **_table("painted", crate, hits.painted),
    }


def _table(name: str, crate: CrateScene, seen: np.ndarray) -> dict[str, np.ndarray]:
    """Return one row for each id other than 0 in the map `seen`: columns `name`_id, ..."""
    ids = np.unique(seen)
    ids = ids[ids > 0]
    rows = np.searchsorted(crate.grooves["line"], ids, side="right") - 1
    owner = np.searchsorted(crate.tires["painted_last"], rows, side="right") + 1
    groove = crate.grooves[rows]
    # across the tread a groove's width is stored at its foot: see `groove_rows`
    widening = np.where(
        groove["way"] == ACROSS, (groove["foot_mm"] + 30.0) / groove["foot_mm"], 1.0
    )
    depth_mm = groove["depth_mm"] if name == "groove" else np.zeros(len(groove))
    return {
        f"{name}_id": ids.astype(np.uint16),
        f"{name}_tire": owner.astype(np.uint8),
        f"{name}_depth_mm": depth_mm.astype(np.float32),
        f"{name}_width_mm": (2 * groove["half_mm"] * widening).astype(np.float32),
        f"{name}_kind": np.array([groove_kind(g) for g in groove], "U15"),
    }
