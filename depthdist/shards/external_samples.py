"""Read and decode every sample of an external tar once, for its index."""

from __future__ import annotations

import hashlib
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from depthdist.core.files import parse_json, read_at
from depthdist.shards.encoding import count_flying, quantize, resize_nearest
from depthdist.shards.format import crc32
from depthdist.shards.member_formats import MemberError, read_external_depth, read_rgb
from depthdist.shards.settings import ShardSettings
from depthdist.shards.statistics import depth_stats, merge_stats
from depthdist.shards.tar_scan import Sample


class Todo(NamedTuple):
    """A sample to decode, the session and the split it belongs to."""

    sample: Sample
    session: int
    split: str


class Decoded(NamedTuple):
    """A sample that can be used.

    start, length, crc  the bytes of the tar that hold its members, headers included
    members             [offset, size, CRC-32] of each
    """

    split: str
    key: str
    session: int
    start: int
    length: int
    crc: int
    members: list[list[int]]


@dataclass
class DecodedShard:
    """A tar whose samples were decoded.

    stats  each split's share of the statistics
    sizes  (height, width) of the images
    """

    name: str
    num_bytes: int = 0
    sha256: str = ""
    samples: list[Decoded] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)
    stats: dict[str, dict[str, Any]] = field(default_factory=dict)
    sizes: set[tuple[int, int]] = field(default_factory=set)

    def entry(self) -> dict[str, Any]:
        """Return what index.json says of it."""
        return {
            "name": self.name,
            "bytes": self.num_bytes,
            "sha256": self.sha256,
            "count": len(self.samples),
        }


def decode_shard(
    path: Path,
    todos: list[Todo],
    entries: dict[str, Any],
    settings: ShardSettings,
    progress: Callable[[int], Any],
    stop: threading.Event,
) -> DecodedShard:
    """Read and decode samples of one tar, raise ValueError if depths have several sizes.

    entries   of index.json: what each member is
    progress  is called with the number of samples done since the last call
    stop      ends the work early, once it is set
    """
    shard = DecodedShard(todos[0].sample.shard)
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        for todo in todos:
            if stop.is_set():
                break
            _decode_sample(file.fileno(), todo, entries, settings, shard)
            progress(1)
        while not stop.is_set() and (block := file.read(1 << 20)):
            hasher.update(block)
        shard.num_bytes = file.tell()
    shard.sha256 = hasher.hexdigest()
    return shard


def _decode_sample(
    fd: int, todo: Todo, entries: dict[str, Any], settings: ShardSettings, shard: DecodedShard
) -> None:
    """Decode one sample and add it to the shard's samples or rejects."""
    sample, split = todo.sample, todo.split
    try:
        content, start, length, crc = read_members(fd, sample, entries["members"])
        size, stats = _inspect(sample, content, entries, settings)
    except MemberError as err:
        shard.rejects.append(sample.rejected(f"{err.member}: {err}"))
        return
    members = [[*sample.members[name][1:], crc32(part)] for name, part in content.items()]
    shard.samples.append(Decoded(split, sample.key, todo.session, start, length, crc, members))
    before = [shard.stats[split]] if split in shard.stats else []
    shard.stats[split] = merge_stats([*before, stats])
    shard.sizes.add(size)


def read_members(
    fd: int, sample: Sample, names: list[str]
) -> tuple[dict[str, memoryview], int, int, int]:
    """Read those members' bytes.

    Returns them by name, then start, length and CRC-32 of the part of the tar that holds them,
    headers included.
    """
    places = [sample.members[name] for name in names]
    start = min(header for header, _, _ in places)
    end = max(
        offset + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for _, offset, size in places
    )
    length = end - start
    if length >= 2**31:  # the most that one read returns
        raise MemberError(names[0], f"the sample spans {length:,} bytes; expected less than 2 GiB")
    extent = memoryview(read_at(fd, length, start))
    content = {
        name: extent[offset - start : offset - start + size]
        for name, (_, offset, size) in zip(names, places)
    }
    return content, start, length, crc32(extent)


def _inspect(
    sample: Sample, content: dict[str, memoryview], entries: dict[str, Any], settings: ShardSettings
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return the image's size and the sample's share of the statistics.

    Raises MemberError if the sample cannot be used.
    """
    depth, meta, image = entries["depth"], entries["meta"]["member"], entries["rgb"]["member"]
    size = read_rgb(image, content[image], None)
    z = read_external_depth(entries, content)
    wanted = tuple(depth["size"])
    if z.shape != wanted:
        if not depth["resize"]:
            found, others = ("x".join(map(str, shape)) for shape in (z.shape, wanted))
            raise ValueError(
                f"{sample.shard}: {sample.key}: depth is {found}, that of the first sample"
                f" {others}; a dataset has one size: take --depth-size train"
            )
        z = resize_nearest(z, wanted)
    if meta:
        try:
            parse_json(bytes(content[meta]))
        except ValueError as err:
            raise MemberError(meta, f"not JSON ({err})") from err
    steps, counts = quantize(z, settings.near, settings.far)
    if not steps.any():
        measured = (
            f"{counts['measured_min_mm']:.1f} .. {counts['measured_max_mm']:.1f} mm"
            if counts["measured"]
            else "nowhere measured"
        )
        raise MemberError(
            depth["member"],
            f"no valid pixel: Z is {measured}, expected {settings.near:g} < Z <= {settings.far:g}"
            " mm (--near, --far, --unit)",
        )
    counts["flying"] = count_flying(z, steps)
    return size, depth_stats(counts, depth["step_mm"], sample.key)
