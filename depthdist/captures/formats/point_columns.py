"""Points whose values have names: the columns of a `.ply` or `.pcd` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from depthdist.captures.formats.stored_points import SNR_NAMES, Array, StoredPoints, as_rgb
from depthdist.core.errors import BadFile

COLOR_NAMES = (
    ("red", "green", "blue"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
    ("r", "g", "b"),
)
PACKED_NAMES = ("rgb", "rgba")  # one number of 32 bits, 0xAARRGGBB


def arrange_columns(
    path: Path, columns: Mapping[str, Array], size: tuple[int, int]
) -> StoredPoints:
    """Return columns (H * W,) as points, colors and SNR of a grid.

    columns  by name; x, y and z are needed
    size     (H, W)

    raises BadFile where columns are missing or hold something else
    """
    by_name = {name.lower(): column for name, column in columns.items()}
    missing = [name for name in "xyz" if name not in by_name]
    if missing:
        raise BadFile(path, f"has no {', '.join(missing)}, but {', '.join(columns) or 'nothing'}")
    snr = next((name for name in SNR_NAMES if name in by_name), None)
    for name in ("x", "y", "z", *([snr] if snr else [])):
        if by_name[name].ndim != 1 or by_name[name].dtype.kind not in "fiu":
            raise BadFile(path, f"{name} is {by_name[name].dtype}; expected one number a point")
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 becomes inf: no value
        return StoredPoints(
            values=_interleave(by_name, ("x", "y", "z"), np.dtype(np.float32)).reshape(*size, 3),
            rgb=_find_colors(path, by_name, size),
            snr=by_name[snr].astype(np.float32).reshape(size) if snr else None,
        )


def _interleave(columns: Mapping[str, Array], names: tuple[str, ...], dtype: np.dtype) -> Array:
    """Return some columns as (N, names)."""
    found = np.empty((len(columns[names[0]]), len(names)), dtype)
    for number, name in enumerate(names):
        found[:, number] = columns[name]
    return found


def _find_colors(path: Path, columns: Mapping[str, Array], size: tuple[int, int]) -> Array | None:
    """Return the colors as (H, W, 3) uint8, None where there are none."""
    for names in COLOR_NAMES:
        if all(name in columns for name in names):
            dtype = columns[names[0]].dtype
            return as_rgb(path, _interleave(columns, names, dtype).reshape(*size, 3))
    packed = next((columns[name] for name in PACKED_NAMES if name in columns), None)
    if packed is None or packed.dtype.itemsize != 4:
        return None
    native = np.ascontiguousarray(packed).astype(packed.dtype.newbyteorder("="), copy=False)
    bits = native.view(np.uint32)
    if native.dtype.kind == "f" and np.any((native >= 1) & (native < 2**24)):
        bits = np.nan_to_num(native).clip(0, 2**32 - 1).astype(np.uint32)  # the number, as text
    parts = bits.astype("<u4", copy=False).view(np.uint8).reshape(*size, 4)  # blue, green, red, -
    return parts[:, :, 2::-1]
