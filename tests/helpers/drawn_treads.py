"""Treads drawn by formula: cylinders with grooves of known depth, as maps and as captures with
their truth."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from depthdist.geometry.camera import pinhole, pixel_rays

SIZE = (240, 320)
FOCAL, MIDDLE = 800.0, (120.0, 160.0)
RAYS = pixel_rays(pinhole(SIZE, FOCAL, FOCAL, MIDDLE[1], MIDDLE[0]), SIZE)
WHOLE = np.ones(SIZE, bool)
DEPTHS = (8.0, 1.5, 4.0)
COLUMNS = (60, 150, 240)  # where the grooves begin, 12 pixels wide
RADIUS_MM = 300.0


def tread_labels():
    """The label (H, W) uint16 of three grooves: 1, 2, 3."""
    labels = np.zeros(SIZE, np.uint16)
    for i, column in enumerate(COLUMNS, start=1):
        labels[:, column : column + 12] = i
    return labels


def cylinder(depths=DEPTHS, radius=RADIUS_MM, noise=0.0):
    """A tire's tread seen from above, three grooves round it, floors parallel to the tread: depth
    (H, W) mm, and labels."""
    labels = tread_labels()
    below = np.concatenate([[0.0], depths])[labels]
    # a ray (x, y, 1) t meets y^2 t^2 + (t - c)^2 = (radius - below)^2, the axis along X at Z = c
    c, r, y = 1000.0 + radius, radius - below, RAYS[..., 1]
    z = (c - np.sqrt(c**2 - (1 + y**2) * (c**2 - r**2))) / (1 + y**2)
    return z + noise * np.random.default_rng(0).normal(size=SIZE), labels


def write_tread(folder: Path, stem: str, depths=DEPTHS, painted=(), noise=0.1) -> None:
    """Write a capture of a drawn tread as depthdist.synthetic does.

    painted  numbers of the grooves that have depth 0 and are painted on; without any the truth has
             no `painted`, as that of captures of before there were such treads
    noise    of the camera's depth, mm; it also has a hole
    """
    real = [0.0 if i in painted else depth for i, depth in enumerate(depths, start=1)]
    z, labels = cylinder(real)
    is_painted = np.isin(labels, painted)
    camera = z + noise * np.random.default_rng(1).normal(size=SIZE)
    camera[10:20, 10:20] = math.nan
    truth = {"z": z.astype(np.float32), "groove": np.where(is_painted, 0, labels)}
    truth["K"] = np.array([[FOCAL, 0, MIDDLE[1]], [0, FOCAL, MIDDLE[0]], [0, 0, 1]])
    if painted:
        truth["painted"] = np.where(is_painted, labels, 0).astype(np.uint16)
    for name in ("images", "depth", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    grey = (60 - 3 * np.concatenate([[0.0], depths])[labels]).astype(np.uint8)  # dark where deep
    Image.fromarray(np.dstack([grey] * 3)).save(folder / f"images/{stem}_color.png")
    Image.fromarray(truth["groove"]).save(folder / f"images/{stem}_grooves.png")
    xyz = np.concatenate([RAYS * camera[..., None], camera[..., None]], axis=-1)
    np.save(folder / f"depth/{stem}_rawDepth.npy", xyz.astype(np.float32))
    np.savez(folder / f"truth/{stem}_truth.npz", **truth)


def write_treads(folder: Path, groove_depth=1.0, seed=0) -> Path:
    """Write two captures of drawn treads, the third groove of the second painted on.

    groove_depth  scales all depths, as --groove-depth does
    """
    for stem, depths, painted in (("a", DEPTHS, ()), ("b", (6.0, 3.0, 5.0), (3,))):
        write_tread(folder, stem, [groove_depth * depth for depth in depths], painted)
    settings = {"pairs": 2, "seed": seed, "groove_depth": groove_depth}
    (folder / "tires.json").write_text(json.dumps({"settings": settings}))
    return folder
