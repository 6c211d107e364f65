"""Read an image, a point map or a groove label from a file."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from depthdist.captures.layouts import CapturePair
from depthdist.core.errors import BadFile

ORIENTATION = 0x0112  # the EXIF tag


METRES_BELOW_MM = 20.0  # no structured-light camera measures at 20 mm, none at 20 m


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_rgb(path: Path | str, upright: bool = False) -> np.ndarray:
    """The picture as (H, W, 3) uint8 RGB; the rest is `open_rgb`'s."""
    return np.array(open_rgb(path, upright))


def open_rgb(path: Path | str, upright: bool = False, content: bytes | None = None) -> Image.Image:
    """The picture in RGB, 8 bits a channel, whatever kind of picture it is.

    `content` are the file's bytes, where they are at hand.

    16 bits become 8 by dropping the low byte, alpha is dropped, CMYK, palettes and grey are
    converted, and of several frames the first counts. `upright` turns a picture as its EXIF
    orientation says; without it such a picture raises, for a point cloud has no such tag and the
    two grids could disagree.

    raises BadFile: cannot be decoded, truncated, turned, 32 bits a channel, more pixels than
    Pillow's decompression-bomb guard
    """
    path = Path(path)
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            turned = image.getexif().get(
                ORIENTATION, 1
            )  # before load(): Pillow turns a TIFF and drops the tag while loading
            if turned in range(2, 9) and not upright:
                raise BadFile(
                    path,
                    f"EXIF orientation is {turned}; expected 1 (the picture must lie as the"
                    " camera's grid does)",
                )
            image.load()
            return _as_rgb(path, ImageOps.exif_transpose(image) if upright else image)
    except BadFile:
        raise
    except (
        Exception
    ) as err:  # Pillow raises OSError, SyntaxError, TypeError, struct.error ... on broken files
        reason = (
            getattr(err, "strerror", None)
            or str(err).replace(repr(str(path)), "it")
            or type(err).__name__
        )
        raise BadFile(
            path, f"cannot be read as a picture ({reason}); expected a whole PNG, JPEG or TIFF"
        ) from err


def exif_orientation(path: Path) -> int:
    """How a picture that can be read lies, by its EXIF tag: 2 to 8, or 0 where it is upright."""
    with Image.open(path) as image:
        turned = image.getexif().get(ORIENTATION, 1)
    return turned if turned in range(2, 9) else 0


def _as_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):  # grey, 16 bits
        grey = np.asarray(image).astype(np.int64)
        if 0 < grey.max() < 256:  # dropping the low byte would leave a black picture
            raise BadFile(
                path,
                f"16 bits a pixel, but the highest value is {grey.max()}; expected values up to"
                " 65535",
            )
        return Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadFile(
            path, f"32 bits a channel (mode {image.mode}); expected a picture of 8 or 16 bits"
        )
    if image.mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _open_xyz(path: Path, file: BinaryIO) -> tuple[tuple[int, int], bool, np.dtype]:
    """Height and width, Fortran order, and dtype from the header of a `.npy`.

    `file` is left where the numbers start.
    """
    start = file.read(6)
    file.seek(0)
    if start[:4] == b"PK\x03\x04":
        raise BadFile(path, "is an .npz archive; expected one array in a .npy file")
    if start != np.lib.format.MAGIC_PREFIX:
        raise BadFile(path, f"starts with {start!r}; expected a .npy file")
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise BadFile(path, f".npy format {version}; expected 1.0 or 2.0")
    shape, fortran, dtype = HEADERS[version](file)
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
    found, wanted = (
        file.seek(0, os.SEEK_END),
        start + int(np.prod(shape, dtype=object)) * dtype.itemsize,
    )
    if found < wanted:
        raise BadFile(path, f"truncated: {found:,} bytes; expected {wanted:,} for {shape} {dtype}")
    file.seek(start)
    return shape[:2], fortran, dtype


def read_size(pair: CapturePair) -> tuple[int, int]:
    """(H, W) of a pair from the two headers alone: cheap, and enough to turn most bad pairs away
    before any work.

    raises BadFile as `read_pair` would, for what a header tells
    """
    try:
        with open(pair.xyz, "rb") as file:
            size = _open_xyz(pair.xyz, file)[0]
    except (OSError, SyntaxError) as err:
        raise BadFile(
            pair.xyz, f"cannot be read ({err.strerror if isinstance(err, OSError) else err})"
        ) from err
    except ValueError as err:
        raise (
            err
            if isinstance(err, BadFile)
            else BadFile(pair.xyz, f"not a .npy file that can be read ({err})")
        ) from err
    try:
        with Image.open(pair.rgb) as image:
            width, height = image.size
    except Exception:  # Pillow raises half a dozen kinds; read_rgb turns each into one line
        read_rgb(pair.rgb)
        raise
    _same_size(pair, (height, width), size)
    return size


def _same_size(pair: CapturePair, rgb: tuple[int, int], xyz: tuple[int, int]) -> None:
    if rgb != xyz:
        raise BadFile(
            pair.rgb,
            f"rgb is {rgb[0]}x{rgb[1]}, xyz is {xyz[0]}x{xyz[1]} ({pair.xyz.name}); both must come"
            " from one capture",
        )


def read_xyz(path: Path | str, content: bytes | None = None) -> np.ndarray:
    """The point cloud as (H, W, 3) float32 mm: X, Y, Z, +Z away from the lens, NaN (or Z 0) where
    nothing was measured.

    content  the file's bytes, where they are at hand; what comes back may then be read-only
    raises BadFile: not a .npy, pickled, truncated, another shape or dtype, no valid pixel, Z
    negative, looks like metres
    """
    path = Path(path)
    try:
        with open(path, "rb") if content is None else BytesIO(content) as file:
            size, fortran, dtype = _open_xyz(path, file)
            count = size[0] * size[1] * 3
            flat = (
                np.fromfile(file, dtype, count)
                if content is None
                else np.frombuffer(content, dtype, count, file.tell())
            )
    except BadFile:
        raise
    except (OSError, ValueError, SyntaxError, MemoryError) as err:
        raise BadFile(
            path, f"not a .npy file that can be read ({getattr(err, 'strerror', None) or err})"
        ) from err
    xyz = flat.reshape((*size, 3), order="F" if fortran else "C")
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a float64 beyond float32 becomes inf, which is not a valid pixel
        xyz = np.ascontiguousarray(xyz, np.float32)
        z = np.ascontiguousarray(xyz[:, :, 2])
        negative, count = (
            np.count_nonzero((z < 0) & (z > -np.inf)),
            np.count_nonzero((z > 0) & (z < np.inf)),
        )
        stride = max(1, min(size) // 100)
        some = z[::stride, ::stride]  # enough for a median that tells metres from millimetres
        some = some[(some > 0) & (some < np.inf)]
    if negative > count:
        raise BadFile(
            path,
            f"Z is negative in {negative:,} of {negative + count:,} measured pixels; expected +Z"
            " away from the lens",
        )
    if not count:
        raise BadFile(
            path, f"no valid pixel: Z is NaN or 0 in all of {size[0]}x{size[1]}; expected Z in mm"
        )
    if some.size and (median := float(np.median(some))) < METRES_BELOW_MM:
        raise BadFile(
            path, f"looks like metres: the median Z is {median:.4g}; expected millimetres"
        )
    return xyz


def read_label(path: Path, size: tuple[int, int], content: bytes | None = None) -> np.ndarray:
    """The groove label as (H, W) uint16: 0 no groove, else the number of the groove that is seen
    there.

    content  the file's bytes, where they are at hand
    raises BadFile: not a grey picture of 8 or 16 bits (a palette's numbers count as they are), or
    not of the capture's size
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


def read_pair(
    pair: CapturePair, contents: tuple[bytes, bytes] | None = None
) -> tuple[Image.Image, np.ndarray]:
    """The picture in RGB and xyz (H, W, 3) float32 mm of one capture.

    BadFile says what is wrong with which file.

    contents  the bytes of both files, where they are at hand
    """
    contents = contents or (None, None)
    picture, xyz = open_rgb(pair.rgb, content=contents[0]), read_xyz(pair.xyz, contents[1])
    _same_size(pair, picture.size[::-1], xyz.shape[:2])
    return picture, xyz
