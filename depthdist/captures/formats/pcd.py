"""PCL's `.pcd`: an organised cloud, ascii, binary or compressed, with or without colors."""

from __future__ import annotations

import struct
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from depthdist.captures.formats.point_columns import arrange_columns
from depthdist.captures.formats.stored_points import (
    MAX_PIXELS,
    PointFormat,
    StoredPoints,
    read_head,
)
from depthdist.core.errors import BadFile, one_reason

if TYPE_CHECKING:
    from pypcd4 import MetaData

MAX_HEADER = 1 << 14  # bytes
MAX_LZF_RATIO = 264 / 3  # a match of 264 bytes takes 3


def read_pcd(path: Path, content: bytes) -> StoredPoints:
    """Return the points, colors and SNR of a `.pcd` file; raise BadFile."""
    from pypcd4 import PointCloud

    header = _read_header(path, content[:MAX_HEADER], len(content))
    try:
        points = PointCloud.from_fileobj(BufferedReader(BytesIO(content))).pc_data.reshape(-1)
        if len(points) != header.points:
            raise ValueError(f"{len(points):,} points; expected {header.points:,}")
    except Exception as err:  # pypcd4 raises ValueError, RuntimeError, struct.error, KeyError ...
        raise BadFile(path, f"its points cannot be read ({one_reason(err)})") from err
    columns = {name: points[name] for name in points.dtype.names or ()}
    return arrange_columns(path, columns, (header.height, header.width))


def read_pcd_size(path: Path) -> tuple[int, int]:
    """Return (H, W) from the header of a `.pcd` file; raise BadFile."""
    header = _read_header(path, read_head(path, MAX_HEADER), path.stat().st_size)
    return header.height, header.width


def _read_header(path: Path, head: bytes, num_bytes: int) -> MetaData:
    """Return the header of a file of so many bytes, of which `head` is the beginning."""
    from pydantic import ValidationError
    from pypcd4 import MetaData

    before, data, after = head.partition(b"\nDATA ")
    kind, newline, _ = after.partition(b"\n")
    if not newline:
        raise BadFile(path, f"starts with {head[:8]!r}; expected the header of a .pcd file")
    start = len(before + data + kind + newline)
    try:
        lines = head[:start].decode().splitlines()
        header = MetaData.parse_header([line.strip() for line in lines])
        itemsize = header.build_dtype().itemsize
    except ValidationError as err:
        wrong = ", ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in err.errors())
        raise BadFile(path, f"has a header that is no .pcd file's ({one_reason(wrong)})") from err
    except Exception as err:  # pypcd4 raises ValueError, KeyError, IndexError, TypeError ...
        raise BadFile(path, f"not a .pcd file that can be read ({one_reason(err)})") from err
    if header.points != header.width * header.height or not 0 < header.points <= MAX_PIXELS:
        raise BadFile(
            path,
            f"declares {header.points:,} points, {header.height:,} rows of {header.width:,};"
            " expected the same number",
        )
    needed = header.points * itemsize
    rest = num_bytes - start
    if header.data.value == "ascii":
        needed = header.points * 2 * sum(header.count) - 1
    elif header.data.value != "binary":
        packed, unpacked = struct.unpack("<II", head[start : start + 8].ljust(8, b"\0"))
        if unpacked != needed or unpacked > packed * MAX_LZF_RATIO:
            raise BadFile(path, f"unpacks {packed:,} to {unpacked:,} bytes; expected {needed:,}")
        needed = packed + 8
    if rest < needed:
        raise BadFile(path, f"truncated: {rest:,} bytes of points; expected {needed:,}")
    return header


PCD = PointFormat("Point Cloud Library", (".pcd",), read_pcd, read_pcd_size, has_rgb=True)
