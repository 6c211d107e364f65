"""What each image of a dataset is, in 32 bytes: the same after another split, seed or encoding.

    hashes = image_hashes(index, "train")          # (N, 4) uint64, a column for each of KINDS
    is_seen = shared_images(val_hashes, hashes)    # (M,) bool

Two images are one where any column agrees: the same picture or the same point map, by the sha256 of
the files that they were made from; else by the bytes in the tar. The first stand in a sample's
meta.json, so that they outlive other settings; others' tars and those behind URLs, which are not
fetched for it, have the second alone, from the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from depthdist.core.files import read_at
from depthdist.core.splitmix64 import mix
from depthdist.shards.index import Index

KINDS = ("picture's file", "point map's file", "picture in the tar", "depth in the tar")
HELD_OUT = (("val", "train"), ("test", "train"), ("test", "val"))  # which must not be in which
NUM_THREADS = 16  # readers of meta.json, which mostly wait for the disk
MAX_NAMED = 5


def image_hashes(index: Index, split: str, part: int = 0, of: int = 1) -> np.ndarray:
    """Return (N, 4) uint64 of the samples of a split, 0 where a hash is not known.

    part, of  read the meta.json of every `of`-th shard, from number `part` of them on: several
              processes share them, and the largest of what they find is known
    """
    rows = index.samples(split).rows
    hashes = np.zeros((len(rows), len(KINDS)), np.uint64)
    hashes[:, 2] = _member_hashes(rows, [index.members.index(index.raw["rgb"]["member"])])
    # the mask as well: depths of one size have nothing but 32 bits to tell them apart
    depth = [index.raw[part]["member"] for part in ("depth", "mask")]
    columns = [index.members.index(member) for member in depth if member]
    hashes[:, 3] = _member_hashes(rows, columns)
    if not index.raw.get("foreign") and index.cache is None:
        _read_source_hashes(index, rows, hashes, part, of)
    return hashes


def _member_hashes(rows: np.ndarray, columns: list[int]) -> np.ndarray:
    """Return (N,) uint64 of the sizes and CRC-32s of some members of each row of the table."""
    found = np.zeros(len(rows), np.uint64)
    for column in columns:
        size = rows["size"][:, column].astype(np.uint64)
        crc = rows["member_crc"][:, column].astype(np.uint64)
        found = mix(found ^ (size << np.uint64(32) | crc))
    return np.maximum(found, np.uint64(1))


def _read_source_hashes(
    index: Index, rows: np.ndarray, hashes: np.ndarray, part: int, of: int
) -> None:
    """Fill the columns of the sources' sha256 from each meta.json; what is damaged stays 0."""
    column = index.members.index(index.raw["meta"]["member"])
    order = np.argsort(rows["shard"], kind="stable")
    of_shards = np.split(order, np.flatnonzero(np.diff(rows["shard"][order])) + 1)

    def read(numbers: np.ndarray) -> None:
        with (
            contextlib.suppress(OSError),  # a missing shard is named where its samples are read
            open(index.shard_path(int(rows["shard"][numbers[0]])), "rb", buffering=0) as file,
        ):
            for number in numbers.tolist():
                row = rows[number]
                place = int(row["start"]) + int(row["at"][column])
                content = read_at(file.fileno(), int(row["size"][column]), place)
                hashes[number, :2] = _source_hashes(content)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(read, of_shards[part::of] if len(rows) else []))


def source_hash(content: bytes) -> int:
    """Return the first 64 bits of the sha256 of a picture's file, as the first column has it."""
    return int(hashlib.sha256(content).hexdigest()[:16], 16)


def _source_hashes(content: bytes) -> tuple[int, int]:
    """Return the first 64 bits of the sha256 of picture and point map; 0 where it has none."""
    try:
        meta = json.loads(content)
        return int(meta["rgb"]["sha256"][:16], 16), int(meta["xyz"]["sha256"][:16], 16)
    except (ValueError, KeyError, TypeError):
        return 0, 0


def shared_images(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (len(a),) bool, which of the images `a` are also among `b`, both (N, 4) uint64."""
    found = np.zeros(len(a), bool)
    for column in range(len(KINDS)):
        found |= (a[:, column] != 0) & np.isin(a[:, column], b[:, column])
    return found


def describe_shared(hashes: Mapping[str, np.ndarray], stem: Callable[[str, int], str]) -> list[str]:
    """Return a line for each two splits that share images; [] where none do.

    hashes  by split;  stem  the name of sample `number` of a split
    """
    lines = []
    for split, other in HELD_OUT:
        if split not in hashes or other not in hashes:
            continue
        shared = np.flatnonzero(shared_images(hashes[split], hashes[other])).tolist()
        if not shared:
            continue
        names = []
        for number in shared[:MAX_NAMED]:
            found = shared_images(hashes[other], hashes[split][number : number + 1])
            names.append(f"{stem(split, number)} = {stem(other, int(found.argmax()))}")
        more = ", ..." if len(shared) > MAX_NAMED else ""
        lines.append(
            f"{len(shared)} of {len(hashes[split])} images of {split} are in {other} as well (the"
            f" same picture or point map): {', '.join(names)}{more}: their scores say nothing; put"
            " such captures into one group (--split file), or leave one of them out"
        )
    return lines


def describe_shared_of(index: Index) -> list[str]:
    """Return `describe_shared` of a dataset's splits."""
    hashes = {split: image_hashes(index, split) for split in index.raw["splits"]}
    return describe_shared(hashes, lambda split, number: index.samples(split)[number].stem)
