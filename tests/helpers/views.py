"""Captures that are right, of every kind there is, and ways to make one wrong."""

import json
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from depthdist.core.settings import Size
from depthdist.synthetic.rooms import render as render_rooms
from depthdist.synthetic.tires import render as render_tires
from helpers.captures import SHARED

REAL = SHARED / "data/_compact"


class View(NamedTuple):
    """One capture: image (Pillow's) and xyz (H, W, 3) float32 mm."""

    name: str
    image: Image.Image
    xyz: np.ndarray


def boxes(seed: int = 0, size: tuple[int, int] = (120, 160)) -> View:
    """Boxes before a slanted plane 1.5 m away, with noise and 5 % holes; the image shows depth."""
    random = np.random.default_rng(seed)
    height, width = size
    row, column = np.mgrid[:height, :width] + 0.5
    x, y = (column - width / 2) / (1.1 * width), (row - height / 2) / (1.1 * width)
    z = 1500 / (1 - 0.3 * y - 0.15 * x)
    for _ in range(3):
        top, left = random.integers(10, height - 30), random.integers(10, width - 30)
        side = random.integers(15, 28)
        z[top : top + side, left : left + side] = random.uniform(900, 1300)
    shade = np.clip((z - 800) / 900, 0, 1)[..., None] * [200, 150, 90]
    rgb = (shade + random.normal(0, 6, (height, width, 3)) + 30).clip(0, 255).astype(np.uint8)
    z = z + random.normal(0, 0.5, z.shape)
    z[random.random(z.shape) < 0.05] = np.nan
    xyz = np.stack([x * z, y * z, z], axis=2).astype(np.float32)
    return View(f"boxes-{seed}", Image.fromarray(rgb), xyz)


@cache
def built_in() -> list[View]:
    """Captures of tires with all faults of a camera, and rooms through their lenses."""
    settings = render_tires.Settings(pairs=8, size=Size(300, 486), seed=3)
    crates = [render_tires.render(settings, index) for index in range(6)]
    rooms_settings = render_rooms.Settings(scenes=8, size=Size(168, 273), seed=1)
    scenes = [render_rooms.render(rooms_settings, index) for index in range(6)]
    return [View(one.stem, Image.fromarray(one.rgb), one.xyz) for one in (*crates, *scenes)]


@cache
def real() -> list[View]:
    """The real captures of five sensors; call it only where REAL is a folder."""
    found = []
    for folder in sorted(REAL.iterdir()):
        facts = json.loads((folder / "meta.json").read_text())
        for name, (fx, fy, cx, cy) in sorted(facts["K_fx_fy_cx_cy"].items()):
            steps = np.asarray(Image.open(folder / f"{name}.z.png")).astype(np.float64)
            z = np.where(steps > 0, steps * facts["z_unit_mm"], np.nan)
            row, column = np.mgrid[: z.shape[0], : z.shape[1]]
            xyz = np.stack([(column - cx) / fx * z, (row - cy) / fy * z, z], axis=2)
            image = Image.open(folder / f"{name}.webp").convert("RGB")
            found.append(View(f"{folder.name}/{name}", image, xyz.astype(np.float32)))
    return found


def sparse(xyz: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Return the map with only a share of its pixels measured."""
    kept = np.random.default_rng(0).random(xyz.shape[:2]) < share
    return np.where(kept[..., None], xyz, np.nan).astype(np.float32)


def rotation(axis: int, degrees: float) -> np.ndarray:
    """Return (3, 3): a turn around an axis."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[[first, second], [first, second]] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix
