"""One shard: captures in, one tar and its commit record out.

Runs in a worker process, one whole shard at a time.

    write_shard(job)  ->  job.folder/train/shard-000000.tar, then job.folder/train/shard-000000.json

What is written depends on the job alone: not on the clock, the worker, or other shards, so any
number of workers gives the same bytes. Both files get their names only when they are whole and on
the disk. `build.py` plans the jobs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from depthdist.captures.layouts import BadFile, Pair, read_label, read_pair
from depthdist.captures.near_duplicates import fingerprint
from depthdist.core.settings import Size
from depthdist.geometry.camera import fit_intrinsics
from depthdist.shards.codec import (
    LEVELS,
    RGB_MEMBERS,
    crc32,
    encode_depth,
    encode_label,
    encode_mask,
    encode_rgb,
    nearest,
    quantise,
)

SYNC_BYTES = 32 << 20  # after so many the disk is told to write
BIN = 64  # depth values a histogram bin: 1024 bins from 0 to far


class Encoding(NamedTuple):
    """How a capture becomes a sample: what of the settings the bytes depend on."""

    size: Size
    depth_size: Size
    near_mm: float
    far_mm: float
    codec: str  # of RGB_MEMBERS
    quality: int
    subsampling: str
    depth_codec: str  # npy or png

    @property
    def step_mm(self) -> float:
        return self.far_mm / LEVELS

    @property
    def members(self) -> list[str]:
        """Of a sample, in the order that they stand in the tar."""
        return [f"depth.{self.depth_codec}", "mask.npy", "meta.json", RGB_MEMBERS[self.codec]]


class Item(NamedTuple):
    """A pair in the plan. `key` names its sample in the whole dataset."""

    key: str
    pair: Pair
    session: int


class Job(NamedTuple):
    """One shard to write: `name` (train/shard-000000.tar) under `folder`.

    Captures lie under `root`.
    """

    name: str
    items: list[Item]
    hash: str
    root: Path
    folder: Path
    encoding: Encoding


# --------------------------------------------------------------------------------------- one sample


def encode_sample(
    item: Item, root: Path, encoding: Encoding
) -> tuple[dict[str, bytes], dict[str, Any], np.ndarray]:
    """The members of one sample in the tar's order, its share of the statistics, and the picture's
    fingerprint; BadFile where it cannot be used.
    """
    sources, contents = _sources(item.pair, root)
    rgb, xyz = read_pair(item.pair, contents[:2])
    z = np.ascontiguousarray(xyz[:, :, 2])
    if z.shape != encoding.depth_size:
        z = nearest(z, encoding.depth_size)
    depth, counts = quantise(z, encoding.near_mm, encoding.far_mm)
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
        meta["grooves"] = encode_label(
            nearest(read_label(item.pair.grooves, xyz.shape[:2], contents[2]), encoding.depth_size)
        )
    picture = encode_rgb(rgb, encoding.size, encoding.codec, encoding.quality, encoding.subsampling)
    return (
        dict(
            zip(
                encoding.members,
                (
                    encode_depth(depth, encoding.depth_codec),
                    encode_mask(mask),
                    as_json(meta),
                    picture,
                ),
            )
        ),
        stats,
        fingerprint(rgb),
    )


def depth_stats(counts: dict[str, Any], step_mm: float) -> dict[str, Any]:
    """A sample's share of the statistics out of what `quantise` counted: whole numbers and bounds,
    for `merge_stats`.

    Exact, for every value has its own count. Bounds are as stored: the pixel that sets one is
    inside it.
    """
    histogram, values = counts["histogram"].copy(), np.arange(LEVELS + 1)
    histogram[0] = 0  # invalid
    found = np.flatnonzero(histogram)
    return {
        **counts,
        "valid": int(histogram.sum()),
        "pixels": int(counts["histogram"].sum()),
        "sum": int(histogram @ values),
        "sum_of_squares": int(histogram @ values**2),
        "min_mm": float(found[0] * step_mm),
        "max_mm": float(found[-1] * step_mm),
        "histogram": histogram.reshape(-1, BIN).sum(axis=1).tolist(),
    }


def _sources(pair: Pair, root: Path) -> tuple[dict[str, dict[str, str]], tuple[bytes, ...]]:
    """Relative path and sha256 of the capture's files, and their bytes: each is read once."""
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


def as_json(value: Any, indent: int | None = None) -> bytes:
    """`value` as JSON bytes that are the same for the same value."""
    return (
        json.dumps(
            value, sort_keys=True, indent=indent, separators=(",", ": " if indent else ":")
        ).encode()
        + b"\n"
    )


def merge_stats(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all parts together: integers add, bounds widen.

    Exact, so the order and the cuts do not matter.
    """
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


# ---------------------------------------------------------------------------------------- one shard


class _Tar:
    """A USTAR file that is hashed while it is written, and knows where each member's bytes lie."""

    def __init__(self, path: Path):
        self.file, self.sha256, self.bytes, self.crc = open(path, "wb"), hashlib.sha256(), 0, 0
        self.disk, self.synced, self.syncing = ThreadPoolExecutor(1), 0, None

    def write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.crc = crc32(data, self.crc)
        self.bytes += len(data)
        self.file.write(data)

    def add(self, key: str, members: dict[str, bytes]) -> list[Any]:
        """Write a sample: [start, length, CRC-32 of all its bytes, [[offset, size, CRC-32] of each
        member]].
        """
        start, places, self.crc = self.bytes, [], 0
        for name, content in members.items():
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size, info.mode = len(content), 0o444  # mtime, uid and gid are 0
            self.write(info.tobuf(tarfile.USTAR_FORMAT))
            places.append([self.bytes, len(content), crc32(content)])
            self.write(content)
            self.write(bytes(-len(content) % tarfile.BLOCKSIZE))
        if self.bytes - self.synced > SYNC_BYTES:  # the disk works while pairs are encoded
            self._wait()
            self.synced, self.syncing = self.bytes, self.disk.submit(os.fsync, self.file.fileno())
        return [start, self.bytes - start, self.crc, places]

    def _wait(self) -> None:
        if self.syncing:
            self.syncing.result()  # raises what the disk said

    def finish(self) -> None:
        """Write the end, and wait until all is on the disk."""
        self.write(bytes(2 * tarfile.BLOCKSIZE))
        self.write(bytes(-self.bytes % tarfile.RECORDSIZE))
        self.file.flush()
        self._wait()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.disk.shutdown()
        self.file.close()


def write_shard(
    job: Job, report: Callable[[int, int, int], None] = lambda samples, num_bytes, rejects: None
) -> None:
    """Write the job's tar, then its commit record.

    `report` hears of each pair: samples made, raw bytes read, rejects.

    A bad pair is left out and listed in the record. raises ValueError, one line, when the shard
    cannot be written
    """
    path = job.folder / job.name
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    samples, rejects, stats, prints = [], [], [], []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tar = _Tar(unfinished)
        try:
            for item in job.items:
                try:
                    members, share, seen = encode_sample(item, job.root, job.encoding)
                except BadFile as err:
                    rejects.append(
                        {"path": err.path.relative_to(job.root).as_posix(), "reason": err.reason}
                    )
                    report(0, 0, 1)
                    continue
                except Exception as err:  # ours, or no memory: one line that says at which pair
                    raise ValueError(
                        f"{item.pair.xyz}: cannot be made a sample ({type(err).__name__}: {err})"
                    ) from err
                samples.append(
                    [item.key, item.pair.stem, item.session, *tar.add(item.key, members)]
                )
                stats.append(share)
                prints.append(base64.b64encode(seen.tobytes()).decode())
                report(1, share["raw_bytes"], 0)
            tar.finish()
        finally:
            tar.close()
        os.replace(unfinished, path)
        facts = {
            "count": len(samples),
            "bytes": tar.bytes,
            "sha256": tar.sha256.hexdigest(),
            "samples": samples,
            "fingerprints": prints,
            "rejects": rejects,
        }
        write_whole(
            path.with_suffix(".json"),
            as_json({"hash": job.hash, "name": job.name, **facts, "stats": merge_stats(stats)}),
        )
    except OSError as err:
        raise ValueError(
            f"{err.filename or path}: the shard cannot be written: {err.strerror}; finished shards"
            " are kept, run again"
        ) from err
    finally:
        try:
            unfinished.unlink(missing_ok=True)
        except OSError:
            pass  # the first error is the one to tell


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file so that `path` is, at every moment, absent, the old one, or the whole new
    one.
    """
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
        # some network file systems cannot; the names are then as durable as the server makes them
        pass
    finally:
        os.close(handle)
