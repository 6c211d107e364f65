"""Render scenes to pretrain on: rooms with boxes, ellipsoids, cylinders and tires.

    settings = rooms.Settings(scenes=1000, size=Size(336, 546), seed=0)
    scene = rooms.render(settings, 17)  # scene.rgb (H, W, 3) uint8, scene.xyz (H, W, 3) float32 mm

`scene` draws what stands where, the lens and the lamp, `raycast` finds what each pixel sees,
`shading` makes the image. No scene contains a crate of tires: a model that is pretrained here has
never seen what `tools/make_tires.py` makes. Every draw depends only on (seed, scene): the same
bytes in any order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from depthdist.synthetic.raytracing.camera_output import expose_image, point_map
from depthdist.synthetic.raytracing.kernel_cache import use_fresh_kernels
from depthdist.synthetic.rooms.raycast import raycast_room
from depthdist.synthetic.rooms.scene import draw_scene
from depthdist.synthetic.rooms.settings import Settings, scene_stem
from depthdist.synthetic.rooms.shading import shade_room

__all__ = ["RoomCapture", "Settings", "render"]


class RoomCapture(NamedTuple):
    """One rendered scene."""

    stem: str
    rgb: np.ndarray  # (H, W, 3) uint8
    xyz: np.ndarray  # (H, W, 3) float32 mm, camera frame: exact, no holes
    groove: np.ndarray  # (H, W) uint16: the groove seen, 0 for none


def render(settings: Settings, index: int) -> RoomCapture:
    """Render scene number `index` of the set that `settings` describe."""
    use_fresh_kernels()
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((7, settings.seed, index))))
    scene, appearance, k = draw_scene(rng, settings.size)
    hits = raycast_room(scene, k, *settings.size)
    color = shade_room(scene, hits, appearance)
    brightness = float(np.quantile(color.mean(-1), rng.uniform(0.5, 0.9))) + 1e-4
    exposure = rng.uniform(0.15, 0.6) / brightness
    white = tuple(1.0 + rng.normal(0, 0.06, 3))
    rgb = expose_image(color, exposure, white, rng)
    xyz = point_map(hits.z.astype(np.float32), k)
    return RoomCapture(scene_stem(settings, index), rgb, xyz, hits.groove)
