"""Built-in scenes to pretrain on: rooms, tables, boxes, balls, cylinders and tires, any lens, lamp
and pattern.

    settings = rooms.Settings(scenes=1000, size=(336, 546), seed=0)
    scene = rooms.render(settings, 17)  # scene.rgb (H, W, 3) uint8, scene.xyz (H, W, 3) float32 mm

`draw` says what stands where, `shapes` what each pixel sees, `look` the picture. No crate of tires
is among them: a model that learned here has never seen what `make_tires.py` makes. Every draw comes
from (seed, scene): the same bytes in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from depthdist.synthetic.rooms import raycast as shapes
from depthdist.synthetic.rooms import scene as draw
from depthdist.synthetic.rooms import shading as look
from depthdist.synthetic.tires import shading as shade
from depthdist.synthetic.tires.render import points

__all__ = ["Scene", "Settings", "render"]


@dataclass(frozen=True)
class Settings:
    """Scenes"""

    scenes: int = 100
    "How many scenes to make."
    size: tuple[int, int] = (336, 546)
    "Height and width of the pictures, pixels."
    seed: int = 0
    "The same seed gives the same bytes."

    def problems(self) -> list[str]:
        """What is wrong with the values, one sentence each."""
        found = [] if self.scenes >= 1 else [f"--scenes is {self.scenes}; at least 1 is needed"]
        if not all(16 <= n <= 8192 for n in self.size):
            found.append(f"--size is {self.size[0]}x{self.size[1]}; both must be 16 to 8192 pixels")
        return found if self.seed >= 0 else [*found, f"--seed is {self.seed}; it must be 0 or more"]


class Scene(NamedTuple):
    """One rendered scene."""

    stem: str
    rgb: np.ndarray  # (H, W, 3) uint8
    xyz: np.ndarray  # (H, W, 3) float32 mm, camera frame: exact, no holes
    groove: np.ndarray  # (H, W) uint16: the groove seen, 0 for none


def stem(settings: Settings, index: int) -> str:
    """The file name of scene number `index`."""
    return f"room-{settings.seed}-{index:06d}"


def render(settings: Settings, index: int) -> Scene:
    """Scene number `index` of the set that `settings` describe."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((7, settings.seed, index))))
    world, looks, k = draw.scene(rng, settings.size)
    hits = shapes.cast(world, k, *settings.size)
    color = look.paint(world, hits, looks)
    bright = float(np.quantile(color.mean(-1), rng.uniform(0.5, 0.9))) + 1e-4
    rgb = shade.expose_image(
        color, rng.uniform(0.15, 0.6) / bright, tuple(1.0 + rng.normal(0, 0.06, 3)), rng
    )
    return Scene(stem(settings, index), rgb, points(hits.z.astype(np.float32), k), hits.groove)
