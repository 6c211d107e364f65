"""Every byte of a dataset folder against its index: `python tools/shard.py --verify DIR`."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from depthdist.shards.decoding import decode_sample
from depthdist.shards.format import crc32
from depthdist.shards.index import Index, SampleRef, load_index


def verify_dataset(
    folder: Path | str, workers: int = 1, progress: Callable[[int], Any] = lambda samples: None
) -> list[str]:
    """What is wrong with a dataset folder, one line each naming shard, key and member.

    Empty when all is well.

    Every byte is read: sha256 of the table, the names and each tar, tar headers against the index,
    CRC-32 and decoding of every member, depth against mask, commit records, keys used twice, files
    that do not belong. `progress` is told of samples.
    """
    folder, problems = Path(folder), []
    try:
        index = load_index(folder)
        for what in ("table", "names"):
            if (found := hashlib.sha256(index.file(what).read_bytes()).hexdigest()) != index.raw[
                what
            ]["sha256"]:
                problems.append(
                    f"{index.raw[what]['name']}: sha256 is {found[:16]}..., expected"
                    f" {index.raw[what]['sha256'][:16]}..."
                )
        refs = [index.row(i) for i in range(index.num_samples)]
    except ValueError as err:
        return [*problems, str(err)]
    by_shard: dict[int, list[SampleRef]] = {number: [] for number in range(len(index.shards))}
    seen: dict[str, int] = {}
    for ref in refs:
        by_shard[ref.number].append(ref)
        if seen.setdefault(ref.key, ref.number) != ref.number:
            problems.append(
                f"{index.shards[ref.number]['name']}: {ref.key}: the key is also in"
                f" {index.shards[seen[ref.key]]['name']}"
            )
    for number, shard in enumerate(index.shards):
        if shard["count"] != len(by_shard[number]):
            problems.append(
                f"{shard['name']}: count is {shard['count']}, but {len(by_shard[number])} samples"
                " are listed"
            )
    if not index.raw.get("foreign"):
        known = {s["name"] for s in index.shards}
        for path in sorted(p for split in ("train", "val") for p in (folder / split).glob("*")):
            name = path.relative_to(folder).as_posix()
            if name not in known and str(Path(name).with_suffix(".tar")) not in known:
                problems.append(f"{name}: does not belong here; the index does not list it")
    with ThreadPoolExecutor(max(1, workers)) as pool:  # hashing and decoding release the GIL
        for found in pool.map(
            lambda number: _verify_shard(index, number, by_shard[number], progress), by_shard
        ):
            problems += found
    return problems


def _verify_shard(
    index: Index, number: int, refs: list[SampleRef], progress: Callable[[int], Any]
) -> list[str]:
    shard, path = index.shards[number], index.shard_path(number)
    name, problems = (
        shard["name"],
        [] if index.raw.get("foreign") else _verify_record(index, number, refs),
    )
    try:
        with open(path, "rb") as file:
            sha256, size = hashlib.sha256(), 0
            while block := file.read(1 << 20):
                sha256.update(block)
                size += len(block)
            if size != shard["bytes"]:
                problems.append(f"{name}: {size:,} bytes; expected {shard['bytes']:,}")
            if sha256.hexdigest() != shard["sha256"]:
                problems.append(
                    f"{name}: sha256 is {sha256.hexdigest()[:16]}..., expected"
                    f" {shard['sha256'][:16]}..."
                )
            file.seek(0)
            problems += [
                f"{name}: {p}" for p in _verify_headers(file, refs, index.raw.get("foreign", False))
            ]
            for ref in refs:
                problems += [f"{name}: {ref.key}: {p}" for p in _verify_sample(index, file, ref)]
                progress(1)
    except OSError as err:
        problems.append(
            f"{name}:"
            f" {'the shard is missing' if isinstance(err, FileNotFoundError) else err.strerror}"
        )
    return problems


def _verify_record(index: Index, number: int, refs: list[SampleRef]) -> list[str]:
    """The shard's commit record against the index."""
    shard = index.shards[number]
    path = index.shard_path(number).with_suffix(".json")
    samples = [
        [r.key, r.stem, r.session, r.start, r.length, r.crc, [list(m) for m in r.members.values()]]
        for r in refs
    ]
    try:
        record = json.loads(path.read_bytes())
        if any(
            record.get(part) != wanted for part, wanted in {**shard, "samples": samples}.items()
        ):
            return [f"{shard['name']}: its commit record {path.name} and index.json disagree"]
    except (OSError, ValueError, AttributeError) as err:
        return [f"{shard['name']}: its commit record {path.name} cannot be read ({err})"]
    return []


def _verify_headers(file, refs: list[SampleRef], foreign: bool) -> list[str]:
    """What tarfile finds, which any plain tool will see, against what the index lists."""
    listed = sorted(
        (offset, size, f"{ref.stem if foreign else ref.key}.{name}")
        for ref in refs
        for name, (offset, size, _) in ref.members.items()
    )
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            found = {m.offset_data: (m.offset_data, m.size, m.name) for m in tar if m.isreg()}
    except tarfile.TarError as err:
        return [f"not a tar that can be read ({err})"]
    for offset, size, name in listed:
        if found.get(offset) != (offset, size, name):
            there = (
                "nothing"
                if offset not in found
                else f"{found[offset][2]} with {found[offset][1]} bytes"
            )
            return [
                f"the tar shows {there} at {offset}; expected {name} with {size} bytes"
                f" ({len(found)} members, {len(listed)} listed)"
            ]
    return []


def _verify_sample(index: Index, file, ref: SampleRef) -> list[str]:
    problems, members = [], {}
    for member, (offset, size, crc) in ref.members.items():
        file.seek(offset)
        members[member] = file.read(size)
        if len(members[member]) != size:
            problems.append(f"{member}: {len(members[member]):,} bytes; expected {size:,}")
        elif (found := crc32(members[member])) != crc:
            problems.append(
                f"{member}: crc32 is {found:08x}, expected {crc:08x} (offset {offset:,})"
            )
    if problems:
        return problems
    file.seek(ref.start)
    if crc32(file.read(ref.length)) != ref.crc:
        return [
            f"the bytes between its members (tar headers, padding) from {ref.start:,} on are not"
            " what was written"
        ]
    try:
        sample = decode_sample(members, index)
    except Exception as err:  # whatever the decoders raise on bytes that cannot be right
        return [f"cannot be decoded: {' '.join(str(err).split())}"]
    differ = int(np.count_nonzero((sample["depth"] > 0) != sample["mask"]))
    return [f"mask and depth > 0 differ in {differ} pixels"] if differ else []
