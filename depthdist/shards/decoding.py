"""Decode one sample: the bytes of its members become arrays.

read_sample(fd, ref, index, out)     from the tar into `out`, every byte verified by CRC-32
read_stored_rgb(fd, ref, index)      its image alone, at its own size
read_stored_depth(fd, ref, index)    its depth and mask alone
read_stored_rows(fd, ref, name, ...) some rows of an array, not verified
decode_sample(members, index)        from bytes in memory, into new arrays
decode_label(meta["grooves"])        the groove label that meta.json holds
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from depthdist.core.files import parse_json, read_at, read_into
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.shards.encoding import npy_header, quantize
from depthdist.shards.format import crc32
from depthdist.shards.index import Damaged, Index, SampleRef
from depthdist.shards.member_formats import (
    MemberError,
    decode_rgb,
    read_external_depth,
    read_npy,
    read_npy_header,
    read_png,
    read_raw_rgb,
    read_rgb,
)
from depthdist.shards.sample_arrays import Arrays, empty_arrays

MAX_ROWS_HEADER = 1024  # bytes; what depthdist shard writes has 128


def decode_label(text: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the groove label (H, W) uint16 that `encode_label` was given.

    size  the height and width that it must have

    raises ValueError where it is none, or of another size
    """
    return read_png("meta.json, grooves", memoryview(base64.b64decode(text)), size)


# ------------------------------------------------------------------------------------------ reading


def read_sample(fd: int, ref: SampleRef, index: Index, out: Arrays) -> None:
    """Read one sample's bytes from its tar, verify them, and decode them into `out`.

    Depth and mask of our own shards go from the file straight into `out`; tar headers are read and
    verified with the rest.

    raises Damaged, which names shard, sample, member and offset
    """
    pieces, content = _plan_reads(ref, index, out)
    crc = 0
    if read_into(fd, pieces, ref.start) == ref.length:
        for piece in pieces:
            crc = crc32(piece, crc)
    if crc != ref.crc:
        raise _diagnose(fd, ref)
    try:
        _decode(content, index, out)
    except MemberError as err:
        offset = ref.members[err.member][0]
        raise _damaged(ref, err.member, offset, str(err)) from err


def read_stored_rgb(fd: int, ref: SampleRef, index: Index) -> np.ndarray:
    """Return a sample's image (H, W, 3) uint8 as it is stored, verified by CRC-32; raise Damaged.

    The array may be read-only.
    """
    name = index.raw["rgb"]["member"]
    try:
        return decode_rgb(name, _read_member(fd, ref, name))
    except MemberError as err:
        raise _damaged(ref, name, ref.members[name][0], str(err)) from err


def read_stored_depth(fd: int, ref: SampleRef, index: Index) -> tuple[np.ndarray, np.ndarray]:
    """Return a sample's depth (H, W) uint16, in steps, and mask (H, W) bool; raise Damaged.

    Both are verified by CRC-32.
    """
    names = [index.raw[part]["member"] for part in ("depth", "mask")]
    content = {name: _read_member(fd, ref, name) for name in names if name is not None}
    out = empty_arrays(index)
    try:
        for name, (header, target) in _direct_members(index, out).items():
            if name in content and len(content[name]) == len(header) + target.nbytes:
                target.data.cast("B")[:] = content[name][len(header) :]
                content[name] = content[name][: len(header)]
        _decode_depth(content, index, out)
    except MemberError as err:
        raise _damaged(ref, err.member, ref.members[err.member][0], str(err)) from err
    return out.depth, unpack_mask(out.mask, index.depth_size.width)


def read_stored_rows(
    fd: int, ref: SampleRef, name: str, dtype: str, shape: tuple[int, ...], rows: slice
) -> np.ndarray | None:
    """Return some rows of an array that a `.npy` member holds, None where it has another shape.

    rows  from 0 to the number of rows, without a step

    Only these rows are read, so the member's CRC-32 is not verified. Raises Damaged where the
    member is no such file, or cut off.
    """
    offset, size, _ = ref.members[name]
    header = memoryview(read_at(fd, min(size, MAX_ROWS_HEADER), offset))
    try:
        found_shape, fortran, found_dtype, start = read_npy_header(name, header)
        if found_shape != shape or fortran or found_dtype != np.dtype(dtype):
            return None
        row_bytes = int(np.prod(shape[1:])) * found_dtype.itemsize
        wanted = (rows.stop - rows.start) * row_bytes
        content = read_at(fd, wanted, offset + start + rows.start * row_bytes)
        if size != start + shape[0] * row_bytes or len(content) != wanted:
            raise MemberError(name, f"{size} bytes do not hold {found_dtype} {shape}")
    except MemberError as err:
        raise _damaged(ref, name, offset, str(err)) from err
    return np.frombuffer(content, found_dtype).reshape(-1, *shape[1:])


def unpack_mask(packed: np.ndarray, width: int) -> np.ndarray:
    """Return the mask (H, W) bool that is stored as eight pixels to a byte."""
    return np.unpackbits(packed, axis=1, count=width).view(bool)


def _read_member(fd: int, ref: SampleRef, name: str) -> memoryview:
    """Return a member's bytes, verified by its CRC-32; raise Damaged."""
    offset, size, crc = ref.members[name]
    content = read_at(fd, size, offset)
    reason = _member_problem(content, size, crc)
    if reason:
        raise _damaged(ref, name, offset, reason)
    return memoryview(content)


def _plan_reads(
    ref: SampleRef, index: Index, out: Arrays
) -> tuple[list[memoryview], dict[str, memoryview]]:
    """Return buffers that together take the sample's bytes, and each member's bytes in them.

    Of a member that is read straight into `out` the latter are its header.
    """
    pieces: list[memoryview] = []
    content: dict[str, memoryview] = {}
    waiting: list[tuple[str, int, int]] = []  # members of the piece that is not complete
    at = ref.start

    def close_piece(end: int) -> None:
        nonlocal at
        piece = memoryview(bytearray(end - at))
        pieces.append(piece)
        for name, start, stop in waiting:
            content[name] = piece[start - at : stop - at]
        waiting.clear()
        at = end

    direct = _direct_members(index, out)
    for name, (offset, size, _) in sorted(ref.members.items(), key=lambda member: member[1]):
        header, target = direct.get(name, (b"", None))
        if target is not None and size == len(header) + target.nbytes:
            waiting.append((name, offset, offset + len(header)))
            close_piece(offset + len(header))
            pieces.append(target.data.cast("B"))
            at = offset + size
        else:
            waiting.append((name, offset, offset + size))
    close_piece(ref.start + ref.length)
    return pieces, content


def _direct_members(index: Index, out: Arrays) -> dict[str, tuple[bytes, np.ndarray]]:
    """Return the header and the array of `out` of each member that is stored as such, by name."""
    depth, mask, rgb = index.raw["depth"], index.raw["mask"], index.raw["rgb"]
    found = {}
    if depth["codec"] == "npy" and depth["steps"]:
        found[depth["member"]] = (npy_header(out.depth.shape, "<u2"), out.depth)
    if mask.get("packed"):
        found[mask["member"]] = (npy_header(out.mask.shape, "|u1"), out.mask)
    if rgb["codec"] == "raw" and not rgb.get("resize"):
        found[rgb["member"]] = (npy_header(out.rgb.shape, "|u1"), out.rgb)
    return found


def _diagnose(fd: int, ref: SampleRef) -> Damaged:
    """Find the member of the sample that is not what the index says."""
    for name, (offset, size, crc) in ref.members.items():
        problem = _member_problem(read_at(fd, size, offset), size, crc)
        if problem:
            return _damaged(ref, name, offset, problem)
    reason = (
        f"the members are whole, the bytes between them are not ({ref.length:,} bytes, CRC-32"
        f" {ref.crc:08x} expected)"
    )
    return _damaged(ref, "tar header", ref.start, reason)


def _member_problem(content: bytes, size: int, crc: int) -> str:
    """Return why a member's bytes are not those that were written, "" where they are."""
    if len(content) != size:
        return f"{len(content):,} bytes, expected {size:,}: the shard is cut off"
    if crc32(content) != crc:
        return f"CRC-32 is {crc32(content):08x}, expected {crc:08x}"
    return ""


def _damaged(ref: SampleRef, member: str, offset: int, reason: str) -> Damaged:
    return Damaged(ref.shard, ref.key, ref.stem, member, offset, reason)


# ----------------------------------------------------------------------------------------- decoding


def decode_sample(members: dict[str, bytes], index: Index) -> dict[str, Any]:
    """Decode one sample from its members' bytes.

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
        for name, (header, target) in _direct_members(index, out).items():
            if len(content[name]) == len(header) + target.nbytes:
                target.data.cast("B")[:] = content[name][len(header) :]
                content[name] = content[name][: len(header)]
        _decode(content, index, out)
        meta_member = index.raw["meta"]["member"]
        meta = parse_json(members[meta_member]) if meta_member else {}
    except MemberError as err:
        raise ValueError(f"{err.member}: {err}") from err
    return {
        "rgb": out.rgb,
        "depth": out.depth,
        "mask": unpack_mask(out.mask, index.depth_size.width),
        "meta": meta,
    }


def _decode(content: dict[str, memoryview], index: Index, out: Arrays) -> None:
    """Decode the members' bytes into `out`.

    Of members whose arrays are in `out` already, `content` has only the header, which is checked.
    """
    _decode_depth(content, index, out)
    rgb = index.raw["rgb"]
    if rgb["codec"] != "raw":
        read_rgb(rgb["member"], content[rgb["member"]], out.rgb, rgb.get("resize", False))
    elif rgb.get("resize"):
        image = read_raw_rgb(rgb["member"], content[rgb["member"]])
        out.rgb[:] = image if image.shape == out.rgb.shape else resize_rgb(image, out.rgb.shape[:2])


def _decode_depth(content: dict[str, memoryview], index: Index, out: Arrays) -> None:
    """Decode the bytes of depth and mask into `out`, and check the headers of what is there."""
    if index.raw.get("foreign"):
        z = read_external_depth(index.raw, content, out.depth.shape)
        out.depth[:] = quantize(z, index.near_mm, index.far_mm)[0]
        out.mask[:] = np.packbits(out.depth > 0, axis=1)
    else:
        _check_headers(content, index, out)
        depth = index.raw["depth"]
        if depth["codec"] == "png":
            out.depth[:] = read_png(depth["member"], content[depth["member"]], out.depth.shape)


def _check_headers(content: dict[str, memoryview], index: Index, out: Arrays) -> None:
    for name, (header, target) in _direct_members(index, out).items():
        if name in content and content[name] != header:
            read_npy(name, content[name], target.shape, target.dtype)
            raise MemberError(
                name, f"not as depthdist shard writes it; expected {target.dtype} {target.shape}"
            )
