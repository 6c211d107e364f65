"""Files that predictions are written to: images, arrays, point clouds."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from depthdist.evaluation.figures import NEAR_TO_FAR
from depthdist.geometry.depth_range import DepthRange

pass


RESULT_KINDS = ("npy", "png", "colour", "figure", "ply")


def result_suffixes(bounds: DepthRange) -> dict[str, str]:
    """How the files of each kind end."""
    return {
        "npy": "depth.npy",
        "png": f"depth_{png_unit(bounds):g}mm.png",
        "colour": "colour.png",
        "figure": "figure.png",
        "ply": "cloud.ply",
    }


def png_unit(bounds: DepthRange) -> float:
    """Millimetres that one unit of the 16-bit PNG is: the finest of 0.1, 1, 10 ... that the bounds
    fit into.
    """
    unit = 0.1
    while bounds.far_mm >= 65000 * unit:
        unit *= 10
    return unit


def write_png(file: Path | BinaryIO, depth_mm: np.ndarray, bounds: DepthRange) -> None:
    """The 16-bit PNG, whose unit stands in its text chunk `unit_mm`."""
    unit = png_unit(bounds)
    text = PngImagePlugin.PngInfo()
    text.add_text("unit_mm", f"{unit:g}")
    levels = np.clip(np.rint(depth_mm / unit), 0, 65535).astype(np.uint16)
    Image.fromarray(levels).save(file, "PNG", pnginfo=text)


def colorize_depth(depth_mm: np.ndarray, bounds: DepthRange) -> np.ndarray:
    """(H, W, 3) uint8: near red, far blue, even in 1/z over the bounds, so that colours of two
    pictures compare.
    """
    low, high = 1 / bounds.far_mm, 1 / bounds.near_mm
    return NEAR_TO_FAR(1 - np.clip((1 / depth_mm - low) / (high - low), 0, 1), bytes=True)[..., :3]


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
