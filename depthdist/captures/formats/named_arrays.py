"""Points, colors and SNR among the named arrays of one file: `.npz`, `.zdf`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from depthdist.captures.formats.npy import as_map, is_depth_shape, map_size, shape_problem
from depthdist.captures.formats.stored_points import (
    MAX_PIXELS,
    SNR_NAMES,
    Array,
    StoredPoints,
    as_rgb,
)
from depthdist.core.errors import BadFile

# the first that is there is read; of a path, the last part counts
POINT_NAMES = (
    "pointcloud", "point_cloud", "points", "xyz", "points_mm", "xyz_mm", "cloud", "pts", "xyzrgb",
    "depth", "depth_mm", "z", "arr_0",
)  # fmt: skip
COLOR_NAMES = (
    "rgba_image", "rgb_image", "color_image", "rgb", "rgba", "image", "img", "color", "colors",
    "colour", "colours",
)  # fmt: skip
MAX_BYTES = 32  # of a pixel: four float64


class NamedArray(NamedTuple):
    """An array of a file that is not loaded yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], Array]


class NamedArrays(NamedTuple):
    """The arrays of a file: their names, and what opens one of them."""

    names: Sequence[str]
    open: Callable[[str], NamedArray]


def read_named_arrays(path: Path, arrays: NamedArrays) -> StoredPoints:
    """Return points or depth, colors and SNR, where there are; raise BadFile."""
    values = as_map(_open_points(path, arrays).load())
    color_name = find_name(arrays.names, COLOR_NAMES)
    rgb = None
    if color_name:
        rgb = as_rgb(path, _open_array(path, arrays, color_name).load())
    snr_name = find_name(arrays.names, SNR_NAMES)
    snr = None
    if snr_name:
        found = _open_array(path, arrays, snr_name)
        size = values.shape[:2]
        if found.shape not in (size, (*size, 1)) or found.dtype.kind not in "fiu":
            raise BadFile(
                path,
                f"{snr_name} is {found.dtype} of shape {found.shape}; expected a number for each"
                f" of {size[0]}x{size[1]} points",
            )
        snr = found.load().astype(np.float32).reshape(size)
    return StoredPoints(values, rgb, snr)


def read_named_size(path: Path, arrays: NamedArrays) -> tuple[int, int]:
    """Return (H, W) of the points or the depth; raise BadFile."""
    return map_size(_open_points(path, arrays).shape)


def hold_depth_alone(path: Path, arrays: NamedArrays) -> bool:
    """Return whether the points are depth without X and Y; raise BadFile."""
    return is_depth_shape(_open_points(path, arrays).shape)


def _open_points(path: Path, arrays: NamedArrays) -> NamedArray:
    """Return the array of points or depth; raise BadFile where there is none, or no such shape."""
    name = find_name(arrays.names, POINT_NAMES)
    if name is None:
        found = ", ".join(arrays.names) or "no array"
        raise BadFile(path, f"holds {found}; expected points as one of {', '.join(POINT_NAMES)}")
    array = _open_array(path, arrays, name)
    problem = shape_problem(array.shape, array.dtype)
    if problem:
        raise BadFile(path, f"{name}: {problem}")
    return array


def _open_array(path: Path, arrays: NamedArrays, name: str) -> NamedArray:
    """Return an array; raise BadFile where it is larger than any camera's."""
    array = arrays.open(name)
    if np.prod(array.shape, dtype=object) * array.dtype.itemsize > MAX_PIXELS * MAX_BYTES:
        raise BadFile(
            path,
            f"{name} is {array.dtype} of shape {array.shape}; expected {MAX_PIXELS:,} pixels at"
            " most",
        )
    return array


def find_name(names: Sequence[str], spellings: Sequence[str]) -> str | None:
    """Return the name whose last part is the first of the spellings that is there."""
    by_spelling = {name.rpartition("/")[2].lower(): name for name in reversed(names)}
    return next((by_spelling[text] for text in spellings if text in by_spelling), None)
