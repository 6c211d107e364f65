"""Depth images: PNG of 16 bits, TIFF of 16 bits or of floats; also TIFF of three floats X, Y, Z.

Of integers 0 and the largest value are no value. The unit is not in the file.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
from PIL import Image

from depthdist.captures.formats.npy import as_map, map_size, shape_problem
from depthdist.captures.formats.stored_points import Array, PointFormat, StoredPoints
from depthdist.core.errors import BadFile, one_reason

TIFF_SUFFIXES = (".tif", ".tiff")
EXPECTED = "expected one channel of 16 bits, or a TIFF of floats"
PNG_HEADER = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def read_depth_image(path: Path, content: bytes) -> StoredPoints:
    """Return the depths of a PNG or TIFF, or the points of a TIFF, raise BadFile."""
    values = _read_tiff(path, content) if is_tiff(path) else _read_with_pillow(path, content)
    problem = shape_problem(values.shape, values.dtype)
    if problem:
        raise BadFile(path, f"{problem} in a depth image; {EXPECTED}")
    values = as_map(values)
    is_integer = values.dtype.kind in "iu"
    return StoredPoints(
        values,
        unit_mm=_unit_in_png(content),
        no_value=(np.iinfo(values.dtype).max,) if is_integer else (),
    )


def read_depth_image_size(path: Path) -> tuple[int, int]:
    """Return (H, W) from the header of a depth image; raise BadFile."""
    if is_tiff(path):
        return map_size(_tiff_shape(path, path))
    try:
        with Image.open(path) as image:
            _check_mode(path, image)
            return image.height, image.width
    except BadFile:
        raise
    except Exception as err:  # Pillow raises half a dozen kinds
        raise _unreadable(path, err) from err


def measures_depth(path: Path) -> Literal["integers", "floats"] | Literal[False] | None:
    """Return from a file's header what its depths are, False if it has none, None if unreadable."""
    try:
        with open(path, "rb") as file:
            start = file.read(26)
        if start.startswith(PNG_HEADER) and len(start) == 26:
            return "integers" if start[24:26] == b"\x10\x00" else False  # 16 bits, one channel
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                return "integers"
            return "floats" if image.mode == "F" else False
    except Exception:  # Pillow raises half a dozen kinds, and does not know three floats a pixel
        return None


def _unit_in_png(content: bytes) -> float | None:
    """Return the unit in mm that a PNG of `depthdist predict` has in its text, else None."""
    if not content.startswith(PNG_HEADER):
        return None
    try:
        with Image.open(BytesIO(content)) as image:
            unit_mm = float(image.info["unit_mm"])
    except Exception:  # no such text, or no number: nobody has said the unit
        return None
    return unit_mm if 0 < unit_mm < np.inf else None


def is_tiff(path: PurePath) -> bool:
    """Return whether a file is a TIFF by its name."""
    return path.suffix.lower() in TIFF_SUFFIXES


def _check_mode(path: Path, image: Image.Image) -> None:
    if image.mode != "F" and not image.mode.startswith("I"):
        raise BadFile(
            path,
            f"mode is {image.mode}, 8 bits a channel: a drawing of depth, no measurement;"
            f" {EXPECTED}",
        )


def _read_with_pillow(path: Path, content: bytes) -> Array:
    try:
        with Image.open(BytesIO(content)) as image:
            _check_mode(path, image)
            values = np.array(image)
    except BadFile:
        raise
    except Exception as err:  # Pillow raises OSError, SyntaxError, TypeError, struct.error, ...
        raise _unreadable(path, err) from err
    return (
        values.astype(np.uint16) if values.dtype == np.int32 and image.format == "PNG" else values
    )


def _read_tiff(path: Path, content: bytes) -> Array:
    """Return the first page of a TIFF, by tifffile or, where that needs more codecs, by Pillow."""
    import tifffile  # takes long

    _tiff_shape(path, content)
    try:
        with tifffile.TiffFile(BytesIO(content)) as file:
            return np.asarray(file.pages[0].asarray())
    except Exception as err:  # tifffile raises many kinds on damaged files
        if "imagecodecs" in str(err):  # LZW, as OpenCV writes it
            return _read_with_pillow(path, content)
        raise _unreadable(path, err) from err


def _tiff_shape(path: Path, source: Path | bytes) -> tuple[int, ...]:
    """Return the shape of the first page of a TIFF that may be depth or points; raise BadFile."""
    import tifffile

    try:
        opened = BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
        with opened, tifffile.TiffFile(opened) as file:
            page = file.pages[0]
            shape, dtype = tuple(int(side) for side in page.shape), page.dtype
    except Exception as err:  # tifffile raises many kinds on damaged files
        raise _unreadable(path, err) from err
    if dtype is None:
        raise BadFile(path, f"has numbers of an unknown kind; {EXPECTED}")
    problem = shape_problem(shape, dtype)
    if problem:
        raise BadFile(path, f"{problem} in a depth image; {EXPECTED}")
    height, width = map_size(shape)
    if Image.MAX_IMAGE_PIXELS and height * width > 2 * Image.MAX_IMAGE_PIXELS:
        raise BadFile(path, f"is {height}x{width}: more pixels than any camera has; {EXPECTED}")
    return shape


def _unreadable(path: Path, err: Exception) -> BadFile:
    text = getattr(err, "strerror", None) or one_reason(err).replace(repr(str(path)), "it")
    return BadFile(path, f"cannot be read as a depth image ({text}); {EXPECTED}")


DEPTH_IMAGE = PointFormat(
    "depth image",
    (".png", *TIFF_SUFFIXES),
    read_depth_image,
    read_depth_image_size,
    is_depth=lambda path: True,
)
