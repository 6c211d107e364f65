"""Read an image, a point map or a groove label from a user's file.

    capture = read_capture(pair)  # .image: Pillow's in RGB; .xyz: (H, W, 3) float32 mm
    label = read_label(path, size)  # (H, W) uint16: which groove is seen where

A file that cannot be read correctly raises `BadFile`: one line that starts with its path.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from depthdist.captures.layouts import CapturePair
from depthdist.captures.missing_values import count_missing, mask_constants, missing_constants
from depthdist.core.errors import BadFile, one_line
from depthdist.geometry.camera_view import find_view_problem

ORIENTATION = 0x0112  # the EXIF tag
TURNED = range(2, 9)  # its values for an image that is not upright
METRES_BELOW_MM = 20.0  # no structured-light camera measures at 20 mm, none at 20 m
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


# ------------------------------------------------------------------------------------------- images


def read_rgb(path: Path | str, upright: bool = False) -> np.ndarray:
    """Return the image as (H, W, 3) uint8 RGB; see `open_rgb`."""
    return np.array(open_rgb(path, upright))


def open_rgb(path: Path | str, upright: bool = False, content: bytes | None = None) -> Image.Image:
    """Return the image in RGB, 8 bits a channel, whatever its format.

    upright  rotate the image as its EXIF orientation says. Without it such an image raises BadFile:
             a point map has no such tag, so the two grids could disagree
    content  the file's bytes, if already read

    16 bits become 8 by dropping the low byte, alpha is dropped, CMYK, palettes and grey are
    converted, and only the first of several frames is used. Raise BadFile: cannot be decoded,
    truncated, rotated, 32 bits a channel, more pixels than Pillow's decompression-bomb limit.
    """
    path = Path(path)
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            # before load(), in which Pillow rotates a TIFF and drops the tag
            orientation = image.getexif().get(ORIENTATION, 1)
            if orientation in TURNED and not upright:
                raise BadFile(
                    path,
                    f"EXIF orientation is {orientation}; expected 1 (the picture must lie as the"
                    " camera's grid does)",
                )
            image.load()
            return _as_rgb(path, ImageOps.exif_transpose(image) if upright else image)
    except BadFile:
        raise
    except Exception as err:  # Pillow raises OSError, SyntaxError, TypeError, struct.error, ...
        text = str(err).replace(repr(str(path)), "it")
        reason = getattr(err, "strerror", None) or text or type(err).__name__
        raise BadFile(
            path, f"cannot be read as a picture ({reason}); expected a whole PNG, JPEG or TIFF"
        ) from err


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of a readable image: 2 to 8, or 0 where it is upright."""
    with Image.open(path) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
    return orientation if orientation in TURNED else 0


def _as_rgb(path: Path, image: Image.Image) -> Image.Image:
    """Return a decoded image in RGB."""
    grey_16_bit = image.mode == "I" and image.format in ("PNG", "PPM")
    if grey_16_bit or image.mode.startswith("I;16"):
        return _grey_as_rgb(path, np.asarray(image).astype(np.int64))
    if image.mode in ("I", "F"):
        raise BadFile(
            path, f"32 bits a channel (mode {image.mode}); expected a picture of 8 or 16 bits"
        )
    if image.mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_as_rgb(path: Path, grey: np.ndarray) -> Image.Image:
    """Return grey values of 16 bits, (H, W) int64, as an RGB image."""
    if 0 < grey.max() < 256:  # dropping the low byte would leave a black image
        raise BadFile(
            path,
            f"16 bits a pixel, but the highest value is {grey.max()}; expected values up to 65535",
        )
    return Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")


# --------------------------------------------------------------------------------------- point maps


class _Header(NamedTuple):
    """The header of a point map's .npy file."""

    size: tuple[int, int]  # (H, W)
    fortran: bool  # column-major order
    dtype: np.dtype


class PointMap(NamedTuple):
    """A point map as it was read.

    xyz       (H, W, 3) float32 mm, NaN (or Z 0) where nothing was measured
    no_value  how many pixels have each spelling of "no value": "NaN", "0", "-1", "65535" ...
    """

    xyz: np.ndarray
    no_value: dict[str, int]


def read_xyz(path: Path | str, content: bytes | None = None) -> np.ndarray:
    """Return the point map as (H, W, 3) float32 mm; see `read_point_map`."""
    return read_point_map(path, content).xyz


def read_point_map(path: Path | str, content: bytes | None = None) -> PointMap:
    """Return the point map: X, Y, Z in mm, +Z away from the lens.

    NaN (or Z 0) where nothing was measured, whatever the file has there.

    content  the file's bytes, if already read; the array may then be read-only

    Raise BadFile: not a .npy, pickled, truncated, another shape or dtype, no valid pixel, Z
    negative, looks like metres.
    """
    path = Path(path)
    try:
        with open(path, "rb") if content is None else BytesIO(content) as file:
            size, fortran, dtype = _read_header(path, file)
            count = size[0] * size[1] * 3
            if content is None:
                flat = np.fromfile(file, dtype, count)
            else:
                flat = np.frombuffer(content, dtype, count, file.tell())
    except BadFile:
        raise
    except (OSError, ValueError, MemoryError) as err:
        reason = getattr(err, "strerror", None) or one_line(err)
        raise BadFile(path, f"not a .npy file that can be read ({reason})") from err
    xyz = flat.reshape((*size, 3), order="F" if fortran else "C")
    with np.errstate(over="ignore", invalid="ignore"):
        # a float64 beyond float32 becomes inf, which is not a valid pixel
        xyz = np.ascontiguousarray(xyz, np.float32)
        z = np.ascontiguousarray(xyz[:, :, 2])
        no_value = count_missing(z)
        constants = missing_constants(xyz)
        if constants:
            xyz = xyz.copy()
            no_value |= mask_constants(xyz, constants)
            z = np.ascontiguousarray(xyz[:, :, 2])
        _check_depth(path, z, xyz, no_value)
    return PointMap(xyz, no_value)


def _read_header(path: Path, file: BinaryIO) -> _Header:
    """Read the header of a .npy file and leave `file` where the numbers start."""
    magic = file.read(6)
    file.seek(0)
    if magic[:4] == b"PK\x03\x04":
        raise BadFile(path, "is an .npz archive; expected one array in a .npy file")
    if magic != np.lib.format.MAGIC_PREFIX:
        raise BadFile(path, f"starts with {magic!r}; expected a .npy file")
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise BadFile(path, f".npy format {version}; expected 1.0 or 2.0")
    try:
        shape, fortran, dtype = HEADERS[version](file)
    except Exception as err:  # NumPy raises TokenError, RecursionError ... on what is no header
        raise BadFile(path, f"not a .npy file that can be read ({one_line(err)})") from err
    if dtype.hasobject:
        raise BadFile(
            path,
            "holds pickled Python objects, which are never loaded; expected float32 or float64",
        )
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise BadFile(path, f"shape is {shape}; expected (H, W, 3): X, Y, Z in mm")
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise BadFile(path, f"dtype is {dtype}; expected float32 or float64, in mm")
    start = file.tell()
    num_bytes = file.seek(0, os.SEEK_END)
    expected = start + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if num_bytes < expected:
        raise BadFile(
            path, f"truncated: {num_bytes:,} bytes; expected {expected:,} for {shape} {dtype}"
        )
    file.seek(start)
    return _Header(shape[:2], fortran, dtype)


def _check_depth(path: Path, z: np.ndarray, xyz: np.ndarray, no_value: dict[str, int]) -> None:
    """Raise BadFile unless Z has valid pixels, is positive, and is in mm."""
    negative = np.count_nonzero((z < 0) & (z > -np.inf))
    valid = np.count_nonzero((z > 0) & (z < np.inf))
    if negative > valid:
        problem = find_view_problem(xyz)
        hint = f" ({problem.text})" if problem else ""
        raise BadFile(
            path,
            f"Z is negative in {negative:,} of {negative + valid:,} measured pixels; expected +Z"
            f" away from the lens{hint}",
        )
    if not valid:
        size = f"{z.shape[0]}x{z.shape[1]}"
        raise BadFile(
            path,
            f"no valid pixel: Z is {' or '.join(no_value) or 'negative'} in all of {size};"
            " expected Z in mm",
        )
    median = _median_depth(z)
    if median and median < METRES_BELOW_MM:
        raise BadFile(
            path, f"looks like metres: the median Z is {median:.4g}; expected millimetres"
        )


def _median_depth(z: np.ndarray) -> float | None:
    """Return the median of a grid of z (H, W), enough to tell units; None without valid pixels."""
    stride = max(1, min(z.shape) // 100)
    some = z[::stride, ::stride]
    some = some[(some > 0) & (some < np.inf)]
    return float(np.median(some)) if some.size else None


# ----------------------------------------------------------------------------- groove labels, pairs


def read_label(path: Path, size: tuple[int, int], content: bytes | None = None) -> np.ndarray:
    """Return the groove label as (H, W) uint16: 0 no groove, else the number of the groove seen.

    size     (H, W) of the capture
    content  the file's bytes, if already read

    Raise BadFile: not a grey image of 8 or 16 bits (a palette's indices are the numbers), or not of
    the capture's size.
    """
    try:
        with Image.open(path if content is None else BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise BadFile(
                    path,
                    f"mode is {image.mode}; expected a grey PNG of 8 or 16 bits: 0 no groove, else"
                    " its number",
                )
            label = np.asarray(image)
    except BadFile:
        raise
    except Exception as err:  # Pillow raises much besides OSError
        raise BadFile(
            path, f"cannot be read as a groove label ({err}); expected a grey PNG"
        ) from err
    if label.shape != tuple(size):
        raise BadFile(
            path,
            f"is {label.shape[0]}x{label.shape[1]}; expected {size[0]}x{size[1]}, as its capture",
        )
    return label.astype(np.uint16)


class Capture(NamedTuple):
    """One capture as it was read.

    image     Pillow's, in RGB
    xyz       (H, W, 3) float32 mm
    no_value  as in PointMap
    """

    image: Image.Image
    xyz: np.ndarray
    no_value: dict[str, int]


def read_capture(pair: CapturePair, contents: tuple[bytes, bytes] | None = None) -> Capture:
    """Return one capture, raise BadFile if it is wrong.

    contents  the bytes of both files, if already read
    """
    rgb_content, xyz_content = contents or (None, None)
    image = open_rgb(pair.rgb, content=rgb_content)
    points = read_point_map(pair.xyz, xyz_content)
    _check_same_size(pair, image.size[::-1], points.xyz.shape[:2])
    return Capture(image, points.xyz, points.no_value)


def read_size(pair: CapturePair) -> tuple[int, int]:
    """Return (H, W) of a pair from the two headers: cheap, and enough to find most bad pairs.

    Raise BadFile as `read_capture` would, for what a header contains.
    """
    try:
        with open(pair.xyz, "rb") as file:
            size = _read_header(pair.xyz, file).size
    except BadFile:
        raise
    except OSError as err:
        raise BadFile(pair.xyz, f"cannot be read ({err.strerror})") from err
    except ValueError as err:
        raise BadFile(pair.xyz, f"not a .npy file that can be read ({err})") from err
    try:
        with Image.open(pair.rgb) as image:
            width, height = image.size
    except Exception:  # Pillow raises half a dozen kinds; read_rgb turns each into one line
        read_rgb(pair.rgb)
        raise
    _check_same_size(pair, (height, width), size)
    return size


def _check_same_size(pair: CapturePair, rgb: tuple[int, ...], xyz: tuple[int, ...]) -> None:
    if rgb != xyz:
        raise BadFile(
            pair.rgb,
            f"rgb is {rgb[0]}x{rgb[1]}, xyz is {xyz[0]}x{xyz[1]} ({pair.xyz.name}); both must come"
            " from one capture",
        )
