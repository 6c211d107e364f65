"""One sample: arrays become the bytes of its members, and bytes become arrays in buffers that are
used again.

    encode_rgb, encode_depth, encode_mask      what tools/shard.py stores
    read_sample(fd, ref, index, out)           from the tar into `out`, every byte proven by CRC-32
    decode_sample(members, index)              the same from bytes that are there already, into new
                                               arrays

What a member may be is a fixed list (npy of plain numbers, JPEG, PNG); nothing pickled is ever
loaded, and shapes are compared with the index before anything is allocated or written.
"""

from __future__ import annotations

import base64
import json
import os
import re
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from depthdist.captures.readers import HEADERS
from depthdist.geometry.resampling import resize_rgb
from depthdist.shards.encoding import (
    npy_header,
    quantize,
    resize_nearest,
)
from depthdist.shards.format import crc32
from depthdist.shards.index import Damaged, Index, SampleRef
from depthdist.shards.sample_arrays import Arrays, empty_arrays

# ----------------------------------------------------------------------------------------- encoding


def decode_label(text: str) -> np.ndarray:
    """(H, W) uint16 that `encode_label` was given."""
    return _read_png("meta.json, grooves", memoryview(base64.b64decode(text)))


# ------------------------------------------------------------------------------------------ reading


def read_sample(fd: int, ref: SampleRef, index: Index, out: Arrays) -> None:
    """Read one sample's bytes from its tar, prove them, and decode them into `out`.

    Depth and mask of ours go from the file straight into `out`; tar headers are read and proven
    with the rest. raises Damaged, which names shard, sample, member and offset
    """
    pieces, content = _pieces(ref, index, out)
    crc = 0
    if _fill(fd, pieces, ref.start) == ref.length:
        for piece in pieces:
            crc = crc32(piece, crc)
    if crc != ref.crc:
        raise _diagnosis(fd, ref)
    try:
        _decode(content, index, out)
    except MemberError as err:
        raise Damaged(
            ref.shard, ref.key, ref.stem, err.member, ref.members[err.member][0], str(err)
        ) from err


class MemberError(ValueError):
    """What is wrong with a member's bytes."""

    def __init__(self, member: str, reason: str):
        super().__init__(
            " ".join(re.sub("<_io.BytesIO[^>]*>", "", reason).split())
        )  # one line, the same each time
        self.member = member


def _pieces(
    ref: SampleRef, index: Index, out: Arrays
) -> tuple[list[memoryview], dict[str, memoryview]]:
    """Buffers that together take the sample's bytes, and each member's bytes in them (of one that
    lies in `out`: its header).
    """
    pieces, content, waiting, at = [], {}, [], ref.start

    def close(end: int) -> None:
        nonlocal at
        piece = memoryview(bytearray(end - at))
        pieces.append(piece)
        for name, start, stop in waiting:
            content[name] = piece[start - at : stop - at]
        waiting.clear()
        at = end

    direct = _direct(index, out)
    for name, (offset, size, _) in sorted(ref.members.items(), key=lambda member: member[1]):
        header, target = direct.get(name, (b"", None))
        if target is not None and size == len(header) + target.nbytes:
            waiting.append((name, offset, offset + len(header)))
            close(offset + len(header))
            pieces.append(memoryview(target).cast("B"))
            at = offset + size
        else:
            waiting.append((name, offset, offset + size))
    close(ref.start + ref.length)
    return pieces, content


def _direct(index: Index, out: Arrays) -> dict[str, tuple[bytes, np.ndarray]]:
    """Members that are an array of `out` behind a header, by name."""
    found = {}
    if index.raw["depth"]["codec"] == "npy" and index.raw["depth"]["steps"]:
        found[index.raw["depth"]["member"]] = (npy_header(out.depth.shape, "<u2"), out.depth)
    if index.raw["mask"].get("packed"):
        found[index.raw["mask"]["member"]] = (npy_header(out.mask.shape, "|u1"), out.mask)
    if index.raw["rgb"]["codec"] == "raw":
        found[index.raw["rgb"]["member"]] = (npy_header(out.rgb.shape, "|u1"), out.rgb)
    return found


def _fill(fd: int, pieces: list[memoryview], offset: int) -> int:
    """Read into all pieces; how many bytes the file had."""
    done = 0
    while pieces and (got := os.preadv(fd, pieces, offset + done)):
        done += got
        while pieces and got >= len(pieces[0]):
            got -= len(pieces[0])
            pieces = pieces[1:]
        pieces = [pieces[0][got:], *pieces[1:]] if pieces else pieces
    return done


def _diagnosis(fd: int, ref: SampleRef) -> Damaged:
    """Which member of the sample is not what the index says."""
    for name, (offset, size, crc) in ref.members.items():
        content = os.pread(fd, size, offset)
        if len(content) != size:
            return Damaged(
                ref.shard,
                ref.key,
                ref.stem,
                name,
                offset,
                f"{len(content):,} bytes, expected {size:,}: the shard is cut off",
            )
        if crc32(content) != crc:
            return Damaged(
                ref.shard,
                ref.key,
                ref.stem,
                name,
                offset,
                f"CRC-32 is {crc32(content):08x}, expected {crc:08x}",
            )
    return Damaged(
        ref.shard,
        ref.key,
        ref.stem,
        "tar header",
        ref.start,
        f"the members are whole, the bytes between them are not ({ref.length:,} bytes, CRC-32"
        f" {ref.crc:08x} expected)",
    )


# ----------------------------------------------------------------------------------------- decoding


def decode_sample(members: dict[str, bytes], index: Index) -> dict[str, Any]:
    """The arrays of one sample from its members' bytes.

    returns   rgb (h, w, 3) uint8; depth (H, W) uint16, in steps of index.step_mm, 0 where invalid;
              mask (H, W) bool; meta
    raises ValueError: a member missing or unknown, another shape or dtype than the index says,
    bytes that cannot be decoded
    """
    if set(members) != set(index.members):
        raise ValueError(
            f"members are {', '.join(sorted(members))}; expected {', '.join(sorted(index.members))}"
        )
    out = empty_arrays(index)
    content = {name: memoryview(content) for name, content in members.items()}
    try:
        for name, (header, target) in _direct(index, out).items():
            if len(content[name]) == len(header) + target.nbytes:
                memoryview(target).cast("B")[:] = content[name][len(header) :]
                content[name] = content[name][: len(header)]
        _decode(content, index, out)
        meta = index.raw["meta"]["member"]
        meta = json.loads(members[meta]) if meta else {}
    except MemberError as err:
        raise ValueError(f"{err.member}: {err}") from err
    return {
        "rgb": out.rgb,
        "depth": out.depth,
        "mask": np.unpackbits(out.mask, axis=1, count=index.depth_size.width).view(bool),
        "meta": meta,
    }


def _decode(content: dict[str, memoryview], index: Index, out: Arrays) -> None:
    """The members' bytes into `out`.

    Of members that are in `out` already only the header is left to look at.
    """
    depth, rgb = index.raw["depth"], index.raw["rgb"]
    if index.raw.get("foreign"):
        out.depth[:] = quantize(
            read_external_depth(index.raw, content, out.depth.shape), index.near_mm, index.far_mm
        )[0]
        out.mask[:] = np.packbits(out.depth > 0, axis=1)
    else:
        for name, (header, target) in _direct(index, out).items():
            if content[name] != header:
                _read_npy(name, content[name], target.shape, target.dtype)
                raise MemberError(
                    name, f"not as tools/shard.py writes it; expected {target.dtype} {target.shape}"
                )
        if depth["codec"] == "png":
            out.depth[:] = _read_png(depth["member"], content[depth["member"]], out.depth.shape)
    if rgb["codec"] != "raw":
        read_rgb(rgb["member"], content[rgb["member"]], out.rgb, rgb.get("resize", False))


def npy_kind(name: str, content: memoryview) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, dtype and length of a `.npy`'s header."""
    file = BytesIO(content[:20000])  # NumPy takes no header of more than 10000
    try:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    except (
        Exception
    ) as err:  # NumPy raises KeyError, TokenError, RecursionError ... on what is no header
        raise MemberError(name, f"not a .npy ({err})") from err
    return shape, fortran, dtype, file.tell()


def _read_npy(
    name: str,
    content: memoryview,
    shape: tuple[int, ...] | None = None,
    dtype: np.dtype | None = None,
) -> np.ndarray:
    """A view of a `.npy`'s numbers, once its header says what was expected: nothing is allocated,
    copied or unpickled.
    """
    found_shape, fortran, found, start = npy_kind(name, content)
    if (
        (shape is not None and (found_shape != shape or fortran))
        or (dtype is not None and found != dtype)
        or found.kind not in "fub"
    ):
        raise MemberError(
            name, f"{found} {found_shape}; expected {dtype or 'plain numbers'} {shape or ''}"
        )
    if (
        min(found_shape, default=1) < 0
        or len(content) != start + int(np.prod(found_shape, dtype=object)) * found.itemsize
    ):
        raise MemberError(name, f"{len(content)} bytes do not fit {found} {found_shape}")
    return np.frombuffer(content, found, offset=start).reshape(
        found_shape, order="F" if fortran else "C"
    )


def _read_png(name: str, content: memoryview, shape: tuple[int, int] | None = None) -> np.ndarray:
    """A grey picture of 8 or 16 bits."""
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


def read_rgb(
    name: str, content: memoryview, out: np.ndarray | None, resize: bool = False
) -> tuple[int, int]:
    """A JPEG or PNG into `out` (h, w, 3) uint8, resized to it where that may be.

    Returns the picture's own height and width.

    out   None: only see that it can be decoded
    """
    try:
        image = None if is_jpeg(name) else Image.open(BytesIO(content), formats=["PNG"])
        found = image.size[::-1] if image else simplejpeg.decode_jpeg_header(content)[:2]
        if found[0] * found[1] > Image.MAX_IMAGE_PIXELS or (image and image.mode.startswith("I")):
            raise ValueError(
                f"{found[0]}x{found[1]}, mode {image.mode if image else 'JPEG'}; expected 8 bits a"
                " channel, not too large to be a picture"
            )
        if (
            out is not None and found == out.shape[:2]
        ):  # known before anything of that size is written
            if image:
                out[:] = np.asarray(image.convert("RGB"))
            else:
                simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=out)
        elif out is None or resize:
            rgb = (
                np.asarray(image.convert("RGB"))
                if image
                else simplejpeg.decode_jpeg(content, colorspace="RGB")
            )
            if out is not None:
                out[:] = resize_rgb(rgb, out.shape[:2])
    except Exception as err:  # Pillow raises much besides OSError
        raise MemberError(name, f"cannot be decoded ({err})") from err
    if out is not None and found != out.shape[:2] and not resize:
        raise MemberError(name, f"{found[0]}x{found[1]}; expected {out.shape[0]}x{out.shape[1]}")
    return found


def is_jpeg(name: str) -> bool:
    return name.lower().endswith(("jpg", "jpeg"))


def read_external_depth(
    raw: dict[str, Any], content: dict[str, memoryview], shape: tuple[int, int] | None = None
) -> np.ndarray:
    """(H, W) float32 mm out of the members of others: 0 or less, NaN or inf where nothing is valid.

    raw    index.json: its `depth` (Z alone or X, Y, Z, times unit_mm) and `mask` (at the depth's
           own size, not 0: counts)
    shape  the size it must have, or gets by the nearest pixels where depth["resize"] is true
    """
    depth, mask = raw["depth"], raw["mask"]["member"]
    name = depth["member"]
    values = _read_plain(name, content[name])
    if values.ndim == 3 and values.shape[2] in (1, 3):
        values = values[:, :, -1]
    if values.ndim != 2 or 0 in values.shape or values.dtype.name != depth["dtype"]:
        raise MemberError(
            name,
            f"{values.dtype} {values.shape}; expected {depth['dtype']} (H, W), (H, W, 1) or (H,"
            " W, 3)",
        )
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a float64 beyond float32 becomes inf, which is not valid
        z = np.multiply(values, depth["unit_mm"], dtype=np.float32, casting="unsafe")
    if mask:
        valid = _read_plain(mask, content[mask])
        if valid.shape != z.shape or valid.itemsize != 1:
            raise MemberError(
                mask, f"{valid.dtype} {valid.shape}; expected 8 bits {z.shape}, as the depth"
            )
        z[valid == 0] = 0
    if shape and z.shape != shape:
        if not depth["resize"]:
            raise MemberError(name, f"{z.shape[0]}x{z.shape[1]}; expected {shape[0]}x{shape[1]}")
        z = resize_nearest(z, shape)
    return z


def _read_plain(name: str, content: memoryview) -> np.ndarray:
    return (_read_png if name.lower().endswith("png") else _read_npy)(name, content)
