"""Verify every byte of a dataset folder: `depthdist shard --verify DIR`."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from depthdist.core.files import parse_json
from depthdist.shards.decoding import decode_sample
from depthdist.shards.format import crc32
from depthdist.shards.index import Index, SampleRef, load_index
from depthdist.shards.split_names import SPLITS


def verify_dataset(
    folder: Path | str, workers: int = 1, progress: Callable[[int], Any] = lambda samples: None
) -> list[str]:
    """Return what is wrong with a dataset folder, a line each; empty when everything is correct.

    progress  is called with the number of samples verified since the last call

    Every byte is read: sha256 of the table, the names and each tar, tar headers against the index,
    CRC-32 and decoding of every member, depth against mask, commit records, keys used twice, files
    that do not belong. A line names shard, key and member.
    """
    folder = Path(folder)
    problems: list[str] = []
    try:
        index = load_index(folder)
        for part in ("table", "names"):
            problems += _verify_file(index, part)
        refs = [index.row(i) for i in range(index.num_samples)]
    except ValueError as err:
        return [*problems, str(err)]
    by_shard: dict[int, list[SampleRef]] = {number: [] for number in range(len(index.shards))}
    for ref in refs:
        by_shard[ref.number].append(ref)
    problems += _repeated_keys(index, refs)
    for number, shard in enumerate(index.shards):
        if shard["count"] != len(by_shard[number]):
            problems.append(
                f"{shard['name']}: count is {shard['count']}, but {len(by_shard[number])} samples"
                " are listed"
            )
    if not index.raw.get("foreign"):
        problems += _unlisted_files(folder, index)
    with ThreadPoolExecutor(max(1, workers)) as pool:  # hashing and decoding release the GIL
        for found in pool.map(
            lambda number: _verify_shard(index, number, by_shard[number], progress), by_shard
        ):
            problems += found
    return problems


def _verify_file(index: Index, part: str) -> list[str]:
    """Return whether the table or the names are not what the index says."""
    found = hashlib.sha256(index.file(part).read_bytes()).hexdigest()
    expected = index.raw[part]["sha256"]
    return [] if found == expected else [_sha256_problem(index.raw[part]["name"], found, expected)]


def _sha256_problem(name: str, found: str, expected: str) -> str:
    return f"{name}: sha256 is {found[:16]}..., expected {expected[:16]}..."


def _repeated_keys(index: Index, refs: list[SampleRef]) -> list[str]:
    """Return which keys stand in more than one shard."""
    problems = []
    seen: dict[str, int] = {}
    for ref in refs:
        first = seen.setdefault(ref.key, ref.number)
        if first != ref.number:
            problems.append(
                f"{index.shards[ref.number]['name']}: {ref.key}: the key is also in"
                f" {index.shards[first]['name']}"
            )
    return problems


def _unlisted_files(folder: Path, index: Index) -> list[str]:
    """Return which files in the folders of the splits the index does not list."""
    known = {shard["name"] for shard in index.shards}
    problems = []
    for path in sorted(path for split in SPLITS for path in folder.glob(f"{split}/*")):
        name = path.relative_to(folder).as_posix()
        if name not in known and str(Path(name).with_suffix(".tar")) not in known:
            problems.append(f"{name}: does not belong here; the index does not list it")
    return problems


def _verify_shard(
    index: Index, number: int, refs: list[SampleRef], progress: Callable[[int], Any]
) -> list[str]:
    """Return what is wrong with one tar, its record and its samples."""
    shard = index.shards[number]
    name = shard["name"]
    foreign = index.raw.get("foreign", False)
    problems = [] if foreign else _verify_record(index, number, refs)
    try:
        with open(index.shard_path(number), "rb") as file:
            sha256, size = hashlib.sha256(), 0
            while block := file.read(1 << 20):
                sha256.update(block)
                size += len(block)
            if size != shard["bytes"]:
                problems.append(f"{name}: {size:,} bytes; expected {shard['bytes']:,}")
            if sha256.hexdigest() != shard["sha256"]:
                problems.append(_sha256_problem(name, sha256.hexdigest(), shard["sha256"]))
            file.seek(0)
            problems += [f"{name}: {problem}" for problem in _verify_headers(file, refs, foreign)]
            for ref in refs:
                found = _verify_sample(index, file, ref)
                problems += [f"{name}: {ref.key}: {problem}" for problem in found]
                progress(1)
    except FileNotFoundError:
        problems.append(f"{name}: the shard is missing")
    except OSError as err:
        problems.append(f"{name}: {err.strerror}")
    return problems


def _verify_record(index: Index, number: int, refs: list[SampleRef]) -> list[str]:
    """Return where the shard's commit record and the index differ."""
    shard = index.shards[number]
    path = index.shard_path(number).with_suffix(".json")
    samples = [
        [r.key, r.stem, r.session, r.start, r.length, r.crc, [list(m) for m in r.members.values()]]
        for r in refs
    ]
    try:
        record = parse_json(path.read_bytes())
        expected = {**shard, "samples": samples}
        if any(record.get(part) != value for part, value in expected.items()):
            return [f"{shard['name']}: its commit record {path.name} and index.json disagree"]
    except (OSError, ValueError, AttributeError) as err:
        return [f"{shard['name']}: its commit record {path.name} cannot be read ({err})"]
    return []


def _verify_headers(file: BinaryIO, refs: list[SampleRef], foreign: bool) -> list[str]:
    """Return the first difference between the tar's headers and the index."""
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
            _, found_size, found_name = found.get(offset, (0, 0, ""))
            member = f"{found_name} with {found_size} bytes" if offset in found else "nothing"
            return [
                f"the tar shows {member} at {offset}; expected {name} with {size} bytes"
                f" ({len(found)} members, {len(listed)} listed)"
            ]
    return []


def _verify_sample(index: Index, file: BinaryIO, ref: SampleRef) -> list[str]:
    """Return what is wrong with one sample's bytes, or with what they decode to."""
    problems: list[str] = []
    members: dict[str, bytes] = {}
    for member, (offset, size, crc) in ref.members.items():
        file.seek(offset)
        content = members[member] = file.read(size)
        found = crc32(content)
        if len(content) != size:
            problems.append(f"{member}: {len(content):,} bytes; expected {size:,}")
        elif found != crc:
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
    num_different = int(np.count_nonzero((sample["depth"] > 0) != sample["mask"]))
    return [f"mask and depth > 0 differ in {num_different} pixels"] if num_different else []
