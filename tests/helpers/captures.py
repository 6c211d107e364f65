"""Small raw captures: a tilted plane with holes, seen through a known pinhole; shards of them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from depthdist.core.settings import Size
from depthdist.shards.build import build_shards
from depthdist.shards.settings import ShardSettings

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
HOSTILE = SHARED / "hostile"
SHARD = [sys.executable, str(ROOT / "tools" / "shard.py")]
SMALL = {"size": Size(28, 42), "workers": 1}


def capture(seed: int = 0, size: tuple[int, int] = (30, 40)) -> tuple[np.ndarray, np.ndarray]:
    """Return rgb (H, W, 3) uint8 and xyz (H, W, 3) float32 mm, about 1000 mm away, some holes.

    The pinhole is fx 50, fy 60, cx 21, cy 14.
    """
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    row, column = np.mgrid[: size[0], : size[1]] + 0.5
    z = 1000 + 3 * row + 2 * column + 10 * seed
    xyz = np.stack([(column - 21) / 50 * z, (row - 14) / 60 * z, z], axis=2).astype(np.float32)
    xyz[rng.random(size) < 0.1] = np.nan
    return rgb, xyz


def write_capture(
    rgb_path: Path, xyz_path: Path, seed: int = 0, size: tuple[int, int] = (30, 40)
) -> None:
    """Write `capture` to two files, and make their folders."""
    rgb, xyz = capture(seed, size)
    for path in (rgb_path, xyz_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(rgb_path)
    np.save(xyz_path, xyz)


def write_label(
    path: Path, size: tuple[int, int] = (30, 40), dtype: type = np.uint16
) -> np.ndarray:
    """Write a groove label with the groove 3, and return it."""
    label: np.ndarray = np.zeros(size, dtype)
    label[5:9, 10:30] = 3
    Image.fromarray(label).save(path)
    return label


def stem_of(i: int, minutes: int = 1) -> str:
    """Return the stem of capture `i`, taken `minutes` after the previous one."""
    return f"21-12-03-{10 + i * minutes // 60:02d}-{i * minutes % 60:02d}-00_Zivid_acquisition"


def write_raw(folder: Path, count: int = 6, minutes: int = 1) -> Path:
    """Write `count` captures in the two-folder layout, `minutes` apart, and return `folder`."""
    for i in range(count):
        stem = stem_of(i, minutes)
        write_capture(folder / f"images/{stem}_color.png", folder / f"depth/{stem}_rawDepth.npy", i)
    return folder


def make(raw: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """Write small shards of RAW to OUT and return their index."""
    index = build_shards(ShardSettings(raw=str(raw), out=str(out), **{**SMALL, **settings}))
    assert index is not None, "a single process writes the index"
    return index


def write_python_2_npy(path: Path, array: np.ndarray) -> None:
    """Write the array as NumPy did under Python 2: readable, with a warning."""
    shape = ", ".join(f"{side}L" for side in array.shape)
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': ({shape})}}"
    padded = header.encode().ljust(117) + b"\n"
    magic = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little")
    path.write_bytes(magic + padded + array.tobytes())
