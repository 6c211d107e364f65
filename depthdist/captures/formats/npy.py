"""NumPy's `.npy`: (H, W, 3), (H, W, 4 or more), (3, H, W) or (H, W), of any float type.

Depth alone may be integers as well. Of four or more values a pixel the first three are X, Y, Z.
Nothing pickled is ever loaded.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from depthdist.captures.formats.stored_points import Array, PointFormat, StoredPoints
from depthdist.core.errors import BadFile, one_reason

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
MAX_VALUES = 16  # of a pixel: more is no pixel's
SHAPES = "(H, W, 3) X, Y, Z, with more values behind them, (3, H, W), or (H, W) Z"


class Header(NamedTuple):
    """The header of a `.npy` file."""

    shape: tuple[int, ...]
    fortran: bool  # column-major order
    dtype: np.dtype


def read_npy(path: Path, content: bytes) -> StoredPoints:
    """Return the array of a `.npy` file as (H, W, 3) or (H, W); raise BadFile."""
    file = BytesIO(content)
    header = _checked_header(path, file)
    count = int(np.prod(header.shape, dtype=object))
    flat = np.frombuffer(content, header.dtype, count, file.tell())
    return StoredPoints(as_map(flat.reshape(header.shape, order="F" if header.fortran else "C")))


def read_npy_size(path: Path) -> tuple[int, int]:
    """Return (H, W) from the header of a `.npy` file; raise BadFile."""
    try:
        with open(path, "rb") as file:
            return map_size(_checked_header(path, file).shape)
    except OSError as err:
        raise BadFile(path, f"cannot be read ({err.strerror})") from err


def is_npy_depth(path: Path) -> bool:
    """Return whether a `.npy` file holds one value a pixel, False where its header is damaged."""
    try:
        with open(path, "rb") as file:
            shape = _checked_header(path, file).shape
    except (OSError, BadFile):
        return False  # who reads the file says so
    return is_depth_shape(shape)


def is_depth_shape(shape: tuple[int, ...]) -> bool:
    """Return whether an array of a shape that `shape_problem` accepts holds one value a pixel."""
    return len(shape) == 2 or shape[2] == 1


def map_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (H, W) of an array whose shape `shape_problem` accepts."""
    height, width = shape[1:] if _is_planar(shape) else shape[:2]
    return height, width


def as_map(array: Array) -> Array:
    """Return an array whose shape `shape_problem` accepts as (H, W, 3) or (H, W)."""
    if _is_planar(array.shape):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        return array[:, :, 0]
    return array[:, :, :3] if array.ndim == 3 else array


def shape_problem(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Return why an array is no map of points or depth, None if it may be one."""
    if dtype.hasobject:
        return "holds pickled Python objects, which are never loaded; expected numbers"
    if len(shape) not in (2, 3) or 0 in shape or not (_values_per_pixel(shape) or len(shape) == 2):
        return f"shape is {shape}; expected {SHAPES}"
    points = len(shape) == 3 and shape[2] != 1
    if not (dtype.kind == "f" or (dtype.kind in "iu" and dtype.itemsize > 1 and not points)):
        return f"dtype is {dtype}; expected floats{'' if points else ', or integers of 16 bits'}"
    return None


def _is_planar(shape: tuple[int, ...]) -> bool:
    """Return whether a shape is (3, H, W) and cannot be (H, W, values)."""
    return len(shape) == 3 and shape[0] == 3 and shape[2] > MAX_VALUES


def _values_per_pixel(shape: tuple[int, ...]) -> int:
    """Return the values of a pixel in a shape of three numbers, 0 where it is no map."""
    if len(shape) != 3:
        return 0
    values = 3 if _is_planar(shape) else shape[2]
    return values if values == 1 or 3 <= values <= MAX_VALUES else 0


def _checked_header(path: Path, file: IO[bytes]) -> Header:
    """Read the header of a map and leave `file` where the numbers start; raise BadFile."""
    try:
        header = read_npy_header(path, file)
    except BadFile:
        raise
    except (OSError, ValueError, MemoryError) as err:
        reason = getattr(err, "strerror", None) or one_reason(err)
        raise BadFile(path, f"not a .npy file that can be read ({reason})") from err
    problem = shape_problem(header.shape, header.dtype)
    if problem:
        raise BadFile(path, problem)
    start = file.tell()
    num_bytes = file.seek(0, os.SEEK_END)
    expected = start + int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    if num_bytes < expected:
        raise BadFile(
            path,
            f"truncated: {num_bytes:,} bytes; expected {expected:,} for {header.shape}"
            f" {header.dtype}",
        )
    file.seek(start)
    return header


def read_npy_header(path: Path, file: IO[bytes]) -> Header:
    """Read the header of a `.npy` file and leave `file` where the numbers start; raise BadFile."""
    magic = file.read(6)
    file.seek(0)
    if magic[:4] == b"PK\x03\x04":
        raise BadFile(path, "is an .npz archive; rename it to .npz")
    if magic != np.lib.format.MAGIC_PREFIX:
        raise BadFile(path, f"starts with {magic!r}; expected a .npy file")
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise BadFile(path, f".npy format {version}; expected 1.0 or 2.0")
    try:
        return Header(*HEADERS[version](file))
    except Exception as err:  # NumPy raises TokenError, RecursionError ... on what is no header
        raise BadFile(path, f"not a .npy file that can be read ({one_reason(err)})") from err


NPY = PointFormat("NumPy array", (".npy",), read_npy, read_npy_size, is_depth=is_npy_depth)
