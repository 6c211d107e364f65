"""Read an image, a point map or a groove label from a user's file.

    capture = read_capture(pair)  # .image: Pillow's in RGB; .xyz: (H, W, 3) float32 mm
    label = read_label(path, size)  # (H, W) uint16: which groove is seen where

A file that cannot be read correctly raises `BadFile`: one line that starts with its path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from depthdist.captures.camera_files import read_camera
from depthdist.captures.formats.registry import BY_SUFFIX, format_of
from depthdist.captures.formats.stored_points import StoredPoints
from depthdist.captures.layouts import CapturePair
from depthdist.captures.missing_values import count_missing, mask_constants, missing_constants
from depthdist.captures.read_options import NO_OPTIONS, ReadOptions
from depthdist.core.errors import BadFile
from depthdist.geometry.camera import pinhole, pinhole_from_fov, pixel_rays
from depthdist.geometry.camera_view import find_view_problem

ORIENTATION = 0x0112  # the EXIF tag
TURNED = range(2, 9)  # its values for an image that is not upright
NO_IMAGE = "there is no image beside it"
ON_THE_SIDE = range(5, 9)  # those that swap height and width
TURN_BACK = {  # a TIFF, which Pillow turns when it loads it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
METRES_BELOW_MM = 20.0  # no structured-light camera measures at 20 mm, none at 20 m


# ------------------------------------------------------------------------------------------- images


def read_rgb(path: Path | str, upright: bool = False) -> np.ndarray:
    """Return the image as (H, W, 3) uint8 RGB; see `open_rgb`."""
    return np.array(open_rgb(path, upright))


def open_rgb(
    path: Path | str,
    upright: bool = False,
    content: bytes | None = None,
    is_upright: Callable[[ImageSizes], bool] | None = None,
) -> Image.Image:
    """Return the image in RGB, 8 bits a channel, whatever its format.

    upright     rotate the image as its EXIF orientation says; else it lies as it is stored
    content     the file's bytes, if already read
    is_upright  decides it by the sizes of an image that has such an orientation

    16 bits become 8 by dropping the low byte, alpha is dropped, CMYK, palettes and grey are
    converted, and only the first of several frames is used. Raise BadFile: cannot be decoded,
    truncated, 32 bits a channel, more pixels than Pillow's decompression-bomb limit.
    """
    path = Path(path)
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            # before load(), in which Pillow rotates a TIFF and drops the tag
            orientation = image.getexif().get(ORIENTATION, 1)
            if orientation in TURNED and is_upright is not None:
                upright = is_upright(_sizes_of(image))
            image.load()
            if image.format == "TIFF" and orientation in TURNED and not upright:
                turned_back = image.transpose(TURN_BACK[orientation])
                return _as_rgb(path, turned_back)
            return _as_rgb(path, ImageOps.exif_transpose(image) if upright else image)
    except BadFile:
        raise
    except Exception as err:  # Pillow raises OSError, SyntaxError, TypeError, struct.error, ...
        text = str(err).replace(repr(str(path)), "it")
        reason = getattr(err, "strerror", None) or text or type(err).__name__
        raise BadFile(
            path, f"cannot be read as a picture ({reason}); expected a whole PNG, JPEG or TIFF"
        ) from err


class ImageSizes(NamedTuple):
    """Sizes (H, W) of an image as it is stored, and as its EXIF orientation turns it."""

    stored: tuple[int, int]
    upright: tuple[int, int]


def read_image_sizes(path: Path, content: bytes | None = None) -> ImageSizes:
    """Return the sizes of an image from its header; raise BadFile.

    content  the file's bytes, if already read
    """
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            return _sizes_of(image)
    except Exception:  # Pillow raises half a dozen kinds; open_rgb turns each into one line
        open_rgb(path, content=content)
        raise


def _sizes_of(image: Image.Image) -> ImageSizes:
    """Return the sizes of an image that is opened, not yet loaded."""
    size = (image.height, image.width)
    if image.getexif().get(ORIENTATION, 1) not in ON_THE_SIDE:
        return ImageSizes(size, size)
    other = (image.width, image.height)
    return ImageSizes(other, size) if image.format == "TIFF" else ImageSizes(size, other)


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


class PointMap(NamedTuple):
    """A point map as it was read.

    xyz       (H, W, 3) float32 mm, NaN (or Z 0) where nothing was measured; X and Y are NaN
              everywhere where the file has depth alone and its camera is not known
    no_value  how many pixels have each spelling of "no value": "NaN", "0", "-1", "65535" ...
    rgb       (H, W, 3) uint8, None where the file has no colors
    """

    xyz: np.ndarray
    no_value: dict[str, int]
    rgb: np.ndarray | None = None


def read_xyz(path: Path | str, content: bytes | None = None) -> np.ndarray:
    """Return the point map as (H, W, 3) float32 mm; see `read_point_map`."""
    return read_point_map(path, content).xyz


def read_point_map(
    path: Path | str,
    content: bytes | None = None,
    options: ReadOptions = NO_OPTIONS,
    camera: Path | None = None,
    unit_mm: float | None = None,
    image_size: tuple[int, int] | None = None,
) -> PointMap:
    """Return the point map: X, Y, Z in mm, +Z away from the lens.

    NaN (or Z 0) where nothing was measured, whatever the file has there.

    content     the file's bytes, if already read; the array may then be read-only
    camera      the file of the intrinsics of depth without X and Y
    unit_mm     millimetres per unit as the layout says, where the user does not
    image_size  (H, W) of the image of the same capture, which tells the rows of a list of points

    Raise BadFile: cannot be read, pickled, truncated, another shape or dtype, no valid pixel, Z
    negative, looks like metres.
    """
    path = Path(path)
    stored = format_of(path).read(path, read_bytes(path) if content is None else content)
    if image_size and stored.values.shape[0] == 1:
        stored = _in_rows(path, stored, image_size)
    return to_point_map(path, stored, options, camera, unit_mm)


def _in_rows(path: Path, stored: StoredPoints, image_size: tuple[int, int]) -> StoredPoints:
    """Return a list of points as the map that it is beside an image of that size."""
    size = _find_rows(path, stored.values.shape[1], image_size)
    return stored._replace(
        values=stored.values.reshape(*size, *stored.values.shape[2:]),
        rgb=None,  # there is an image
        snr=None if stored.snr is None else stored.snr.reshape(size),
    )


def _find_rows(path: Path, num_points: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of a list of points: the image's, times or divided by a whole number.

    raises BadFile where there is no such number
    """
    height, width = image_size
    factor = math.isqrt(num_points // (height * width))
    if num_points == factor**2 * height * width:
        return factor * height, factor * width
    divisor = math.isqrt(height * width // num_points)
    if height * width == divisor**2 * num_points and height % divisor == width % divisor == 0:
        return height // divisor, width // divisor
    raise _without_rows(path, num_points, f"its image has {height}x{width} pixels")


def _without_rows(path: Path, num_points: int, image: str) -> BadFile:
    """Return the error of a list of points; `image` says why none tells its rows."""
    return BadFile(
        path,
        f"is a list of {num_points:,} points without rows, and {image}; expected an organised"
        " cloud, with a point (or NaN) for every pixel",
    )


def to_point_map(
    path: Path,
    stored: StoredPoints,
    options: ReadOptions = NO_OPTIONS,
    camera: Path | None = None,
    unit_mm: float | None = None,
) -> PointMap:
    """Return what a file holds as points in mm; see `read_point_map`."""
    unit = options.unit_mm or stored.unit_mm or unit_mm or 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        # a float64 beyond float32 becomes inf, which is not a valid pixel
        if stored.values.ndim == 3:
            xyz = np.ascontiguousarray(stored.values, np.float32)
            if unit != 1:
                xyz = xyz * np.float32(unit)
        else:
            xyz = _with_rays(stored.values, unit, options, camera)
        no_value = count_missing(np.ascontiguousarray(xyz[:, :, 2]))
        for value in stored.no_value:
            missing = stored.values == value
            if missing.any():
                xyz[missing] = np.nan
                no_value[f"{value:g}"] = int(np.count_nonzero(missing))
        constants = missing_constants(xyz)
        if constants:
            xyz = xyz.copy()
            no_value |= mask_constants(xyz, constants)
        if options.min_snr:
            if stored.snr is None:
                raise BadFile(
                    path,
                    f"has no SNR or confidence, which --min-snr {options.min_snr:g} asks for;"
                    " expected another file, or no --min-snr",
                )
            xyz = xyz.copy()
            no_value |= _mask_uncertain(xyz, stored.snr, options.min_snr)
        _check_depth(path, np.ascontiguousarray(xyz[:, :, 2]), xyz, no_value)
    return PointMap(xyz, no_value, stored.rgb)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; raise BadFile where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as err:
        raise BadFile(path, f"cannot be read: {err.strerror}") from err


def _with_rays(
    depth: np.ndarray, unit: float, options: ReadOptions, camera: Path | None
) -> np.ndarray:
    """Return (H, W, 3) float32 mm of depth (H, W); X and Y are NaN where no camera is known."""
    size = depth.shape[:2]
    xyz = np.empty((*size, 3), np.float32)
    xyz[:, :, 2] = depth * unit
    meta = _camera_of(size, options, camera)
    if meta is None:
        xyz[:, :, :2] = np.nan
        return xyz
    rays = pixel_rays(meta, size)
    assert rays is not None, "intrinsics that were checked"
    xyz[:, :, :2] = rays * xyz[:, :, 2:]
    return xyz


def _camera_of(
    size: tuple[int, int], options: ReadOptions, camera: Path | None
) -> dict[str, Any] | None:
    """Return the pinhole of depth of that size as a sample's meta, None where nothing tells it."""
    if options.intrinsics:
        return pinhole(size, *options.intrinsics)
    if options.fov is not None:
        return pinhole_from_fov(size, options.fov)
    return None if camera is None else read_camera(camera, size)


def _mask_uncertain(xyz: np.ndarray, snr: np.ndarray, min_snr: float) -> dict[str, int]:
    """Set points with a lower SNR to NaN in place; return how many had been valid."""
    with np.errstate(invalid="ignore"):
        uncertain = ~(snr >= min_snr)
        count = int(np.count_nonzero(uncertain & (xyz[:, :, 2] > 0)))
    xyz[uncertain] = np.nan
    return {f"SNR below {min_snr:g}": count} if count else {}


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
            path,
            f"looks like metres: the median Z is {median:.4g}; expected millimetres (--unit 1000"
            " reads metres)",
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

    image     Pillow's, in RGB, at its own size: the points' times or divided by a whole number
    xyz       (H, W, 3) float32 mm
    no_value  as in PointMap
    """

    image: Image.Image
    xyz: np.ndarray
    no_value: dict[str, int]


def read_capture(
    pair: CapturePair,
    contents: Mapping[Path, bytes] | None = None,
    options: ReadOptions = NO_OPTIONS,
) -> Capture:
    """Return one capture, raise BadFile if it is wrong.

    contents  the bytes of its files, if already read
    """
    contents = contents or {}
    together = pair.rgb == pair.xyz
    rgb = contents.get(pair.rgb)
    image_size = None if together else read_image_sizes(pair.rgb, rgb).stored
    points = read_point_map(
        pair.xyz, contents.get(pair.xyz), options, pair.camera, pair.unit_mm, image_size
    )
    size = (points.xyz.shape[0], points.xyz.shape[1])
    if not together:
        image = open_rgb(pair.rgb, content=rgb, is_upright=fits_upright(size))
    elif size[0] == 1:
        raise _without_rows(pair.xyz, size[1], NO_IMAGE)
    else:
        image = _own_colors(pair.xyz, points.rgb)
    _check_sizes(pair, (image.height, image.width), size, options.registered)
    return Capture(image, points.xyz, points.no_value)


def read_image(path: Path, content: bytes | None, points_size: tuple[int, int]) -> Image.Image:
    """Return the image in RGB, from an image file or from a file of colored points.

    points_size  (H, W) of its points, which decides whether an EXIF orientation counts
    """
    form = BY_SUFFIX.get(path.suffix.lower())
    if form is None or not form.has_rgb:
        return open_rgb(path, content=content, is_upright=fits_upright(points_size))
    stored = form.read(path, read_bytes(path) if content is None else content)
    return _own_colors(path, stored.rgb)


def fits_upright(points: tuple[int, int]) -> Callable[[ImageSizes], bool]:
    """Return what decides whether the points (H, W) of an image are those of it turned upright.

    They are where the upright size fits them and the stored one does not.
    """
    return lambda sizes: not _fit(sizes.stored, points) and _fit(sizes.upright, points)


def _own_colors(path: Path, rgb: np.ndarray | None) -> Image.Image:
    if rgb is None:
        raise BadFile(path, "has no colors and no image beside it; expected one or the other")
    return Image.fromarray(np.ascontiguousarray(rgb))


class CaptureSize(NamedTuple):
    """Sizes (H, W) of a capture's image and of its points."""

    image: tuple[int, int]
    points: tuple[int, int]


def read_size(pair: CapturePair, options: ReadOptions = NO_OPTIONS) -> CaptureSize:
    """Return the sizes of a pair from the two headers: cheap, and enough to find most bad pairs.

    Raise BadFile as `read_capture` would, for what a header contains.
    """
    size = format_of(pair.xyz).read_size(pair.xyz)
    if pair.rgb == pair.xyz:
        if size[0] == 1:
            raise _without_rows(pair.xyz, size[1], NO_IMAGE)
        return CaptureSize(size, size)
    sizes = read_image_sizes(pair.rgb)
    if size[0] == 1:
        size = _find_rows(pair.xyz, size[1], sizes.stored)
    image_size = sizes.upright if fits_upright(size)(sizes) else sizes.stored
    _check_sizes(pair, image_size, size, options.registered)
    return CaptureSize(image_size, size)


def _check_sizes(
    pair: CapturePair, rgb: tuple[int, ...], xyz: tuple[int, ...], registered: bool
) -> None:
    """Raise BadFile unless image and points have one grid, or every pixel of one holds n x n."""
    if registered or _fit(rgb, xyz):
        return
    raise BadFile(
        pair.rgb,
        f"rgb is {rgb[0]}x{rgb[1]}, xyz is {xyz[0]}x{xyz[1]} ({pair.xyz.name}); both must come"
        " from one capture, with one size or one that is 2, 3, 4 ... times the other's"
        " (--registered takes any, where both see the same field)",
    )


def _fit(rgb: tuple[int, ...], xyz: tuple[int, ...]) -> bool:
    """Return whether image and points have one size, or one that is n times the other's."""
    larger, smaller = max(rgb, xyz), min(rgb, xyz)
    multiple = all(a % b == 0 for a, b in zip(larger, smaller))
    return multiple and larger[0] // smaller[0] == larger[1] // smaller[1]
