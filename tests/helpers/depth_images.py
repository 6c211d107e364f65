"""Depth images of the captures in helpers.captures, and folders of them as others lay them out."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from helpers.captures import capture


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(capture(seed)[0]).save(path)


def write_depth(path: Path, seed: int = 0, unit_mm: float = 1.0) -> None:
    """Write depth in values of unit_mm; 16-bit PNG or TIFF, float TIFF (.tiff), or npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    z = capture(seed)[1][:, :, 2] / unit_mm
    levels = np.nan_to_num(z).round().astype(np.uint16)
    if path.suffix == ".png" or path.suffix == ".tif":
        Image.fromarray(levels).save(path)
    elif path.suffix == ".tiff":
        tifffile.imwrite(path, z.astype(np.float32))
    else:
        np.save(path, z.astype(np.float32))


def write_pair(root: Path, rgb: str, depth: str, seed: int = 0, unit_mm: float = 1.0) -> None:
    write_image(root / rgb, seed)
    write_depth(root / depth, seed, unit_mm)


def write_ultralytics(root: Path, train: int = 4, val: int = 2, scale: float = 4000) -> Path:
    """Write a depth folder as ultralytics has it, with depth_scale units to the metre."""
    for i in range(train + val):
        name = f"{'train' if i < train else 'val'}/{i:03d}"
        write_pair(root, f"images/{name}.jpg", f"depth/{name}.png", i, 1000 / scale)
    (root / "tires.yaml").write_text(
        "path: ../datasets/tires  # dataset root\ntrain: images/train\nval: images/val\ntest:\n"
        f"depth_scale: {scale:g}\nnc: 1\nnames: {{0: depth}}\n"
    )
    return root
