"""Tars of others get an index beside them and stay as they are: `python tools/shard.py --index
DIR`.

    index = index_in_place(ShardSettings(index="data/crates", unit=1000))        # depth in metres

scan     the headers of each tar, to its very end: which members a sample has, and where
decide   what the members are, by names and headers: a picture, a depth, perhaps a mask and a json
decode   every sample, once: that it can be, its statistics, its CRC-32s
write    table and names, DIR/rejects.jsonl with what cannot be used, and index.json last

Whenever a sample is read its depth becomes uint16 steps, as in our own shards. Nothing pickled is
ever loaded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from depthdist import __version__
from depthdist.captures.readers import METRES_BELOW_MM
from depthdist.captures.sessions import number_sessions
from depthdist.core.errors import printable_path
from depthdist.core.files import write_atomic
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.encoding import as_npy, quantize, resize_nearest
from depthdist.shards.format import LEVELS, as_json, crc32
from depthdist.shards.index import as_rows, named_by_content
from depthdist.shards.index_schema import TABLE_NAME
from depthdist.shards.member_formats import (
    MemberError,
    is_jpeg,
    read_external_depth,
    read_npy_header,
    read_rgb,
)
from depthdist.shards.settings import ShardSettings
from depthdist.shards.splits import split, split_note
from depthdist.shards.statistics import depth_stats, merge_stats, statistics
from depthdist.shards.tar_scan import SIDES, Sample, find_shards, scan

LOOKED_AT = re.compile(r"(^|[.])(jpe?g|png|npy)$", re.IGNORECASE)
FIRST = 8  # samples that tell what the members are, and in which unit
NUMBERS = ("uint16", "float16", "float32", "float64")
OBVIOUS = {  # names that say what a member is, best first
    "picture": [{"", "rgb", "color", "colour", "image", "img"}],
    "depth": [{"depth"}, {"rawdepth"}, {"xyz"}, {"z"}],
    "mask": [{"mask"}],
}
NEEDED = {
    "picture": "a .jpg or .png",
    "depth": (
        "uint16 or float (H, W), (H, W, 1) or X, Y, Z (H, W, 3) in a .npy, or a grey PNG of 16 bits"
    ),
}


def index_in_place(
    settings: ShardSettings, workers: int = 1, progress: Callable[[int], Any] = lambda samples: None
) -> dict[str, Any]:
    """Write the index of the tars below settings.index and return it, with `rejected` (list),
    `notes` (list) and `note` beside it.

    workers  threads, a tar each;  progress  is told of samples
    raises ValueError: not a folder of tars, or one with another index.json; a tar that is damaged
    or cut off (a line each); no or several members that could be the picture or the depth; metres;
    depths of several sizes; a split without a sample
    """
    folder, settings = (
        Path(settings.index),
        replace(settings, raw=settings.index),
    )  # raw: what plan's errors name
    old = _replaceable(folder)
    shards, by_folder, notes = find_shards(folder)
    samples, rejects = (
        [*itertools.chain(*found)]
        for found in zip(*_over(lambda shard, _: scan(folder, shard), shards, workers))
    )
    entries = decide(folder, samples, settings)
    used = []
    for sample in samples:
        missing = [f"no {member}" for member in entries["members"] if member not in sample.members]
        (rejects if missing else used).append(
            sample.rejected(f"has {' and '.join(missing)}") if missing else sample
        )
    session = number_sessions([s.key for s in used], settings.session_gap)
    side = (
        [SIDES[s.shard.split("/")[0]] for s in used]
        if by_folder
        else [("train", "val")[val] for val in split(session, settings)]
    )
    todo: dict[str, list[tuple[Sample, int, str]]] = {}
    for item in zip(used, session, side):
        todo.setdefault(item[0].shard, []).append(item)
    records = _over(
        lambda shard, stop: decode(folder, shard, todo[shard], entries, settings, progress, stop),
        list(todo),
        workers,
    )
    rejects = sorted(
        [*rejects, *itertools.chain(*(record["rejects"] for record in records))],
        key=lambda r: (r["shard"], r["key"]),
    )
    lines = b"".join(map(as_json, rejects))
    for name in sorted(set(side)):
        if not any(name in record["stats"] for record in records):
            write_atomic(folder / "rejects.jsonl", lines)
            first = "{shard}: {key}: {why}".format(**rejects[0])
            raise ValueError(
                f"{printable_path(folder)}: no usable sample for {name}, {len(rejects)} rejected, see"
                f" {folder / 'rejects.jsonl'}; the first: {printable_path(first)}"
            )
    index, files = _index(
        settings, entries, [record for record in records if record["count"]], rejects
    )
    for name, content in {**files, "rejects.jsonl": lines, "index.json": as_json(index)}.items():
        write_atomic(folder / name, content)
    for name in old - files.keys():
        (folder / name).unlink(missing_ok=True)
    notes += _notes(index, used, set().union(*(record["sizes"] for record in records)))
    return {
        **index,
        "rejected": rejects,
        "notes": notes,
        "note": "" if by_folder else split_note(session, [s == "val" for s in side], settings),
    }


def _over(
    function: Callable[[str, threading.Event], Any], shards: list[str], workers: int
) -> list[Any]:
    """function(shard, stop) of each in threads, for hashing and decoding release the GIL.

    `stop` is set where one fails, or at Ctrl-C.

    raises ValueError with a line for each that failed
    """
    stop, errors = threading.Event(), []

    def guarded(shard: str) -> Any:
        try:
            return function(shard, stop)
        except (ValueError, OSError) as err:
            errors.append(
                str(err)
                if isinstance(err, ValueError)
                else f"{printable_path(shard)}: cannot be read: {err.strerror}"
            )
            stop.set()

    with ThreadPoolExecutor(max(1, min(workers, len(shards)))) as pool:
        try:
            results = list(pool.map(guarded, shards))
        finally:
            stop.set()
    if errors:
        raise ValueError("\n".join(sorted(errors)))
    return results


# ------------------------------------------------------------------------------------ what is there


def _replaceable(folder: Path) -> set[str]:
    """The table and names of an earlier run. raises ValueError: not a folder to write in, or its
    index.json is not of such a run
    """
    if not folder.is_dir():
        raise ValueError(
            f"{printable_path(folder)}: {'is a file' if folder.exists() else 'no such folder'}; expected a"
            " folder of tars"
        )
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"{printable_path(folder)}: cannot be written; the index lies beside the tars"
        )
    try:
        old = json.loads((folder / "index.json").read_bytes())
        ours = old["schema"] == SCHEMA
        if ours and old.get("foreign"):
            return set(
                filter(TABLE_NAME.fullmatch, (old[part]["name"] for part in ("table", "names")))
            )
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError):
        ours = False
    what = (
        "belongs to shards that tools/shard.py wrote; --index is for tars of others"
        if ours
        else "was not written by tools/shard.py and would be overwritten; move it away"
    )
    raise ValueError(f"{printable_path(folder / 'index.json')}: {what}")


# ----------------------------------------------------------------------------------------- deciding


def decide(folder: Path, samples: list[Sample], settings: ShardSettings) -> dict[str, Any]:
    """The entries of index.json that say what each member is, from the first samples with the
    members that most have.

    raises ValueError: no sample, no or several members that could be the picture or the depth,
    depth in metres
    """
    if not samples:
        raise ValueError(
            f"{printable_path(folder)}: no samples in its tars; expected members such as 000000.jpg and"
            " 000000.depth.npy"
        )
    common = Counter(frozenset(s.members) for s in samples).most_common(1)[0][0]
    failed, entries, valid, looked_at = "", None, [], sorted(filter(LOOKED_AT.search, common))
    for sample in itertools.islice((s for s in samples if s.members.keys() == common), FIRST):
        try:
            with open(folder / sample.shard, "rb") as file:
                content = _read(file.fileno(), sample, looked_at)[0] if looked_at else {}
            entries = entries or _entries(sorted(common), content, settings)
            z = read_external_depth(entries, content)
            valid.append(z[(z > 0) & (z < np.inf)])
        except ValueError as err:  # this one may be damaged
            failed = (
                failed
                or f"{printable_path(folder / sample.shard)}: {printable_path(sample.key)}: {err}"
            )
    if entries is None:
        raise ValueError(failed)
    found = np.concatenate([*valid, []])
    if (
        settings.unit is None
        and entries["depth"]["dtype"].startswith("float")
        and found.size
        and (median := np.median(found)) < METRES_BELOW_MM
    ):
        raise ValueError(
            f"{printable_path(folder)}: {entries['depth']['member']} looks like metres: the median is"
            f" {median:.4g}; expected mm, or --unit 1000 (the mm in a metre)"
        )
    return entries


def _entries(
    names: list[str], content: dict[str, memoryview], settings: ShardSettings
) -> dict[str, Any]:
    kinds = {
        name: _kind(name, content[name]) if name in content else Kind("", "not looked at")
        for name in names
    }
    picture, depth, mask = (_pick(what, kinds) for what in OBVIOUS)
    jsons, train = (
        [name for name in names if name.lower().endswith("json")],
        settings.depth_size == "train",
    )
    meta = jsons[0] if len(jsons) == 1 else None
    return {
        "members": [member for member in (depth, mask, meta, picture) if member is not None],
        "depth": {
            "member": depth,
            "codec": "png" if depth.lower().endswith("png") else "npy",
            "dtype": kinds[depth].dtype,
            "steps": False,
            "unit_mm": settings.unit or 1.0,
            "resize": train,
            "size": list(settings.size if train else kinds[depth].size),
            "step_mm": settings.far / LEVELS,
            "max_error_mm": settings.far / LEVELS / 2,
            "near_mm": settings.near,
            "far_mm": settings.far,
            "invalid": 0,
        },
        "mask": {"member": mask, "packed": False},
        "meta": {"member": meta},
        "rgb": {"member": picture, "codec": "jpeg" if is_jpeg(picture) else "png"},
    }


class Kind(NamedTuple):
    """What a member can be: "picture", "depth", "mask" or ""; what its header says.

    Type of its numbers, height and width.
    """

    what: str
    text: str
    dtype: str = ""
    size: tuple[int, ...] = ()


def _kind(name: str, content: memoryview) -> Kind:
    bare, _, suffix = name.lower().rpartition(".")
    words = set(re.split("[^a-z]+", bare))
    picture = "" if words & {"mask", "depth", "rawdepth"} else "picture"
    try:
        if is_jpeg(suffix):
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
            return Kind(picture, f"JPEG {height}x{width}")
        if suffix == "png":
            image = Image.open(BytesIO(content), formats=["PNG"])
            can = (
                "depth"
                if image.mode == "I;16"
                else picture or ("mask" if image.mode in ("L", "1") else "")
            )
            size, text, dtype = (
                image.size[::-1],
                f"PNG {image.size[1]}x{image.size[0]}, mode {image.mode}",
                "uint16",
            )
        else:
            shape, _, dtype, _ = read_npy_header(name, content)
            size, text, dtype = (
                shape[:2],
                "pickled Python objects, never loaded" if dtype.hasobject else f"{dtype} {shape}",
                dtype.name,
            )
            can = (
                "mask"
                if dtype in ("uint8", "bool")
                else (
                    "depth"
                    if dtype in NUMBERS and len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,))
                    else ""
                )
            )
    except Exception as err:  # Pillow raises much besides OSError
        return Kind("", str(MemberError(name, f"cannot be read: {err}")))
    return Kind(can if (can == "mask") == ("mask" in words) else "", text, dtype, size)


def _pick(what: str, kinds: dict[str, Kind]) -> str | None:
    """The member that is the picture, the depth or the mask (None: there is none).

    ValueError where it cannot be told.
    """

    def rank(
        name: str,
    ) -> tuple[bool, int]:  # exactly a name that says it, then one that has it in it
        bare = name.lower().rpartition(".")[0]
        exact, within = (
            [i for i, names in enumerate(OBVIOUS[what]) if names & words]
            for words in ({bare}, {*re.split("[^a-z]+", bare)} - {""})
        )
        return not exact, min(exact or within, default=len(OBVIOUS[what]))

    names = sorted((name for name, kind in kinds.items() if kind.what == what), key=rank)
    best = [name for name in names if rank(name) == rank(names[0])]
    told = ", ".join(f"{name} ({kinds[name].text})" for name in best or kinds)
    if not best and what in NEEDED:
        raise ValueError(f"no {what} among its members: {told}; expected {NEEDED[what]}")
    if len(best) > 1:
        raise ValueError(
            f"{told} can all be the {what}; expected one, or one with a name that says it"
        )
    return best[0] if best else None


# ----------------------------------------------------------------------------------------- decoding


def decode(
    folder: Path,
    shard: str,
    todo: list[tuple[Sample, int, str]],
    entries: dict[str, Any],
    settings: ShardSettings,
    progress: Callable[[int], Any],
    stop: threading.Event,
) -> dict[str, Any]:
    """Read and decode samples (sample, session, split) of one tar: {name, bytes, sha256, count,
    samples, rejects, stats by split, sizes of pictures}.

    samples  (split, key, session, start, length, CRC-32, [[offset, size, CRC-32] of each member])
    raises ValueError: depth of another size than in other samples
    """
    rows, rejects, stats, sizes, sha256 = [], [], {}, set(), hashlib.sha256()
    with open(folder / shard, "rb") as file:
        for sample, session, side in todo:
            if stop.is_set():
                break
            try:
                content, *place = _read(file.fileno(), sample, entries["members"])
                size, part = _look(sample, content, entries, settings)
            except MemberError as err:
                rejects.append(sample.rejected(f"{err.member}: {err}"))
            else:
                rows.append(
                    (
                        side,
                        sample.key,
                        session,
                        *place,
                        [
                            [*sample.members[name][1:], crc32(bytes_)]
                            for name, bytes_ in content.items()
                        ],
                    )
                )
                stats[side] = merge_stats([stats[side], part] if side in stats else [part])
                sizes.add(size)
            progress(1)
        while not stop.is_set() and (block := file.read(1 << 20)):
            sha256.update(block)
        return {
            "name": shard,
            "bytes": file.tell(),
            "sha256": sha256.hexdigest(),
            "count": len(rows),
            "samples": rows,
            "rejects": rejects,
            "stats": stats,
            "sizes": sizes,
        }


def _read(fd: int, sample: Sample, names: list[str]) -> tuple[dict[str, memoryview], int, int, int]:
    """Those members' bytes.

    And start, length and CRC-32 of the part of the tar that holds them, headers included.
    """
    places = [sample.members[name] for name in names]
    start = min(header for header, *_ in places)
    length = (
        max(
            offset + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for _, offset, size in places
        )
        - start
    )
    if length >= 2**31:  # what one read gives
        raise MemberError(names[0], f"the sample spans {length:,} bytes; expected less than 2 GiB")
    extent = memoryview(os.pread(fd, length, start))
    content = {
        name: extent[offset - start : offset - start + size]
        for name, (_, offset, size) in zip(names, places)
    }
    return content, start, length, crc32(extent)


def _look(
    sample: Sample, content: dict[str, memoryview], entries: dict[str, Any], settings: ShardSettings
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The picture's size and the sample's share of the statistics.

    MemberError where it cannot be used.
    """
    depth, meta = entries["depth"], entries["meta"]["member"]
    size = read_rgb(entries["rgb"]["member"], content[entries["rgb"]["member"]], None)
    z = read_external_depth(entries, content)
    if z.shape != (wanted := tuple(depth["size"])):
        if not depth["resize"]:
            found, others = ("x".join(map(str, s)) for s in (z.shape, wanted))
            raise ValueError(
                f"{sample.shard}: {sample.key}: depth is {found}, that of the first sample"
                f" {others}; a dataset has one size: take --depth-size train"
            )
        z = resize_nearest(z, wanted)
    if meta:
        try:
            json.loads(bytes(content[meta]))
        except (ValueError, RecursionError) as err:
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
    return size, depth_stats(counts, depth["step_mm"])


# ---------------------------------------------------------------------------------------- the index


def _index(
    settings: ShardSettings,
    entries: dict[str, Any],
    records: list[dict[str, Any]],
    rejects: list[dict[str, str]],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The content of index.json, and the files of table and names.

    Rows go split by split; a shard's may be in both.
    """
    samples, splits, uses = (
        [],
        {},
        Counter(_escaped(key) for record in records for _, key, *_ in record["samples"]),
    )
    for side in ("train", "val"):
        rows = [
            (n, *row[1:])
            for n, record in enumerate(records)
            for row in record["samples"]
            if row[0] == side
        ]
        samples += [
            (n, _escaped(key) + f"@{n}" * (uses[_escaped(key)] > 1), key, *place)
            for n, key, *place in rows
        ]
        if rows:
            stats = statistics(
                merge_stats(
                    [record["stats"][side] for record in records if side in record["stats"]]
                ),
                settings.far / LEVELS,
            )
            splits[side] = {
                "count": len(rows),
                "bytes": sum(length for *_, length, _, _ in rows),
                "shards": len({n for n, *_ in rows}),
                "stats": stats,
            }
    rows, text = as_rows(samples)
    table = as_npy(rows)
    files = {
        "table": named_by_content("samples", ".npy", table),
        "names": named_by_content("names", ".txt", text),
    }
    shards = [
        {part: record[part] for part in ("name", "bytes", "sha256", "count")} for record in records
    ]
    both = merge_stats([stats for record in records for stats in record["stats"].values()])
    how = {**settings.content(), "unit": settings.unit}
    resize = any(record["sizes"] != {settings.size} for record in records)
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "foreign": True,
        "created_by": f"depthdist {__version__}",
        "config_hash": hashlib.sha256(as_json([how, shards, rejects])).hexdigest(),
        "settings": how,
        "size": list(settings.size),
        **entries,
        "rgb": {**entries["rgb"], "resize": resize},
        "splits": splits,
        "shards": shards,
        **files,
        "out_of_range_pixels": both["nearer"] + both["farther"],
        "measured": {
            name: both[name]
            for name in ("measured", "nearer", "farther", "measured_min_mm", "measured_max_mm")
        },
        "rejects": len(rejects),
    }, {files["table"]["name"]: table, files["names"]["name"]: text}


def _escaped(key: str) -> str:
    """A key without the space that ends it in the text of names, and without the @ that comes
    before a shard's number.
    """
    return key.replace("%", "%25").replace(" ", "%20").replace("@", "%40")


def _notes(index: dict[str, Any], used: list[Sample], sizes: set[tuple[int, int]]) -> list[str]:
    """What the members were taken for, and what that costs."""
    depth, unused = (
        index["depth"],
        sorted({name for s in used for name in s.members} - set(index["members"])),
    )
    members = ", ".join(
        f"{what} {index[what]['member']}"
        for what in ("rgb", "depth", "mask", "meta")
        if index[what]["member"] is not None
    )
    notes = [
        f"members: {members}; a unit of {depth['member']} ({depth['dtype']}) is"
        f" {depth['unit_mm']:g} mm"
    ]
    if unused:
        notes.append(f"not used, never loaded: {', '.join(map(printable_path, unused))}")
    if index["rgb"]["resize"]:
        found = "x".join(map(str, next(iter(sizes)))) if len(sizes) == 1 else f"{len(sizes)} sizes"
        notes.append(
            f"pictures are decoded at {found} and resized to {'x'.join(map(str, index['size']))} in"
            " each epoch: shard again for speed, or take --size"
        )
    return notes
