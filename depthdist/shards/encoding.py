"""Encode one capture as the members of a sample."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from depthdist.captures.layouts import CapturePair
from depthdist.captures.near_duplicates import fingerprint
from depthdist.captures.readers import read_label, read_pair
from depthdist.core.errors import BadFile
from depthdist.core.settings import Size
from depthdist.geometry.camera import fit_intrinsics
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.shards.format import LEVELS, Encoding, Item, as_json
from depthdist.shards.statistics import depth_stats


def encode_sample(
    item: Item, root: Path, encoding: Encoding
) -> tuple[dict[str, bytes], dict[str, Any], np.ndarray]:
    """Return one sample's members in the tar's order, its statistics and the image's fingerprint.

    raises BadFile where the capture cannot be used
    """
    sources, contents = _sources(item.pair, root)
    rgb, xyz = read_pair(item.pair, (contents[0], contents[1]))
    z = np.ascontiguousarray(xyz[:, :, 2])
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
        raise BadFile(
            item.pair.xyz,
            f"no valid pixel: Z is {measured}, expected {encoding.near_mm:g} < Z <="
            f" {encoding.far_mm:g} mm (--near, --far)",
        )
    stats = {"raw_bytes": sum(map(len, contents)), **depth_stats(counts, encoding.step_mm)}
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
        label = read_label(item.pair.grooves, xyz.shape[:2], contents[2])
        meta["grooves"] = encode_label(resize_nearest(label, encoding.depth_size))
    content = [
        encode_depth(depth, encoding.depth_codec),
        encode_mask(mask),
        as_json(meta),
        encode_rgb(rgb, encoding.size, encoding.codec, encoding.quality, encoding.subsampling),
    ]
    return dict(zip(encoding.members, content)), stats, fingerprint(rgb)


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


def resize_nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `image` (H, W) at `size`, each pixel copied from the nearest center.

    Depths are never averaged across an edge.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, image.shape)
    )
    return image[rows[:, None], columns]


def encode_rgb(
    rgb: np.ndarray | Image.Image, size: Size, codec: str, quality: int, subsampling: str
) -> bytes:
    """Return `rgb` (H, W, 3) uint8 at the network's size, as bytes of RGB_MEMBERS[codec]."""
    rgb = resize_rgb(rgb, size)
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


def _sources(pair: CapturePair, root: Path) -> tuple[dict[str, dict[str, str]], tuple[bytes, ...]]:
    """Return path and sha256 of the capture's files, and their bytes; each is read once."""
    sources, contents = {}, []
    for kind, path in pair.files.items():
        try:
            contents.append(path.read_bytes())
        except OSError as err:
            raise BadFile(path, f"cannot be read: {err.strerror}") from err
        sources[f"{kind}_file" if kind == "grooves" else kind] = {
            "path": path.relative_to(root).as_posix(),
            "sha256": hashlib.sha256(contents[-1]).hexdigest(),
        }
    return sources, tuple(contents)
