"""What is in tars of others, by their headers alone: which samples, which members, where.

Damage is an error with its place.

shards, by_folder, notes = find_shards(folder)
samples, rejects = scan(folder, shards[0])
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from depthdist.core.errors import printable_path
from depthdist.shards.index_schema import SHARD_NAME

MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's: the key, and the rest of the name
LEFT_OUT = re.compile(r"__[^/]*__($|/)")  # by webdataset as well: about the whole tar
SIDES = {"train": "train", "val": "val", "validation": "val"}  # the split, by the first folder


class Sample(NamedTuple):
    """What the headers show: the tar below the folder, webdataset's key, and by the rest of the
    name (start of the header, offset, size).
    """

    shard: str
    key: str
    members: dict[str, tuple[int, int, int]]

    def rejected(self, why: str) -> dict[str, str]:
        return {"shard": self.shard, "key": self.key, "why": why}


def find_shards(folder: Path) -> tuple[list[str], bool, list[str]]:
    """The tars below `folder`, sorted.

    Whether folders (train/, and val/ or validation/) are the split; and what to know about that.
    """
    found = [
        name
        for name in glob.glob("**/*.tar", root_dir=folder, recursive=True)
        if (folder / name).is_file()
    ]  # none that is hidden
    found = sorted(
        {
            os.path.realpath(folder / name): name for name in sorted(found, key=len, reverse=True)
        }.values()
    )  # a link may show one twice
    if not found:
        packed = next(folder.rglob("*.tar.*"), None)
        raise ValueError(
            f"{printable_path(folder)}: no .tar"
            f" files{f'; {packed.name} is compressed: unpack it to a .tar' if packed else ''}"
        )
    for name in found:
        if not SHARD_NAME.fullmatch(name) or not name.isprintable():
            raise ValueError(
                f"{printable_path(folder / name)}: the name holds characters that cannot be printed;"
                " rename it"
            )
    folders = {name.split("/")[0] for name in found if "/" in name}
    if not {SIDES.get(name) for name in folders} >= {"train", "val"}:
        return found, False, []
    kept = [name for name in found if name.split("/")[0] in SIDES]
    left = f"; {len(found) - len(kept)} other tars are left out" if len(kept) < len(found) else ""
    return kept, True, [f"split by the folders {', '.join(sorted(folders & SIDES.keys()))}{left}"]


def scan(folder: Path, shard: str) -> tuple[list[Sample], list[dict[str, str]]]:
    """The samples of a tar by its headers, and those that cannot be used.

    ValueError where the tar is damaged or cut off.
    """
    samples, rejects, seen = [], [], set()
    members = (
        (m[1], m[2], info)
        for info in _headers(folder / shard)
        if info.isreg() and not LEFT_OUT.match(info.name) and (m := MEMBER.fullmatch(info.name))
    )
    for key, group in itertools.groupby(members, key=lambda member: member[0]):
        group = list(group)
        sample = Sample(
            shard,
            key,
            {name: (info.offset, info.offset_data, info.size) for _, name, info in group},
        )
        why = ""
        if not all(info.name.isprintable() for *_, info in group):
            why = "the name holds characters that cannot be printed"
        elif key.startswith("/") or ".." in key.split("/"):
            why = "the name leads out of the folder"
        elif key in seen:
            why = "the key was used before in this shard; members of one sample must stand together"
        elif len(sample.members) < len(group):
            why = "a member stands there twice"
        elif any(info.issparse() for *_, info in group):
            why = "a member is a sparse file"
        seen.add(key)
        if why:
            rejects.append(sample.rejected(why))
        else:
            samples.append(sample)
    return samples, rejects


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """Every member of a tar; ValueError says at which byte it is damaged or cut off.

    CPython's tarfile takes a broken header for the end of the archive, so what follows that end
    must be zeros to the last byte.
    """
    size, at, last, reason = path.stat().st_size, 0, "its start", ""
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # it would keep all of them
                if not at < tar.offset <= size:
                    reason = f"{info.name} should reach to byte {tar.offset:,}: the tar is cut off"
                    break
                at, last = tar.offset, info.name
                yield info
    except Exception as err:
        # tarfile raises TarError, ValueError, OverflowError, RecursionError ... on broken headers
        reason = f"no tar header that can be read ({err})"
    if not reason:
        with open(path, "rb") as file:
            file.seek(at)
            rest, zeros = file.read(tarfile.BLOCKSIZE), 0
            while rest and not any(rest):
                zeros += len(rest)
                rest = file.read(1 << 20)
        if rest:
            zeros += len(rest) - len(rest.lstrip(b"\0"))
            reason = (
                f"{zeros:,} zeros and then more data: overwritten, or two tars in one file"
                if zeros >= tarfile.BLOCKSIZE
                else "no tar header"
            )
        elif zeros < 2 * tarfile.BLOCKSIZE:
            reason = "the file ends without the zeros that end a tar: it is cut off"
    if reason:
        raise ValueError(
            f"{printable_path(path)}: damaged at byte {at:,} of {size:,}, after {printable_path(last)}: {reason}"
        )
