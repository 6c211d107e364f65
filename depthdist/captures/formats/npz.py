"""NumPy's `.npz`: points or depth, colors and SNR by their common names; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, TypeVar
from zipfile import ZipFile

import numpy as np

from depthdist.captures.formats.named_arrays import (
    POINT_NAMES,
    NamedArray,
    NamedArrays,
    find_name,
    hold_depth_alone,
    read_named_arrays,
    read_named_size,
)
from depthdist.captures.formats.npy import read_npy_header
from depthdist.captures.formats.stored_points import PointFormat, StoredPoints
from depthdist.core.errors import BadFile, one_reason

Answer = TypeVar("Answer")


def read_npz(path: Path, content: bytes) -> StoredPoints:
    """Return the points, colors and SNR of a `.npz` file; raise BadFile."""
    return _answer(path, BytesIO(content), read_named_arrays)


def read_npz_size(path: Path) -> tuple[int, int]:
    """Return (H, W) from the headers in a `.npz` file; raise BadFile."""
    return _answer(path, path, read_named_size)


def is_npz_depth(path: Path) -> bool:
    """Return whether a `.npz` file holds one value a pixel, False where it is damaged."""
    try:
        return _answer(path, path, hold_depth_alone)
    except BadFile:
        return False  # who reads the file says so


def may_hold_points(path: Path) -> bool:
    """Return whether an archive has an array by a name of points; True where it cannot be read."""
    try:
        with ZipFile(path) as archive:
            names = [name[:-4] for name in archive.namelist()]
    except Exception:  # zipfile raises BadZipFile, OSError ...: its reader says what is wrong
        return True
    return find_name(names, POINT_NAMES) is not None


def _answer(
    path: Path, file: Path | IO[bytes], ask: Callable[[Path, NamedArrays], Answer]
) -> Answer:
    """Return what `ask` makes of the arrays of an archive; raise BadFile."""
    try:
        with ZipFile(file) as archive:
            names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
            arrays = NamedArrays(names, lambda name: _open_array(path, archive, name))
            return ask(path, arrays)
    except BadFile:
        raise
    except Exception as err:  # zipfile raises BadZipFile, zlib.error, RuntimeError, EOFError ...
        reason = getattr(err, "strerror", None) or one_reason(err)
        raise BadFile(path, f"not a .npz file that can be read ({reason})") from err


def _open_array(path: Path, archive: ZipFile, name: str) -> NamedArray:
    """Return an array of the archive by its header; raise BadFile where it is no array."""
    member = f"{name}.npy"
    with archive.open(member) as file:
        header = read_npy_header(path, file)
        start = file.tell()
    if header.dtype.hasobject:
        raise BadFile(path, f"{name} holds pickled Python objects, which are never loaded")
    expected = start + int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    stored = archive.getinfo(member).file_size
    if stored < expected:
        raise BadFile(path, f"{name} is truncated: {stored:,} bytes; expected {expected:,}")

    def load() -> np.ndarray:
        content = archive.read(member)
        flat = np.frombuffer(content, header.dtype, int(np.prod(header.shape)), start)
        return flat.reshape(header.shape, order="F" if header.fortran else "C")

    return NamedArray(header.shape, header.dtype, load)


NPZ = PointFormat(
    "NumPy archive",
    (".npz",),
    read_npz,
    read_npz_size,
    has_rgb=True,
    is_depth=is_npz_depth,
    may_hold_points=may_hold_points,
)
