"""Encode one capture as the members of a sample."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from depthdist.captures.edge_agreement import EdgeScores, describe_capture, edge_scores
from depthdist.captures.flying_pixels import find_flying
from depthdist.captures.layouts import CapturePair
from depthdist.captures.near_duplicates import fingerprint
from depthdist.captures.read_options import NO_OPTIONS, ReadOptions
from depthdist.captures.readers import Capture, read_bytes, read_capture, read_label
from depthdist.captures.units import unit_remark
from depthdist.core.errors import BadFile
from depthdist.core.settings import Size
from depthdist.geometry.camera import fit_intrinsics
from depthdist.geometry.camera_view import find_view_problem
from depthdist.geometry.image_resizing import resize_nearest, resize_rgb
from depthdist.shards.format import LEVELS, Encoding, Item, as_json
from depthdist.shards.statistics import depth_stats


class EncodedSample(NamedTuple):
    """A capture as a sample of a shard, and what the commit record keeps of it.

    members      in the tar's order
    stats        of its depths, as `depth_stats` gives them
    fingerprint  of the image, one FINGERPRINT
    warnings     what looks wrong with it, a line each
    edges        the scores of `edge_agreement`, None where it was not checked or cannot tell
    """

    members: dict[str, bytes]
    stats: dict[str, Any]
    fingerprint: np.ndarray
    warnings: list[str]
    edges: EdgeScores | None


def encode_sample(
    item: Item, root: Path, encoding: Encoding, options: ReadOptions = NO_OPTIONS
) -> EncodedSample:
    """Return one capture as a sample, raise BadFile where it cannot be used."""
    sources, contents = _sources(item.pair, root)
    capture = read_capture(item.pair, contents, options)
    rgb, xyz = capture.image, capture.xyz
    z = np.ascontiguousarray(xyz[:, :, 2])
    warnings, edges = _check(item.pair, capture, z) if encoding.check_view else ([], None)
    if z.shape != encoding.depth_size:
        z = resize_nearest(z, encoding.depth_size)
    depth, counts = quantize(z, encoding.near_mm, encoding.far_mm)
    mask = depth > 0
    if not mask.any():
        measured = (
            f"{counts['measured_min_mm']:.1f} .. {counts['measured_max_mm']:.1f} mm"
            if counts["measured"]
            else "nowhere measured at this size"
        )
        unit = unit_remark(float(np.median(z[z > 0]))) if counts["measured"] else None
        raise BadFile(
            item.pair.xyz,
            f"no valid pixel: Z is {measured}, expected {encoding.near_mm:g} < Z <="
            f" {encoding.far_mm:g} mm (--near, --far){f'; {unit}' if unit else ''}",
        )
    counts["flying"] = count_flying(z, depth)
    stats = {
        "raw_bytes": sum(map(len, contents.values())),
        **depth_stats(counts, encoding.step_mm, item.pair.stem),
        "no_value": {value: [pixels, 1] for value, pixels in capture.no_value.items()},
    }
    meta = {
        "stem": item.pair.stem,
        "session": item.session,
        **sources,
        "size": list(xyz.shape[:2]),
        "valid_fraction": round(stats["valid"] / stats["pixels"], 6),
        "min_mm": stats["min_mm"],
        "max_mm": stats["max_mm"],
        "intrinsics": fit_intrinsics(xyz),
    }
    if item.pair.grooves:
        label = read_label(item.pair.grooves, xyz.shape[:2], contents[item.pair.grooves])
        meta["grooves"] = encode_label(resize_nearest(label, encoding.depth_size))
    content = [
        encode_depth(depth, encoding.depth_codec),
        encode_mask(mask),
        as_json(meta),
        encode_rgb(rgb, encoding.rgb_size, encoding.codec, encoding.quality, encoding.subsampling),
    ]
    return EncodedSample(
        members=dict(zip(encoding.members, content)),
        stats=stats,
        fingerprint=fingerprint(rgb),
        warnings=warnings,
        edges=edges,
    )


def _check(
    pair: CapturePair, capture: Capture, z: np.ndarray
) -> tuple[list[str], EdgeScores | None]:
    """Return what looks wrong with a capture, and how well edges of image and depth agree.

    raises BadFile where the points are surely no camera's view
    """
    problem = find_view_problem(capture.xyz)
    if problem and problem.sure:
        raise BadFile(pair.xyz, f"{problem.text} (--no-check-view takes it as it is)")
    edges = edge_scores(capture.image, z)
    found = (problem.text if problem else None, describe_capture(edges))
    return [text for text in found if text], edges


def count_flying(z: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return (65536,) int64: flying pixels of each depth level.

    z       (H, W) float32 mm
    levels  (H, W) uint16, its depth levels; 0 is not counted
    """
    counts = np.bincount(levels[find_flying(z)], minlength=LEVELS + 1)
    counts[0] = 0
    return counts


def quantize(z: np.ndarray, near_mm: float, far_mm: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Return depth as uint16 levels of far_mm / 65535, and counts of what was masked.

    z         (H, W) float32 mm; NaN, inf, 0 and less where nothing was measured
    returns   (H, W) uint16: within half a step of z where near_mm < z <= far_mm, else 0; and the
              counts {measured, nearer, farther, measured_min_mm, measured_max_mm, histogram}.
              histogram (65536,) int64 counts each level; the bounds are exact where pixels were
              masked by near_mm or far_mm, else to half a step

    A z that rounds to 0 (below half a step: 0.03 mm) counts as nearer, so that the bound on the
    error holds without exception.
    """
    # imported here because numba takes long, and processes that only decode seldom quantize
    from depthdist.shards.quantize_kernel import fill_steps

    value = np.empty(z.shape, np.uint16)
    histogram = np.zeros(LEVELS + 1, np.int64)
    measured, farther = fill_steps(z, near_mm, far_mm, LEVELS / far_mm, value, histogram)
    kept = z.size - int(histogram[0])
    least, most = np.inf, 0.0
    if kept == measured:  # the usual case: the bounds of the stored levels are enough
        if kept:
            found = np.flatnonzero(histogram[1:]) + 1
            least = float(found[0] * far_mm / LEVELS)
            most = float(found[-1] * far_mm / LEVELS)
    else:
        known = z[(z > 0) & (z < np.inf)]
        least, most = float(known.min()), float(known.max())
    counts = {"measured": measured, "nearer": measured - farther - kept, "farther": farther}
    return value, {
        **counts,
        "measured_min_mm": least,
        "measured_max_mm": most,
        "histogram": histogram,
    }


def encode_rgb(
    rgb: np.ndarray | Image.Image, size: Size | None, codec: str, quality: int, subsampling: str
) -> bytes:
    """Return `rgb` (H, W, 3) uint8 at `size`, None: its own, as bytes of RGB_MEMBERS[codec]."""
    rgb = np.array(rgb) if size is None else resize_rgb(rgb, size)
    if codec == "jpeg":
        return simplejpeg.encode_jpeg(rgb, quality, colorspace="RGB", colorsubsampling=subsampling)
    return _png(rgb) if codec == "png" else as_npy(rgb)


def encode_depth(depth: np.ndarray, codec: str) -> bytes:
    """Return `depth` (H, W) uint16 as bytes of depth.npy or depth.png."""
    return as_npy(depth) if codec == "npy" else _png(depth)


def encode_mask(mask: np.ndarray) -> bytes:
    """Return `mask` (H, W) bool as bytes of mask.npy, eight pixels to a byte."""
    return as_npy(np.packbits(mask, axis=1))


def encode_label(label: np.ndarray) -> str:
    """Return `label` (H, W) uint16 as text for meta.json: base64 of a PNG, a few KiB.

    In meta.json, because a further member would concern every reader of shards.
    """
    return base64.b64encode(_png(label, 6)).decode()


def _png(image: np.ndarray, level: int = 1) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=level)
    return file.getvalue()


@lru_cache
def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return the header of a `.npy` with that shape and dtype."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def as_npy(array: np.ndarray) -> bytes:
    """Return `array` as the bytes of a `.npy`."""
    file = BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _sources(pair: CapturePair, root: Path) -> tuple[dict[str, dict[str, str]], dict[Path, bytes]]:
    """Return path and sha256 of the capture's files, and their bytes; each is read once."""
    sources: dict[str, dict[str, str]] = {}
    contents: dict[Path, bytes] = {}
    for kind, path in pair.files.items():
        if path not in contents:
            contents[path] = read_bytes(path)
        sources[f"{kind}_file" if kind == "grooves" else kind] = {
            "path": path.relative_to(root).as_posix(),
            "sha256": hashlib.sha256(contents[path]).hexdigest(),
        }
    return sources, contents
