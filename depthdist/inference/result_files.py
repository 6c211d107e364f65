"""Files that predictions are written to: images, arrays, point clouds."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from depthdist.captures.found_files import PREDICTED
from depthdist.geometry.depth_range import DepthRange

VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
)
PLY_TYPES = {"f": "float", "u": "uchar"}  # by NumPy's kind


MAP_MEASURED, MAP_FILLED, MAP_REFUSED = 255, 128, 0  # levels of NAME_filled_map.png


def result_suffixes(bounds: DepthRange, fill: bool = False) -> dict[str, str]:
    """Return how the file names of each of RESULT_KINDS end; with `fill` of the map as well."""
    unit = f"{png_unit(bounds):g}mm"
    if not fill:
        depth = {"npy": "depth.npy", "png": f"depth_{unit}.png", "sigma": "sigma.npy"}
        return {**depth, "colour": "colour.png", "figure": "figure.png", "ply": "cloud.ply"}
    return {
        "npy": "filled.npy",
        "png": f"filled_{unit}.png",
        "colour": "filled_colour.png",
        "figure": "filled_figure.png",
        "ply": "filled_cloud.ply",
        "map": "filled_map.png",
        "sigma": "filled_sigma.npy",
    }


def png_unit(bounds: DepthRange) -> float:
    """Return the unit of the 16-bit PNG, mm: the finest of 0.1, 1, 10 ... that holds the bounds."""
    unit = 0.1
    while bounds.far_mm >= 65000 * unit:
        unit *= 10
    return unit


def write_png(file: Path | BinaryIO, depth_mm: np.ndarray, bounds: DepthRange) -> None:
    """Write the 16-bit PNG, with its unit in the text chunk `unit_mm`.

    0 where a depth, measured beyond the bounds, is more than the unit can hold, and where it was
    refused (NaN).
    """
    unit = png_unit(bounds)
    text = PngImagePlugin.PngInfo()
    text.add_text("unit_mm", f"{unit:g}")
    levels = np.rint(depth_mm / unit)
    levels = np.where(levels <= 65535, levels, 0).astype(np.uint16)  # False for NaN
    Image.fromarray(levels).save(file, "PNG", pnginfo=text)


def colorize_depth(depth_mm: np.ndarray, bounds: DepthRange) -> np.ndarray:
    """Return (H, W, 3) uint8: near red, far blue, linear in 1/z over the bounds.

    The same depth has the same color in every image of a run; NaN is dark grey.
    """
    from depthdist.evaluation.figures import NEAR_TO_FAR  # matplotlib takes half a second

    low = 1 / bounds.far_mm
    high = 1 / bounds.near_mm
    return NEAR_TO_FAR(1 - np.clip((1 / depth_mm - low) / (high - low), 0, 1), bytes=True)[..., :3]


def write_figure(
    path: Path,
    rgb: np.ndarray,
    depth_mm: np.ndarray,
    truth_mm: np.ndarray | None,
    title: str,
    fill: bool = False,
) -> None:
    """Write RGB | prediction, with ground truth and error if there is a ground truth.

    fill  RGB | measured | filled instead
    """
    # matplotlib takes half a second
    from depthdist.evaluation.figures import figure, fill_figure, save_figure

    if fill:
        assert truth_mm is not None
        save_figure(fill_figure(rgb, depth_mm, truth_mm, title=title), path)
    else:
        save_figure(figure(rgb, depth_mm, truth_mm, title=title), path)


def write_map(path: Path, measured: np.ndarray, refused: np.ndarray) -> None:
    """Write which pixels (H, W) bool were measured, filled and refused, an 8-bit PNG."""
    levels = np.where(measured, MAP_MEASURED, MAP_FILLED)
    levels = np.where(refused, MAP_REFUSED, levels).astype(np.uint8)
    Image.fromarray(levels).save(path)


def write_ply(path: Path, xyz: np.ndarray, rgb: np.ndarray) -> None:
    """Write the points (..., 3) mm that are finite, with their colors (..., 3) uint8."""
    path.write_bytes(encode_ply(xyz, rgb))


def encode_ply(xyz: np.ndarray, rgb: np.ndarray) -> bytes:
    """Return the content of the file that `write_ply` writes."""
    xyz = np.asarray(xyz, np.float32).reshape(-1, 3)
    rgb = np.asarray(rgb, np.uint8).reshape(-1, 3)
    assert len(xyz) == len(rgb), (xyz.shape, rgb.shape)
    finite = np.isfinite(xyz).all(axis=1)
    vertices = np.empty(int(finite.sum()), VERTEX)
    for axis, name in enumerate(("x", "y", "z")):
        vertices[name] = xyz[finite, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = rgb[finite, channel]
    properties = "".join(
        f"property {PLY_TYPES[VERTEX[name].kind]} {name}\n" for name in VERTEX.names or ()
    )
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment millimetres, camera frame: x right, y down,"
        f" z away from the lens\ncomment {PREDICTED}\nelement vertex {len(vertices)}\n"
        f"{properties}end_header\n"
    )
    return header.encode("ascii") + vertices.tobytes()
