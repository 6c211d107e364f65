"""Stanford's `.ply`: an organised cloud, ascii or binary, with or without colors.

Rows and columns are read from the header, `obj_info num_cols` and `num_rows` or comments like
`width 1944`, or from the viewport of PCL's `camera`. A `range_grid`, of PCL as well, tells which
pixels have a vertex. Without them the file is a list of points. The header is plyfile's matter; the
vertices are taken from the bytes at once, which plyfile does only for files on a disk. Faces are
not read.
"""

from __future__ import annotations

import re
from io import SEEK_END, BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from depthdist.captures.formats.point_columns import arrange_columns
from depthdist.captures.formats.stored_points import (
    MAX_PIXELS,
    Array,
    PointFormat,
    StoredPoints,
    read_head,
)
from depthdist.core.errors import BadFile, one_reason

MAX_HEADER = 1 << 16  # bytes
MAX_TAIL = 1 << 12  # bytes that may hold the last element, PCL's camera
MAX_DIGITS = 12  # of a count
COLUMNS = re.compile(r"\b(?:num_cols|columns|cols|width)\b\W*(\d{1,9})\b", re.IGNORECASE)
ROWS = re.compile(r"\b(?:num_rows|rows|height)\b\W*(\d{1,9})\b", re.IGNORECASE)


class Header(NamedTuple):
    """The header of a `.ply` file.

    size          (H, W) as it says, or 1 and the number of vertices or pixels
    num_vertices  how many follow at `start`, of `dtype`
    num_cells     pixels of a `range_grid` behind the vertices, 0 without one
    cell_dtypes   of a cell's number of vertices, and of the vertex, with their byte order
    """

    size: tuple[int, int]
    start: int
    is_text: bool
    dtype: np.dtype
    num_vertices: int
    num_cells: int
    cell_dtypes: tuple[str, str]


def read_ply(path: Path, content: bytes) -> StoredPoints:
    """Return the points, colors and SNR of a `.ply` file; raise BadFile."""
    header = _read_header(path, content[:MAX_HEADER], content[-MAX_TAIL:], len(content))
    try:
        read = _read_text if header.is_text else _read_binary
        columns = read(content, header)
    except (ValueError, IndexError, OverflowError) as err:
        raise BadFile(path, f"its vertices cannot be read ({one_reason(err)})") from err
    return arrange_columns(path, columns, header.size)


def read_ply_size(path: Path) -> tuple[int, int]:
    """Return (H, W) from the header of a `.ply` file; raise BadFile."""
    head = read_head(path, MAX_HEADER)
    with open(path, "rb") as file:
        num_bytes = file.seek(0, SEEK_END)
        file.seek(max(0, num_bytes - MAX_TAIL))
        return _read_header(path, head, file.read(), num_bytes).size


# ----------------------------------------------------------------------------------------- header


def _read_header(path: Path, head: bytes, tail: bytes, num_bytes: int) -> Header:
    """Return the header of a file of so many bytes, which begins and ends with head and tail."""
    try:
        header = _parse_header(path, head, tail)
    except BadFile:
        raise
    except Exception as err:  # plyfile raises PlyParseError, ValueError, KeyError, MemoryError ...
        raise BadFile(path, f"not a .ply file that can be read ({one_reason(err)})") from err
    bytes_each = 2 * len(header.dtype.names or ()) if header.is_text else header.dtype.itemsize
    needed = header.start + header.num_vertices * bytes_each + header.num_cells - 1
    if num_bytes < needed or max(header.num_vertices, header.num_cells) > MAX_PIXELS:
        raise BadFile(
            path,
            f"truncated: {num_bytes:,} bytes; expected {needed:,} or more for"
            f" {header.num_vertices:,} vertices",
        )
    return header


def _parse_header(path: Path, head: bytes, tail: bytes) -> Header:
    from plyfile import PlyData, PlyListProperty

    newline = b"\r\n" if head[3:5] == b"\r\n" else head[3:4]
    start = head.find(newline + b"end_header" + newline) + len(newline)
    if head[:3] != b"ply" or start < 4:
        raise BadFile(path, f"starts with {head[:8]!r}; expected a .ply file with its end_header")
    start += len(b"end_header" + newline)
    lines = head[:start].decode("ascii", "replace").split(newline.decode())
    counts: dict[str, int] = {}
    for number, line in enumerate(lines):  # plyfile gets a header of 0 of each element
        words = line.split()
        if words[:1] == ["element"] and len(words) == 3:
            if not (words[2].isdigit() and len(words[2]) <= MAX_DIGITS):
                raise BadFile(path, f"has {line[:80]!r}; expected a number of elements")
            counts[words[1]] = int(words[2])
            lines[number] = f"element {words[1]} 0"
    ply = PlyData.read(BytesIO("\n".join(lines).encode("ascii", "replace")))
    if list(counts)[:1] != ["vertex"] or counts["vertex"] == 0:
        raise BadFile(path, f"holds {', '.join(counts) or 'nothing'}; expected vertices first")
    lists = [one.name for one in ply["vertex"].properties if isinstance(one, PlyListProperty)]
    if lists:
        raise BadFile(path, f"vertices have the list {lists[0]}; expected numbers alone")
    num_cells = 0
    cell_dtypes = ("", "")
    behind = [name for name in counts if counts[name] and name != "vertex"]  # PCL has 0 faces
    if behind[:1] == ["range_grid"]:
        num_cells = counts["range_grid"]
        (cell,) = ply["range_grid"].properties
        cell_dtypes = cell.list_dtype(ply.byte_order)
    text = "\n".join([*ply.obj_info, *ply.comments])
    if behind == ["camera"]:
        text += _describe_viewport(ply["camera"].dtype(ply.byte_order), ply.text, tail)
    return Header(
        size=_find_size(text, num_cells or counts["vertex"]),
        start=start,
        is_text=ply.text,
        dtype=ply["vertex"].dtype(ply.byte_order),
        num_vertices=counts["vertex"],
        num_cells=num_cells,
        cell_dtypes=cell_dtypes,
    )


def _describe_viewport(camera: np.dtype, is_text: bool, tail: bytes) -> str:
    """Return width and height as PCL's camera, the last element of the file, has them."""
    names = camera.names or ()
    if is_text:
        values = tail.decode("latin-1").split()[-len(names) :]
    else:
        values = [str(value) for value in np.frombuffer(tail[-camera.itemsize :], camera)[0]]
    found = dict(zip(names, values))
    return f"\nwidth {found.get('viewportx')}\nheight {found.get('viewporty')}"


def _find_size(text: str, num_pixels: int) -> tuple[int, int]:
    """Return (H, W) as comments and obj_info say it, 1 and W where they do not, or not rightly."""
    found = [pattern.search(text) for pattern in (ROWS, COLUMNS)]
    rows, columns = (int(one[1]) if one else 0 for one in found)
    return (rows, columns) if rows * columns == num_pixels else (1, num_pixels)


# --------------------------------------------------------------------------------------- vertices


def _read_binary(content: bytes, header: Header) -> dict[str, Array]:
    """Return the columns of a binary file, one value a pixel."""
    points = np.frombuffer(content, header.dtype, header.num_vertices, header.start)
    columns = {name: points[name] for name in header.dtype.names or ()}
    if not header.num_cells:
        return columns
    count_dtype, index_dtype = map(np.dtype, header.cell_dtypes)
    if count_dtype.itemsize != 1:
        raise ValueError(f"range_grid counts as {count_dtype}, expected uchar")
    position = header.start + points.nbytes
    places = np.full(header.num_cells, -1)
    for cell in range(header.num_cells):
        if content[position]:
            places[cell] = position + 1
        position += 1 + content[position] * index_dtype.itemsize
    bytes_of_indices = places[places >= 0, None] + np.arange(index_dtype.itemsize)
    indices = np.frombuffer(content, np.uint8)[bytes_of_indices].view(index_dtype)[:, 0]
    return _spread(columns, places >= 0, indices)


def _read_text(content: bytes, header: Header) -> dict[str, Array]:
    """Return the columns of an ascii file, one value a pixel."""
    file = TextIOWrapper(BytesIO(content), "ascii", errors="replace")
    file.seek(header.start)
    lines = islice(file, header.num_vertices)
    points = np.loadtxt(lines, header.dtype, comments=None, ndmin=1)
    if len(points) != header.num_vertices:
        raise ValueError(f"{len(points):,} vertices, expected {header.num_vertices:,}")
    columns = {name: points[name] for name in header.dtype.names or ()}
    if not header.num_cells:
        return columns
    cells = [line.split() for line in islice(file, header.num_cells)]
    used = np.array([cell[0] != "0" for cell in cells])
    if len(used) != header.num_cells:
        raise ValueError(f"range_grid of {len(used):,} pixels, expected {header.num_cells:,}")
    return _spread(columns, used, np.array([int(cell[1]) for cell in cells if cell[0] != "0"]))


def _spread(columns: dict[str, Array], used: Array, indices: Array) -> dict[str, Array]:
    """Return columns with a value for each pixel, 0 where it has no vertex.

    used     (pixels,) bool
    indices  (used pixels,): the vertex of each
    """
    found = {}
    for name, column in columns.items():
        found[name] = np.zeros(len(used), column.dtype)
        found[name][used] = column[indices]
    return found


PLY = PointFormat("Stanford PLY", (".ply",), read_ply, read_ply_size, has_rgb=True)
