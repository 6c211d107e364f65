"""One shard: captures in, one tar and its commit record out. Runs in a worker process, one whole shard at a time.

    write_shard(job)  ->  job.folder/train/shard-000000.tar, then job.folder/train/shard-000000.json

What is written depends on the job alone: not on the clock, the worker, or other shards, so any number of workers gives the
same bytes. Both files get their names only when they are whole and on the disk. `build.py` plans the jobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from depthdist.config import Size
from depthdist.pairs import BadFile, Pair, read_pair, resize_rgb

LEVELS = 65535  # of uint16 depth; 0 is kept for invalid
BIN = 64  # depth values a histogram bin: 1024 bins from 0 to far


class Encoding(NamedTuple):
    """How a capture becomes a sample: what of the settings the bytes depend on."""

    size: Size
    depth_size: Size
    near_mm: float
    far_mm: float
    codec: str  # jpeg or png
    quality: int
    subsampling: str

    @property
    def step_mm(self) -> float:
        return self.far_mm / LEVELS


class Item(NamedTuple):
    """A pair in the plan. `key` names its sample in the whole dataset."""

    key: str
    pair: Pair
    session: int


class Job(NamedTuple):
    """One shard to write: `name` (train/shard-000000.tar) under `folder`; captures lie under `root`."""

    name: str
    items: list[Item]
    hash: str
    root: Path
    folder: Path
    encoding: Encoding


# ------------------------------------------------------------------------------------------------------- one sample


def quantise(z: np.ndarray, near_mm: float, far_mm: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Depth as uint16 steps of far_mm / 65535, and what was left out.

    z         (H, W) float32 mm; NaN, inf, 0 and less where nothing was measured
    returns   (H, W) uint16: 0 where invalid, else within half a step of z, where near_mm < z <= far_mm; and the counts
              {measured, nearer, farther, measured_min_mm, measured_max_mm}

    A z that rounds to 0 (below half a step: 0.03 mm) counts as nearer, so the bound on the error has no exception.
    """
    step = far_mm / LEVELS
    measured = np.isfinite(z) & (z > 0)
    known = z[measured].astype(np.float64)  # (N,)
    steps = np.rint(known / step)
    nearer, farther = (known <= near_mm) | (steps < 1), known > far_mm
    steps[nearer | farther] = 0
    assert np.abs(steps * step - known)[steps > 0].max(initial=0) <= step / 2 * (1 + 1e-9)
    value = np.zeros(z.shape, np.uint16)
    value[measured] = steps
    counts = {"measured": known.size, "nearer": int(nearer.sum()), "farther": int(farther.sum())}
    return value, {**counts, "measured_min_mm": float(known.min(initial=np.inf)), "measured_max_mm": float(known.max(initial=0))}


def nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` (H, W) at `size`, each pixel that of the nearest centre: depths are never averaged across an edge."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, image.shape))
    return image[rows[:, None], columns]


def fit_intrinsics(xyz: np.ndarray, max_points: int = 20000) -> dict[str, Any] | None:
    """The pinhole that the point map was made with, from least squares of column + 0.5 = fx X / Z + cx, and the same in y.

    xyz (H, W, 3) mm. Pixel (0, 0) has its centre at (0.5, 0.5). `max_residual_px` is the largest error over the points
    used; large, where the map is no pinhole's. None where fewer than two columns or rows are measured.
    """
    where = np.flatnonzero((xyz[:, :, 2] > 0) & np.isfinite(xyz[:, :, 2]))
    where = where[:: max(1, where.size // max_points)]
    points = xyz.reshape(-1, 3)[where].astype(np.float64)  # (N, 3)
    whole = np.isfinite(points).all(axis=1)
    where, points = where[whole], points[whole]
    rows, columns = np.divmod(where, xyz.shape[1])
    found: dict[str, Any] = {}
    residual = 0.0
    for axis, pixel, focal, centre in ((0, columns + 0.5, "fx", "cx"), (1, rows + 0.5, "fy", "cy")):
        ratio = points[:, axis] / points[:, 2]
        if where.size < 2 or np.ptp(ratio) < 1e-6 or np.ptp(pixel) < 1:
            return None
        spread = ((ratio - ratio.mean()) ** 2).sum()
        slope = float(((ratio - ratio.mean()) * (pixel - pixel.mean())).sum() / spread)
        offset = float(pixel.mean() - slope * ratio.mean())
        residual = max(residual, float(np.abs(slope * ratio + offset - pixel).max()))
        found |= {focal: round(slope, 4), centre: round(offset, 4)}
    return {**found, "max_residual_px": round(residual, 4), "pixel_centre": 0.5}


def encode_rgb(rgb: np.ndarray, encoding: Encoding) -> tuple[str, bytes]:
    """Member name and bytes of `rgb` (H, W, 3) uint8, resized to the network's size."""
    rgb = resize_rgb(rgb, encoding.size)
    if encoding.codec == "jpeg":
        return "rgb.jpg", simplejpeg.encode_jpeg(rgb, encoding.quality, colorspace="RGB", colorsubsampling=encoding.subsampling)
    file = BytesIO()
    Image.fromarray(rgb).save(file, "PNG", compress_level=1)
    return "rgb.png", file.getvalue()


def encode_sample(item: Item, root: Path, encoding: Encoding) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The members of one sample in the tar's order, and its share of the statistics; BadFile where it cannot be used."""
    rgb, xyz = read_pair(item.pair)
    z = np.ascontiguousarray(xyz[:, :, 2])
    if z.shape != encoding.depth_size:
        z = nearest(z, encoding.depth_size)
    depth, counts = quantise(z, encoding.near_mm, encoding.far_mm)
    mask = depth > 0
    if not mask.any():
        measured = f"{counts['measured_min_mm']:.1f} .. {counts['measured_max_mm']:.1f} mm" if counts["measured"] else "nowhere measured at this size"
        raise BadFile(item.pair.xyz, f"no valid pixel: Z is {measured}, expected {encoding.near_mm:g} < Z <= {encoding.far_mm:g} mm (--near, --far)")
    histogram = np.bincount(depth[mask], minlength=LEVELS + 1)  # exact: every value has its own count
    values = np.arange(LEVELS + 1)
    stats = {
        **counts,
        "valid": int(mask.sum()),
        "pixels": mask.size,
        "sum": int(histogram @ values),
        "sum_of_squares": int(histogram @ values**2),
        "min_mm": float(depth[mask].min() * (encoding.far_mm / LEVELS)),  # as stored: the pixel that sets a bound is inside it
        "max_mm": float(depth.max() * (encoding.far_mm / LEVELS)),
        "histogram": histogram.reshape(-1, BIN).sum(axis=1).tolist(),
    }
    sources, stats["raw_bytes"] = _sources(item.pair, root)
    meta = {
        "stem": item.pair.stem,
        "session": item.session,
        **sources,
        "size": list(rgb.shape[:2]),
        "valid_fraction": round(stats["valid"] / stats["pixels"], 6),
        "min_mm": stats["min_mm"],
        "max_mm": stats["max_mm"],
        "intrinsics": fit_intrinsics(xyz),
    }
    name, picture = encode_rgb(rgb, encoding)
    packed = _npy(np.packbits(mask, axis=1))
    return {"depth.npy": _npy(depth), "mask.npy": packed, "meta.json": as_json(meta), name: picture}, stats


def _sources(pair: Pair, root: Path) -> tuple[dict[str, dict[str, str]], int]:
    """Relative path and sha256 of both files, and their bytes together."""
    sources, size = {}, 0
    for kind, path in (("rgb", pair.rgb), ("xyz", pair.xyz)):
        try:
            content = path.read_bytes()
        except OSError as err:
            raise BadFile(path, f"cannot be read: {err.strerror}") from err
        sources[kind] = {"path": path.relative_to(root).as_posix(), "sha256": hashlib.sha256(content).hexdigest()}
        size += len(content)
    return sources, size


def _npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def as_json(value: Any, indent: int | None = None) -> bytes:
    """`value` as JSON bytes that are the same for the same value."""
    return json.dumps(value, sort_keys=True, indent=indent, separators=(",", ": " if indent else ":")).encode() + b"\n"


def merge_stats(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all parts together: integers add, bounds widen. Exact, so the order and the cuts do not matter."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name not in total:
                total[name] = list(value) if isinstance(value, list) else value
            elif isinstance(value, list):
                total[name] = [a + b for a, b in zip(total[name], value)]
            elif name.endswith("min_mm"):
                total[name] = min(total[name], value)
            elif name.endswith("max_mm"):
                total[name] = max(total[name], value)
            else:
                total[name] += value
    return total


# ------------------------------------------------------------------------------------------------------- one shard


class _Tar:
    """A USTAR file that is hashed while it is written, and knows where each member's bytes lie."""

    def __init__(self, path: Path):
        self.file, self.sha256, self.bytes = open(path, "wb"), hashlib.sha256(), 0
        self.tar = tarfile.open(fileobj=self, mode="w", format=tarfile.USTAR_FORMAT)

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.bytes

    def add(self, name: str, content: bytes) -> list[int]:
        """[offset, size, CRC-32] of the content, now in the tar."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o444  # mtime, uid and gid are 0
        offset = self.bytes + tarfile.BLOCKSIZE
        self.tar.addfile(info, BytesIO(content))
        return [offset, len(content), zlib.crc32(content)]

    def close(self) -> None:
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())


def write_shard(job: Job, report: Callable[[int, int, int], None] = lambda samples, num_bytes, rejects: None) -> None:
    """Write the job's tar, then its commit record. `report` hears of each pair: samples made, raw bytes read, rejects.

    A bad pair is left out and listed in the record. raises ValueError, one line, when the shard cannot be written
    """
    path = job.folder / job.name
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    samples, rejects, stats = [], [], []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tar = _Tar(unfinished)
        try:
            for item in job.items:
                try:
                    members, share = encode_sample(item, job.root, job.encoding)
                except BadFile as err:
                    rejects.append({"path": err.path.relative_to(job.root).as_posix(), "reason": err.reason})
                    report(0, 0, 1)
                    continue
                except Exception as err:  # ours, or no memory: one line that says at which pair
                    raise ValueError(f"{item.pair.xyz}: cannot be made a sample ({type(err).__name__}: {err})") from err
                samples.append([item.key, item.pair.stem, {m: tar.add(f"{item.key}.{m}", content) for m, content in members.items()}])
                stats.append(share)
                report(1, share["raw_bytes"], 0)
            tar.close()
        finally:
            tar.file.close()
        os.replace(unfinished, path)
        facts = {"count": len(samples), "bytes": tar.bytes, "sha256": tar.sha256.hexdigest(), "samples": samples, "rejects": rejects}
        write_whole(path.with_suffix(".json"), as_json({"hash": job.hash, "name": job.name, **facts, "stats": merge_stats(stats)}))
    except OSError as err:
        raise ValueError(f"{err.filename or path}: the shard cannot be written: {err.strerror}; finished shards are kept, run again") from err
    finally:
        try:
            unfinished.unlink(missing_ok=True)
        except OSError:
            pass  # the first error is the one to tell


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file so that `path` is, at every moment, absent, the old one, or the whole new one."""
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as err:
        unfinished.unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written: {err.strerror}") from err
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files are."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems cannot; the names are then as durable as the server makes them
    finally:
        os.close(handle)
