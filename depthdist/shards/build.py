"""A folder of captures becomes a dataset of shards: plan, write in parallel, publish.

    python tools/shard.py RAW OUT --workers 8
    python tools/shard.py RAW OUT --append  # captures that came later
    # or torchrun, srun: each rank takes its share
    deepspeed --hostfile hosts tools/shard.py RAW OUT

plan      find pairs, turn away what the headers betray, split, cut into jobs of one shard each:
          sizes decide, never the workers
write     every job whose commit record is not there yet, one process a whole shard, into OUT/.build
publish   shards get their final names, then index.json is written, last; only then are files of an
          older run removed

A run that is killed leaves OUT as it was and goes on where it stopped; a run with nothing to do
says so.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from depthdist import __version__
from depthdist.captures.near_duplicates import FINGERPRINT, summarize_split
from depthdist.core.errors import SettingsError, printable_path
from depthdist.core.files import sync_folder, write_atomic
from depthdist.distributed.cpu_group import CpuGroup
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.encoding import as_npy
from depthdist.shards.format import Job, as_json
from depthdist.shards.index import Index, as_rows, named_by_content, read_index
from depthdist.shards.plan import NO_DATASET, ExistingDataset, Plan, make_plan
from depthdist.shards.settings import ShardSettings
from depthdist.shards.splits import FIXED
from depthdist.shards.statistics import merge_stats, statistics
from depthdist.shards.worker_pool import write_shards

VISIBLE = 60.0  # seconds until what one node has written must be seen on another


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold OUT for one run. raises ValueError: another run holds it, or it is no folder that can be
    written.
    """
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"{printable_path(out)}: is a file; expected a folder for the dataset")
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / ".lock", "w")
    except OSError as err:
        raise ValueError(
            f"{printable_path(err.filename or out)}: cannot be written: {err.strerror}; expected a folder"
            " for the dataset"
        ) from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{printable_path(out)}: another tools/shard.py is writing here; wait for it, or take"
                " another OUT"
            ) from None
        yield


def build_shards(settings: ShardSettings, ranks: CpuGroup | None = None) -> dict[str, Any] | None:
    """Make OUT what RAW and the settings say, and return its index, with `changed`, `rejected`
    (list) and `note` beside it.

    ranks   those who do it together; each calls this, rank 0 alone gets an answer
    raises ValueError, one line: RAW cannot be used, OUT cannot be written, no pair is usable,
    another run is at work
    """
    ranks, root, out = ranks or CpuGroup(), Path(settings.raw), Path(settings.out)
    with contextlib.ExitStack() as stack:
        with _together(ranks):
            if out.exists() and root.exists() and out.samefile(root):
                raise ValueError(
                    f"{printable_path(out)}: is RAW as well; expected another folder for the dataset"
                )
            before = _before(settings)
            planned = make_plan(settings, before.held)
        with _together(ranks):
            if ranks.rank == 0:
                stack.enter_context(locked(out))
                _refuse_others(out / "index.json")
                if _content(out / "index.json") != before.content:
                    raise ValueError(
                        f"{printable_path(out)}: another tools/shard.py changed it since this one began; run"
                        " again"
                    )
                for leftover in [
                    *out.glob("*.tmp-*"),
                    *out.glob("*/*.tmp-*"),
                    *out.glob(".build/**/*.tmp-*"),
                ]:
                    leftover.unlink(missing_ok=True)
        mine = planned.jobs[ranks.rank :: ranks.size]
        todo = [
            job
            for job in mine
            if not _record(out / job.name, job) and not _record(job.folder / job.name, job)
        ]
        with _together(ranks):
            write_shards(todo, settings.workers, ranks)
        written, index = sum(ranks.gather(len(todo))), None
        with _together(ranks):
            if ranks.rank == 0:
                index = _merge(settings, planned, before, written)
        return index


@contextlib.contextmanager
def _together(ranks: CpuGroup) -> Iterator[None]:
    """What goes wrong on one rank in here stops all of them, each with the same words."""
    try:
        yield
    except SettingsError:
        raise
    except (ValueError, OSError) as err:
        if ranks.size == 1:
            raise
        ranks.agree(str(err))
    else:
        ranks.agree(None)


def _merge(settings: ShardSettings, planned: Plan, before: _Before, written: int) -> dict[str, Any]:
    """Rank 0's part: the records of all shards become an index, and OUT gets it."""
    root, out = Path(settings.raw), Path(settings.out)
    records = {job.name: _seen(out, job) for job in planned.jobs}
    rejected = [
        {"path": r.path.relative_to(root).as_posix(), "reason": r.reason} for r in planned.rejects
    ]
    rejected = sorted(
        rejected + [r for record in records.values() for r in record["rejects"]],
        key=lambda r: r["path"],
    )
    kept = [
        r for r in before.rejects if not (root / r["path"]).exists()
    ]  # of other folders: those of this one were looked at again
    lines = b"".join(as_json(r) for r in sorted(kept + rejected, key=lambda r: r["path"]))
    for name in planned.splits or ["train"]:
        if not before.index and not sum(records[n]["count"] for n in planned.splits.get(name, [])):
            write_atomic(out / "rejects.jsonl", lines)
            first = (
                f"; the first: {rejected[0]['path']}: {rejected[0]['reason']}" if rejected else ""
            )
            raise ValueError(
                f"{printable_path(root)}: no usable pair for {name}, {len(rejected)} rejected, see"
                f" {out / 'rejects.jsonl'}{first}"
            )
    index, files = _index(
        settings, planned, {**before.records, **records}, lines.count(b"\n"), before
    )
    files = {**files, "rejects.jsonl": lines, "index.json": as_json(index)}
    changed = any(_content(out / name) != content for name, content in files.items())
    if changed or not all(_record(out / job.name, job) for job in planned.jobs):
        _publish(out, planned.jobs, files, keep=before.index is not None)
        changed = True
    _sweep(out, {*before.records, *records}, set(files))
    return {
        **index,
        "changed": changed,
        "written": written,
        "rejected": rejected,
        "held": planned.held,
        "note": planned.note,
    }


# ------------------------------------------------------------------------------------ what is there


class _Before:
    """What OUT holds already: its index.json, and where --append adds to it the index, commit
    records by name, rejects, and what the plan must know.
    """

    def __init__(
        self,
        content: bytes | None,
        index: Index | None = None,
        records: dict[str, Any] | None = None,
        rejects: list[dict[str, str]] | None = None,
        held: ExistingDataset = NO_DATASET,
    ):
        self.content, self.index, self.records, self.rejects, self.held = (
            content,
            index,
            records or {},
            rejects or [],
            held,
        )


def _before(settings: ShardSettings) -> _Before:
    """Raises ValueError: OUT cannot be added to, or would be overwritten although it was added to"""
    out = Path(settings.out)
    content = _content(out / "index.json") if out.is_dir() else None
    if not _ours(out / "index.json"):
        if settings.append and (content is not None or any(out.glob("*/shard-*.tar"))):
            found = (
                "is not one of this version"
                if content is not None
                else "is missing, though there are shards"
            )
            raise ValueError(
                f"{printable_path(out / 'index.json')}: {found}; --append adds to a whole dataset only:"
                " shard all captures again, into another OUT"
            )
        return _Before(content)
    if not settings.append:
        times = json.loads((out / "index.json").read_bytes()).get("appended", 0)
        if times:
            raise ValueError(
                f"{printable_path(out)}: captures were added to it {times} times; --append adds more, or"
                " take another OUT (or remove this one) to begin anew"
            )
        return _Before(content)
    index = read_index(out)
    if index.raw.get("foreign"):
        raise ValueError(
            f"{printable_path(out)}: holds somebody else's tars; --append adds to what tools/shard.py wrote"
        )
    had, wanted = index.raw["settings"], settings.content()
    changed = [
        f"--{n.replace('_', '-')} was {had.get(n)}, is {wanted.get(n)}"
        for n in sorted({*had, *wanted})
        if had.get(n) != wanted.get(n)
    ]
    if changed:
        raise ValueError(
            f"{printable_path(out)}: was made with other settings: {'; '.join(changed)}; --append needs the"
            " same"
        )
    records = {}
    for entry in index.shards:
        path = (out / entry["name"]).with_suffix(".json")
        try:
            records[entry["name"]] = json.loads(path.read_bytes())
        except (OSError, ValueError) as err:
            raise ValueError(
                f"{path}: the commit record cannot be read ({err}); --append needs it"
            ) from err
    sides, num_shards, keys = {}, {}, [-1]
    for name, record in records.items():
        split = name.split("/")[0]
        num_shards[split] = num_shards.get(split, 0) + 1
        sides |= {stem: (session, split == "val") for _, stem, session, *_ in record["samples"]}
        keys += [int(key) for key, *_ in record["samples"]]
    rejects = [json.loads(line) for line in (_content(out / "rejects.jsonl") or b"").splitlines()]
    groups = {group: side == "val" for group, side in index.raw.get("groups", {}).items()}
    return _Before(
        content,
        index,
        records,
        rejects,
        ExistingDataset(sides, num_shards, max(keys) + 1, index.depth_size, groups),
    )


def _ours(path: Path) -> bool:
    try:
        raw = json.loads(_content(path) or b"")
        return raw["schema"] == SCHEMA and raw["version"] == VERSION
    except (ValueError, KeyError, TypeError):
        return False


def _seen(out: Path, job: Job) -> dict[str, Any]:
    """The record of a shard that is written, wherever it is.

    Another node's may take a while to be seen.
    """
    until = time.monotonic() + VISIBLE
    while not (record := _record(job.folder / job.name, job) or _record(out / job.name, job)):
        if time.monotonic() > until:
            raise ValueError(
                f"{printable_path(job.folder / job.name)}: was written by another rank and is not seen here;"
                " is OUT on a disk that all nodes share?"
            )
        time.sleep(0.5)
    return record


def _refuse_others(path: Path) -> None:
    """Raise ValueError when OUT's index.json was written by something else, or is of somebody
    else's tars: both would be lost.
    """
    content = _content(path) or b""
    try:
        old = json.loads(content)
        ours = old["schema"] == SCHEMA
        foreign = old.get("foreign", False)
    except (ValueError, KeyError, TypeError):
        ours, foreign = not content.strip(b"\0"), False  # absent, or what a power cut leaves
    if foreign:
        raise ValueError(
            f"{printable_path(path.parent)}: holds somebody else's tars, with an index by --index; take"
            " another OUT"
        )
    if not ours:
        raise ValueError(
            f"{printable_path(path)}: was not written by tools/shard.py; take another OUT"
        )


def _record(tar: Path, job: Job) -> dict[str, Any] | None:
    """The commit record of a shard that is there whole and made from this very job, or None."""
    try:
        record = json.loads(tar.with_suffix(".json").read_bytes())
        return (
            record if record["hash"] == job.hash and tar.stat().st_size == record["bytes"] else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _publish(out: Path, jobs: list[Job], files: dict[str, bytes], keep: bool) -> None:
    """Give shards and files their final names, index.json last.

    It must never speak of tars that are not its own.

    What needs space on the disk is written before the old index goes; from then on there are only
    renames.
    keep  no shard of the old index changes: it may stay until the new one takes its place
    """
    build = out / ".build"
    try:
        build.mkdir(exist_ok=True)
        for name, content in files.items():
            write_atomic(build / name, content)
        if not keep:
            (out / "index.json").unlink(missing_ok=True)
            sync_folder(out)
        for job in jobs:
            if _record(job.folder / job.name, job):
                (out / job.name).parent.mkdir(exist_ok=True)
                for suffix in (".tar", ".json"):
                    os.replace(
                        (job.folder / job.name).with_suffix(suffix),
                        (out / job.name).with_suffix(suffix),
                    )
        for folder in {(out / job.name).parent for job in jobs}:
            sync_folder(folder)
        for name in files:
            os.replace(build / name, out / name)
        sync_folder(out)
    except OSError as err:
        raise ValueError(
            f"{printable_path(err.filename or out)}: cannot be written: {err.strerror}"
        ) from err


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _sweep(out: Path, shards: set[str], files: set[str]) -> None:
    """Remove what an older run left: what the index no longer lists, and the folder shards were
    built in.
    """
    for path in [*out.glob("train/shard-*"), *out.glob("val/shard-*")]:
        if (
            path.suffix in (".tar", ".json")
            and path.relative_to(out).with_suffix(".tar").as_posix() not in shards
        ):
            path.unlink()
    for path in [*out.glob("samples-*.npy"), *out.glob("names-*.txt")]:
        if path.name not in files:
            path.unlink()
    shutil.rmtree(out / ".build", ignore_errors=True)
    for folder in (out / "train", out / "val"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# ---------------------------------------------------------------------------------------- the index


def _index(
    settings: ShardSettings,
    planned: Plan,
    records: dict[str, dict[str, Any]],
    num_rejects: int,
    before: _Before,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The content of index.json, and the files of table and names."""
    encoding, splits, shards, samples = planned.encoding, {}, [], []
    names = sorted(
        records, key=lambda name: (name.split("/")[0], len(name), name)
    )  # train before val, then by number
    for name in names:
        record, split = records[name], name.split("/")[0]
        samples += [(len(shards), *sample) for sample in record["samples"]]
        shards.append({part: record[part] for part in ("name", "bytes", "sha256", "count")})
        splits.setdefault(split, []).append(record)
    rows, text = as_rows(samples)
    table = as_npy(rows)
    entries = {
        "table": named_by_content("samples", ".npy", table),
        "names": named_by_content("names", ".txt", text),
    }
    jpeg = (
        {"quality": encoding.quality, "subsampling": encoding.subsampling}
        if encoding.codec == "jpeg"
        else {}
    )
    both = merge_stats([record["stats"] for record in records.values()])
    old, added = (
        before.index.raw if before.index else {},
        any(records[job.name]["count"] for job in planned.jobs),
    )
    parts = (
        [old["config_hash"], planned.hash]
        if old and added
        else [old["config_hash"]]
        if old
        else [planned.hash]
    )
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "created_by": f"depthdist {__version__}",
        "config_hash": (
            parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
        ),
        "settings": settings.content(),
        "size": list(encoding.size),
        "members": encoding.members,
        "depth": {
            "member": f"depth.{encoding.depth_codec}",
            "codec": encoding.depth_codec,
            "steps": True,
            "size": list(encoding.depth_size),
            "step_mm": encoding.step_mm,
            "max_error_mm": encoding.step_mm / 2,
            "near_mm": encoding.near_mm,
            "far_mm": encoding.far_mm,
            "invalid": 0,
        },
        "mask": {"member": "mask.npy", "packed": True},
        "meta": {"member": "meta.json"},
        "rgb": {"member": encoding.members[-1], "codec": encoding.codec, **jpeg},
        "splits": {
            split: {
                **{part: sum(r[part] for r in ours) for part in ("count", "bytes")},
                "shards": len(ours),
                "stats": statistics(merge_stats([r["stats"] for r in ours]), encoding.step_mm),
            }
            for split, ours in splits.items()
        },
        "shards": shards,
        **entries,
        "out_of_range_pixels": both["nearer"] + both["farther"],
        "measured": {
            name: both[name]
            for name in ("measured", "nearer", "farther", "measured_min_mm", "measured_max_mm")
        },
        "rejects": num_rejects,
        **_near_duplicates(splits),
        **(
            {"groups": groups}
            if (groups := {**old.get("groups", {}), **_named(planned.groups)})
            else {}
        ),
        **({"appended": times} if (times := old.get("appended", 0) + bool(old and added)) else {}),
    }, {entries["table"]["name"]: table, entries["names"]["name"]: text}


def _near_duplicates(splits: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What a reader should know of validation pictures that train has too.

    Nothing where a shard was written before there were fingerprints.
    """
    if "val" not in splits or not all(
        "fingerprints" in record for records in splits.values() for record in records
    ):
        return {}
    stems, prints = {}, {}
    for split, records in splits.items():
        stems[split] = [stem for record in records for _, stem, *_ in record["samples"]]
        prints[split] = np.frombuffer(
            b"".join(
                base64.b64decode(text) for record in records for text in record["fingerprints"]
            ),
            FINGERPRINT,
        )
    return {
        "near_duplicates": summarize_split(
            prints["val"], prints["train"], stems["val"], stems["train"]
        )
    }


def _named(groups: dict[str, bool]) -> dict[str, str]:
    """The side of each group whose name does not say it: captures appended later join it."""
    return {group: "val" if val else "train" for group, val in groups.items() if group not in FIXED}
