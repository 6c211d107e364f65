"""Scan tars that others wrote, by their headers alone: which samples, which members, where.

    shards, sides, notes = find_shards(folder)
    samples, rejects = scan(folder, shards[0])

Damage is an error that says where it is.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from depthdist.core.errors import printable_path
from depthdist.shards.index_schema import SHARD_NAME
from depthdist.shards.split_names import (
    SKIP,
    SPLITS,
    conflict,
    file_words,
    folder_words,
    several_splits,
)

MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's: the key, and the rest of the name
IGNORED = re.compile(r"__[^/]*__($|/)")  # by webdataset as well: about the whole tar


class Sample(NamedTuple):
    """A sample of a tar, by its headers.

    shard    the tar's name below the folder
    key      webdataset's key
    members  (start of the header, offset, size) by the rest of the name
    """

    shard: str
    key: str
    members: dict[str, tuple[int, int, int]]

    def rejected(self, why: str) -> dict[str, str]:
        """Return the sample's entry in rejects.jsonl."""
        return {"shard": self.shard, "key": self.key, "why": why}


def find_shards(folder: Path) -> tuple[list[str], dict[str, str], list[str]]:
    """Find the tars below `folder`, raise ValueError if there is none or a name is not printable.

    Returns their sorted names; the split of each, {} where neither folders (train/, validation/)
    nor the tars' names (train-000000.tar) say it; and notes about that. Hidden tars are not found.
    """
    names = [
        name
        for name in glob.glob("**/*.tar", root_dir=folder, recursive=True)
        if (folder / name).is_file()
    ]
    # a link may show one twice: the shortest name is kept
    by_file = {
        os.path.realpath(folder / name): name for name in sorted(names, key=len, reverse=True)
    }
    found = sorted(by_file.values())
    if not found:
        packed = next(folder.rglob("*.tar.*"), None)
        advice = f"; {packed.name} is compressed: unpack it to a .tar" if packed else ""
        raise ValueError(f"{printable_path(folder)}: no .tar files{advice}")
    for name in found:
        if not SHARD_NAME.fullmatch(name) or not name.isprintable():
            raise ValueError(
                f"{printable_path(folder / name)}: the name holds characters that cannot be"
                " printed; rename it"
            )
    for kind, words_of in (("folders", folder_words), ("names", file_words)):
        words = {name: words_of(name) for name in found}
        if {split for of_tar in words.values() for split in of_tar.values()} - {"train"}:
            return _split_by_words(folder, kind, words)
    return found, {}, []


def _split_by_words(
    folder: Path, kind: str, words: Mapping[str, Mapping[str, str]]
) -> tuple[list[str], dict[str, str], list[str]]:
    """Return what `find_shards` does, where folders or names of tars say the split.

    words  of each tar: its parts that are named like a split, and which one
    """
    meaning = {part: split for of_tar in words.values() for part, split in of_tar.items()}
    problem = conflict(meaning)
    problem = problem or next(filter(None, map(several_splits, words, words.values())), "")
    named = {name: min(of_tar.values()) for name, of_tar in words.items() if of_tar}
    sides = {name: split for name, split in named.items() if split != SKIP}
    if not sides:
        problem = problem or f"all tars are to be left out ({', '.join(meaning)}); expected others"
    if problem:
        raise ValueError(f"{printable_path(folder)}: {problem}")
    ordered = sorted(meaning, key=lambda part: ((*SPLITS, SKIP).index(meaning[part]), part))
    shown = [part if part == meaning[part] else f"{part} ({meaning[part]})" for part in ordered]
    note = f"split by the {kind} {', '.join(shown)}"
    if len(sides) < len(words):
        note += f"; {len(words) - len(sides)} other tars are left out"
    return list(sides), sides, [note]


def scan(folder: Path, shard: str) -> tuple[list[Sample], list[dict[str, str]]]:
    """Return the samples of a tar by its headers, and the rejects of those that cannot be used.

    Raises ValueError if the tar is damaged or cut off.
    """
    samples: list[Sample] = []
    rejects: list[dict[str, str]] = []
    keys_before: set[str] = set()
    members = _members(folder / shard)
    for key, group in itertools.groupby(members, key=lambda member: member[0]):
        places = {}
        infos = []
        for _, name, info in group:
            places[name] = (info.offset, info.offset_data, info.size)
            infos.append(info)
        sample = Sample(shard, key, places)
        why = _why_unusable(sample, infos, keys_before)
        keys_before.add(key)
        if why:
            rejects.append(sample.rejected(why))
        else:
            samples.append(sample)
    return samples, rejects


def _members(path: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, rest of the name, and header of each file that is a sample's member."""
    for info in _headers(path):
        match = MEMBER.fullmatch(info.name)
        if match and info.isreg() and not IGNORED.match(info.name):
            yield match[1], match[2], info


def _why_unusable(sample: Sample, infos: list[tarfile.TarInfo], keys_before: set[str]) -> str:
    """Return why a sample cannot be used, "" if it can."""
    if not all(info.name.isprintable() for info in infos):
        return "the name holds characters that cannot be printed"
    if sample.key.startswith("/") or ".." in sample.key.split("/"):
        return "the name leads out of the folder"
    if sample.key in keys_before:
        return "the key was used before in this shard; members of one sample must stand together"
    if len(sample.members) < len(infos):
        return "a member stands there twice"
    if any(info.issparse() for info in infos):
        return "a member is a sparse file"
    return ""


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield every member of a tar, raise ValueError that says where it is damaged or cut off.

    CPython's tarfile takes a broken header for the end of the archive, so what follows that end
    must be zeros to the last byte.
    """
    size = path.stat().st_size
    at = 0
    last = "its start"
    reason = ""
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # it would keep all of them
                if not at < tar.offset <= size:
                    reason = f"{info.name} should reach to byte {tar.offset:,}: the tar is cut off"
                    break
                at = tar.offset
                last = info.name
                yield info
    except Exception as err:
        # tarfile raises TarError, ValueError, OverflowError, RecursionError ... on broken headers
        reason = f"no tar header that can be read ({err})"
    reason = reason or _wrong_end(path, at)
    if reason:
        raise ValueError(
            f"{printable_path(path)}: damaged at byte {at:,} of {size:,}, after"
            f" {printable_path(last)}: {reason}"
        )


def _wrong_end(path: Path, at: int) -> str:
    """Return what is wrong with the bytes from `at` on, which must be the zeros that end a tar."""
    num_zeros = 0
    with open(path, "rb") as file:
        file.seek(at)
        block = file.read(tarfile.BLOCKSIZE)
        while block and not any(block):
            num_zeros += len(block)
            block = file.read(1 << 20)
    if block:
        num_zeros += len(block) - len(block.lstrip(b"\0"))
        if num_zeros >= tarfile.BLOCKSIZE:
            return f"{num_zeros:,} zeros and then more data: overwritten, or two tars in one file"
        return "no tar header"
    if num_zeros < 2 * tarfile.BLOCKSIZE:
        return "the file ends without the zeros that end a tar: it is cut off"
    return ""
