"""Index tars that others wrote, in place: `depthdist shard --index DIR`.

    index = index_in_place(ShardSettings(index="data/crates", unit=1000))        # depth in metres

scan     the headers of each tar, to its very end: which members a sample has, and where (tar_scan)
assign   roles to the members, by names and headers: image, depth, mask, json (member_roles)
decode   every sample, once: that it can be, its statistics, its CRC-32s (external_samples)
write    table and names, DIR/rejects.jsonl with what cannot be used, and index.json last

The tars stay as they are. Whenever a sample is read its depth becomes uint16 steps, as in our own
shards. Nothing pickled is ever loaded.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from depthdist import __version__
from depthdist.captures.sessions import number_sessions
from depthdist.core.errors import printable_path
from depthdist.core.files import parse_json, write_atomic
from depthdist.core.settings import Size
from depthdist.geometry.image_size import most_stretched
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.encoding import as_npy
from depthdist.shards.external_samples import DecodedShard, Todo, decode_shard
from depthdist.shards.format import LEVELS, as_json
from depthdist.shards.index import as_rows, named_by_content
from depthdist.shards.index_schema import TABLE_NAME
from depthdist.shards.member_roles import assign_roles
from depthdist.shards.settings import ShardSettings, settle_split
from depthdist.shards.split_names import SPLITS, unused_names_warning
from depthdist.shards.splits import split, split_note
from depthdist.shards.statistics import merge_stats, statistics
from depthdist.shards.tar_scan import Sample, find_shards, scan

T = TypeVar("T")


def index_in_place(
    settings: ShardSettings, workers: int = 1, progress: Callable[[int], Any] = lambda samples: None
) -> dict[str, Any]:
    """Write the index of the tars below settings.index and return it.

    `rejected` (list), `notes` (list) and `note` stand beside it in what is returned.

    workers   threads, a tar each
    progress  is called with the number of samples done since the last call
    raises ValueError: not a folder of tars, or one with another index.json; a tar that is damaged
    or cut off (a line each); no or several members that could be the image or the depth; metres;
    depths of several sizes; a split without a sample
    """
    folder = Path(settings.index)
    settings = replace(settings, raw=settings.index)  # raw: what plan's errors name
    settings = settle_split(settings, [])
    old_files = _replaceable_files(folder)
    shard_names, named, notes = find_shards(folder)
    scanned = _in_threads(lambda shard, _: scan(folder, shard), shard_names, workers)
    samples = [sample for found, _ in scanned for sample in found]
    rejects = [reject for _, rejected in scanned for reject in rejected]
    entries = assign_roles(folder, samples, settings)
    image_size = Size(*entries.pop("image_size"))
    if settings.size is None:
        notes.append(f"size {image_size}: the images' aspect at the recipe's number of pixels")
    settings = replace(settings, size=image_size)
    used, incomplete = _complete_samples(samples, entries["members"])
    sessions = number_sessions([sample.key for sample in used], settings.session_gap)
    sides = [named[sample.shard] for sample in used] if named else split(sessions, settings)
    todos: dict[str, list[Todo]] = {}
    for todo in map(Todo, used, sessions, sides):
        todos.setdefault(todo.sample.shard, []).append(todo)
    shards = _in_threads(
        lambda shard, stop: decode_shard(
            folder / shard, todos[shard], entries, settings, progress, stop
        ),
        list(todos),
        workers,
    )
    rejects += incomplete
    for shard in shards:
        rejects += shard.rejects
    rejects.sort(key=lambda reject: (reject["shard"], reject["key"]))
    _check_splits(folder, sorted(set(sides)), shards, rejects)
    sizes = set().union(*(shard.sizes for shard in shards))
    entries |= {"stretched": stretched} if (stretched := most_stretched(sizes, image_size)) else {}
    index, files = _index(settings, entries, [shard for shard in shards if shard.samples], rejects)
    files["rejects.jsonl"] = _as_lines(rejects)
    files["index.json"] = as_json(index)  # last: it says that the others are complete
    for name, content in files.items():
        write_atomic(folder / name, content)
    for name in old_files - files.keys():
        (folder / name).unlink(missing_ok=True)
    keys = [sample.key for sample in used]
    warning = unused_names_warning(keys, sides, "tars in folders of these names are used")
    note = "" if named else split_note(sessions, sides, settings)
    return {
        **index,
        "rejected": rejects,
        "notes": [*notes, *_notes(index, used, sizes)],
        "note": "\n".join(filter(None, (warning, note))),
    }


def _in_threads(
    function: Callable[[str, threading.Event], T], shards: list[str], workers: int
) -> list[T]:
    """Return function(shard, stop) of each shard; hashing and decoding release the GIL.

    `stop` is set when one fails, or at Ctrl-C.

    raises ValueError with a line for each that failed
    """
    stop = threading.Event()
    errors: list[str] = []

    def guarded(shard: str) -> T | None:
        try:
            return function(shard, stop)
        except ValueError as err:
            errors.append(str(err))
        except OSError as err:
            errors.append(f"{printable_path(shard)}: cannot be read: {err.strerror}")
        stop.set()
        return None

    with ThreadPoolExecutor(max(1, min(workers, len(shards)))) as pool:
        try:
            results = list(pool.map(guarded, shards))
        finally:
            stop.set()
    if errors:
        raise ValueError("\n".join(sorted(errors)))
    return [result for result in results if result is not None]


def _complete_samples(
    samples: list[Sample], members: list[str]
) -> tuple[list[Sample], list[dict[str, str]]]:
    """Return the samples that have all members, and the rejects of the others."""
    complete = []
    rejects = []
    for sample in samples:
        missing = [f"no {member}" for member in members if member not in sample.members]
        if missing:
            rejects.append(sample.rejected(f"has {' and '.join(missing)}"))
        else:
            complete.append(sample)
    return complete, rejects


def _check_splits(
    folder: Path, names: list[str], shards: list[DecodedShard], rejects: list[dict[str, str]]
) -> None:
    """Raise ValueError if no sample of a split can be used; rejects.jsonl then says why."""
    for name in names:
        if not any(name in shard.stats for shard in shards):
            write_atomic(folder / "rejects.jsonl", _as_lines(rejects))
            first = "{shard}: {key}: {why}".format(**rejects[0])
            raise ValueError(
                f"{printable_path(folder)}: no usable sample for {name}, {len(rejects)} rejected,"
                f" see {folder / 'rejects.jsonl'}; the first: {printable_path(first)}"
            )


def _as_lines(rejects: list[dict[str, str]]) -> bytes:
    return b"".join(map(as_json, rejects))


def _replaceable_files(folder: Path) -> set[str]:
    """Return the names of an earlier run's table and names.

    raises ValueError: not a folder to write in, or its index.json is not of such a run
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise ValueError(f"{printable_path(folder)}: {found}; expected a folder of tars")
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"{printable_path(folder)}: cannot be written; the index lies beside the tars"
        )
    try:
        old = parse_json((folder / "index.json").read_bytes())
        ours = old["schema"] == SCHEMA
        if ours and old.get("foreign"):
            names = [old[part]["name"] for part in ("table", "names")]
            return set(filter(TABLE_NAME.fullmatch, names))
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError):
        ours = False
    reason = (
        "belongs to shards that depthdist shard wrote; --index is for tars of others"
        if ours
        else "was not written by depthdist shard and would be overwritten; move it away"
    )
    raise ValueError(f"{printable_path(folder / 'index.json')}: {reason}")


# ---------------------------------------------------------------------------------------- the index


def _index(
    settings: ShardSettings,
    entries: dict[str, Any],
    shards: list[DecodedShard],
    rejects: list[dict[str, str]],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the content of index.json, and the files of table and names.

    Rows go split by split; a shard's may be in both.
    """
    samples: list[tuple[Any, ...]] = []
    splits: dict[str, dict[str, Any]] = {}
    for side in sorted(SPLITS):  # in the order of JSON's keys, as the index is read
        rows = _rows_of_split(shards, side)
        samples += rows
        if rows:
            parts = [shard.stats[side] for shard in shards if side in shard.stats]
            splits[side] = {
                "count": len(rows),
                "bytes": sum(length for *_, length, _, _ in rows),
                "shards": len({number for number, *_ in rows}),
                "stats": statistics(
                    merge_stats(parts),
                    settings.far / LEVELS,
                    settings.keep_near,
                    settings.keep_far,
                ),
            }
    table_rows, names = as_rows(samples)
    table = as_npy(table_rows)
    files = {
        "table": named_by_content("samples", ".npy", table),
        "names": named_by_content("names", ".txt", names),
    }
    shard_entries = [shard.entry() for shard in shards]
    all_stats = merge_stats([stats for shard in shards for stats in shard.stats.values()])
    made_with = {**replace(settings, unit=None).content(), "unit": settings.unit}
    assert settings.size is not None, "index_in_place has chosen one"
    resize = any(shard.sizes != {settings.size} for shard in shards)
    config = as_json([made_with, shard_entries, rejects])
    index = {
        "schema": SCHEMA,
        "version": VERSION,
        "foreign": True,
        "created_by": f"depthdist {__version__}",
        "config_hash": hashlib.sha256(config).hexdigest(),
        "settings": made_with,
        "size": list(settings.size),
        **entries,
        "rgb": {**entries["rgb"], "resize": resize},
        "splits": splits,
        "shards": shard_entries,
        **files,
        "out_of_range_pixels": all_stats["nearer"] + all_stats["farther"],
        "measured": {
            name: all_stats[name]
            for name in ("measured", "nearer", "farther", "measured_min_mm", "measured_max_mm")
        },
        "rejects": len(rejects),
    }
    return index, {files["table"]["name"]: table, files["names"]["name"]: names}


def _rows_of_split(shards: list[DecodedShard], side: str) -> list[tuple[Any, ...]]:
    """Return what `as_rows` takes of each sample of a split.

    A key that is used more than once gets the shard's number behind an @.
    """
    uses = Counter(_escape(sample.key) for shard in shards for sample in shard.samples)
    rows = []
    for number, shard in enumerate(shards):
        for sample in shard.samples:
            if sample.split == side:
                key = _escape(sample.key)
                if uses[key] > 1:
                    key += f"@{number}"
                place = (sample.start, sample.length, sample.crc, sample.members)
                rows.append((number, key, sample.key, sample.session, *place))
    return rows


def _escape(key: str) -> str:
    """Return the key without spaces and @, which the text of names gives a meaning.

    A space ends a key there, and an @ comes before a shard's number.
    """
    return key.replace("%", "%25").replace(" ", "%20").replace("@", "%40")


def _notes(index: dict[str, Any], used: list[Sample], sizes: set[tuple[int, int]]) -> list[str]:
    """Return lines that say which role each member got, and what that costs."""
    depth = index["depth"]
    members = ", ".join(
        f"{role} {index[role]['member']}"
        for role in ("rgb", "depth", "mask", "meta")
        if index[role]["member"] is not None
    )
    notes = [
        f"members: {members}; a unit of {depth['member']} ({depth['dtype']}) is"
        f" {depth['unit_mm']:g} mm"
    ]
    all_members = set(itertools.chain(*(sample.members for sample in used)))
    unused = sorted(all_members - set(index["members"]))
    if unused:
        notes.append(f"not used, never loaded: {', '.join(map(printable_path, unused))}")
    if index["rgb"]["resize"]:
        found = "x".join(map(str, next(iter(sizes)))) if len(sizes) == 1 else f"{len(sizes)} sizes"
        notes.append(
            f"images are decoded at {found} and resized to {'x'.join(map(str, index['size']))} in"
            " each epoch: shard again for speed, or take --size"
        )
    return notes
