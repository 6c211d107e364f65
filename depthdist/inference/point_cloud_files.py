"""Coloured point clouds as .ply, binary: every viewer opens them.

    write_ply(path, points(depth_mm, rays), rgb)

x, y, z are float32 mm in the camera's frame, +Z away from the lens, +Y down; red, green, blue are
bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
)


def write_ply(path: Path, xyz: np.ndarray, rgb: np.ndarray) -> None:
    """Write the points (..., 3) mm that are finite, with their colours (..., 3) uint8."""
    path.write_bytes(as_ply(xyz, rgb))


def as_ply(xyz: np.ndarray, rgb: np.ndarray) -> bytes:
    """The same file's bytes."""
    xyz, rgb = np.asarray(xyz, np.float32).reshape(-1, 3), np.asarray(rgb, np.uint8).reshape(-1, 3)
    assert len(xyz) == len(rgb), (xyz.shape, rgb.shape)
    there = np.isfinite(xyz).all(axis=1)
    vertices = np.empty(int(there.sum()), VERTEX)
    for axis, name in enumerate(("x", "y", "z")):
        vertices[name] = xyz[there, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = rgb[there, channel]
    kinds = {"f": "float", "u": "uchar"}
    properties = "".join(f"property {kinds[VERTEX[name].kind]} {name}\n" for name in VERTEX.names)
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment millimetres, camera frame: x right, y down,"
        f" z away from the lens\nelement vertex {len(vertices)}\n{properties}end_header\n"
    )
    return header.encode("ascii") + vertices.tobytes()
