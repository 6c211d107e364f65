"""The file formats that a sample's members may have: npy of plain numbers, JPEG, PNG.

Nothing pickled is ever loaded, and shapes are compared with what is expected before anything is
allocated or written.
"""

from __future__ import annotations

import math
import re
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from depthdist.captures.formats.npy import HEADERS
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.shards.encoding import resize_nearest

MAX_NPY_HEADER = 20000  # bytes; NumPy takes no header of more than 10000


class MemberError(ValueError):
    """The reason why a member's bytes cannot be used, always the same line for the same bytes."""

    def __init__(self, member: str, reason: str):
        super().__init__(" ".join(re.sub("<_io.BytesIO[^>]*>", "", reason).split()))
        self.member = member


def is_jpeg(name: str) -> bool:
    """Whether a member is a JPEG, by its name."""
    return name.lower().endswith(("jpg", "jpeg"))


def read_npy_header(
    name: str, content: memoryview
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, Fortran order, dtype and length of a `.npy`'s header."""
    file = BytesIO(content[:MAX_NPY_HEADER])
    try:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as err:
        # NumPy raises KeyError, TokenError, RecursionError ... on what is no header
        raise MemberError(name, f"not a .npy ({err})") from err
    return shape, fortran, dtype, file.tell()


def read_npy(
    name: str,
    content: memoryview,
    shape: tuple[int, ...] | None = None,
    dtype: np.dtype[Any] | None = None,
) -> np.ndarray:
    """Return a view of a `.npy`'s numbers, raise MemberError if its header is not as expected.

    Nothing is allocated, copied or unpickled.
    """
    found_shape, fortran, found_dtype, start = read_npy_header(name, content)
    other_shape = shape is not None and (found_shape != shape or fortran)
    other_dtype = dtype is not None and found_dtype != dtype
    if other_shape or other_dtype or found_dtype.kind not in "fub":
        raise MemberError(
            name, f"{found_dtype} {found_shape}; expected {dtype or 'plain numbers'} {shape or ''}"
        )
    num_bytes = int(np.prod(found_shape, dtype=object)) * found_dtype.itemsize
    if min(found_shape, default=1) < 0 or len(content) != start + num_bytes:
        raise MemberError(name, f"{len(content)} bytes do not fit {found_dtype} {found_shape}")
    values = np.frombuffer(content, found_dtype, offset=start)
    return values.reshape(found_shape, order="F" if fortran else "C")


def read_png(name: str, content: memoryview, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return a gray PNG of 8 or 16 bits, (H, W)."""
    try:
        image = Image.open(BytesIO(content), formats=["PNG"])
        if image.mode not in ("I;16", "L", "1", "I") or (shape and image.size[::-1] != shape):
            raise MemberError(
                name,
                f"{image.size[1]}x{image.size[0]}, mode {image.mode}; expected grey"
                f" {'x'.join(map(str, shape or ()))}",
            )
        return np.asarray(image)
    except MemberError:
        raise
    except Exception as err:  # Pillow raises much besides OSError
        raise MemberError(name, f"cannot be decoded ({err})") from err


def read_raw_rgb(name: str, content: memoryview) -> np.ndarray:
    """Return a view of an image of any size, (H, W, 3) uint8, that is stored as `.npy`."""
    image = read_npy(name, content, dtype=np.dtype(np.uint8))
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise MemberError(name, f"uint8 {image.shape}; expected (H, W, 3)")
    return image


def decode_rgb(name: str, content: memoryview) -> np.ndarray:
    """Return an image of any size, (H, W, 3) uint8, of a `.npy`, JPEG or PNG."""
    if name.endswith(".npy"):
        return read_raw_rgb(name, content)
    try:
        return _decode(_open_image(name, content)[1], content)
    except Exception as err:  # Pillow raises much besides OSError
        raise MemberError(name, f"cannot be decoded ({err})") from err


def read_rgb(
    name: str, content: memoryview, out: np.ndarray | None, resize: bool = False
) -> tuple[int, int]:
    """Decode a JPEG or PNG into `out` (h, w, 3) uint8, return the image's own height and width.

    out     None: only check that it can be decoded
    resize  resize an image of another size, instead of raising MemberError
    """
    try:
        size = _decode_rgb(name, content, out, resize)
    except Exception as err:  # Pillow raises much besides OSError
        raise MemberError(name, f"cannot be decoded ({err})") from err
    if out is not None and size != out.shape[:2] and not resize:
        raise MemberError(name, f"{size[0]}x{size[1]}; expected {out.shape[0]}x{out.shape[1]}")
    return size


def _decode_rgb(
    name: str, content: memoryview, out: np.ndarray | None, resize: bool
) -> tuple[int, int]:
    size, image = _open_image(name, content)
    # the size is known before anything of that size is written
    if out is not None and size == out.shape[:2]:
        if image:
            out[:] = _decode(image, content)
        else:
            simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=out)
    elif out is None or resize:
        rgb = _decode(image, content)
        if out is not None:
            out[:] = resize_rgb(rgb, out.shape[:2])
    return size


def _open_image(name: str, content: memoryview) -> tuple[tuple[int, int], Image.Image | None]:
    """Return height and width of a JPEG or PNG, and the PNG as Pillow opens it.

    raises ValueError where it is too large, or has more than 8 bits a channel
    """
    image = None if is_jpeg(name) else Image.open(BytesIO(content), formats=["PNG"])
    if image:
        width, height = image.size
    else:
        height, width = simplejpeg.decode_jpeg_header(content)[:2]
    too_large = height * width > (Image.MAX_IMAGE_PIXELS or math.inf)
    if too_large or (image and image.mode.startswith("I")):
        raise ValueError(
            f"{height}x{width}, mode {image.mode if image else 'JPEG'}; expected 8 bits a"
            " channel, not too large to be a picture"
        )
    return (height, width), image


def _decode(image: Image.Image | None, content: memoryview) -> np.ndarray:
    """Return (H, W, 3) uint8 of a PNG that is open, or of a JPEG's bytes."""
    if image:
        return np.asarray(image.convert("RGB"))
    return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB"))


def read_external_depth(
    raw: dict[str, Any], content: dict[str, memoryview], shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Return depth (H, W) float32 mm of a sample of external tars.

    It is 0 or less, NaN or inf where invalid.

    raw    index.json: its `depth` (Z alone or X, Y, Z, times unit_mm) and `mask` (at the depth's
           own size, not 0: counts)
    shape  the size it must have, or is resized to (nearest pixel) where depth["resize"] is true
    """
    depth = raw["depth"]
    name = depth["member"]
    values = _read_numbers(name, content[name])
    if values.ndim == 3 and values.shape[2] in (1, 3):
        values = values[:, :, -1]
    if values.ndim != 2 or 0 in values.shape or values.dtype.name != depth["dtype"]:
        raise MemberError(
            name,
            f"{values.dtype} {values.shape}; expected {depth['dtype']} (H, W), (H, W, 1) or (H,"
            " W, 3)",
        )
    # a float64 beyond float32 becomes inf, which is not valid
    with np.errstate(over="ignore", invalid="ignore"):
        z: np.ndarray = np.multiply(values, depth["unit_mm"], dtype=np.float32, casting="unsafe")
    mask = raw["mask"]["member"]
    if mask:
        valid = _read_numbers(mask, content[mask])
        if valid.shape != z.shape or valid.itemsize != 1:
            raise MemberError(
                mask, f"{valid.dtype} {valid.shape}; expected 8 bits {z.shape}, as the depth"
            )
        z[valid == 0] = 0
    if shape and z.shape != shape:
        if not depth["resize"]:
            raise MemberError(name, f"{z.shape[0]}x{z.shape[1]}; expected {shape[0]}x{shape[1]}")
        z = resize_nearest(z, (shape[0], shape[1]))
    return z


def _read_numbers(name: str, content: memoryview) -> np.ndarray:
    if name.lower().endswith("png"):
        return read_png(name, content)
    return read_npy(name, content)
