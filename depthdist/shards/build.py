"""A folder of captures becomes a dataset of shards: plan, write in parallel, publish.

    python tools/shard.py RAW OUT --workers 8

plan      find pairs, turn away what the headers betray, split, cut into jobs of one shard each: sizes decide, never the workers
write     every job whose commit record is not there yet, one process a whole shard, into OUT/.build
publish   shards get their final names, then index.json is written, last; only then are files of an older run removed

A run that is killed leaves OUT as it was and goes on where it stopped; a run with nothing to do says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depthdist import __version__
from depthdist.pairs import shown
from depthdist.shards.plan import Plan, ShardSettings, plan
from depthdist.shards.pool import write_all
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.writer import BIN, Job, as_json, merge_stats, sync_folder, write_whole


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold OUT for one run. raises ValueError: another run holds it, or it is no folder that can be written."""
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"{shown(out)}: is a file; expected a folder for the dataset")
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / ".lock", "w")
    except OSError as err:
        raise ValueError(f"{shown(err.filename or out)}: cannot be written: {err.strerror}; expected a folder for the dataset") from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{shown(out)}: another tools/shard.py is writing here; wait for it, or take another OUT") from None
        yield


def shard(settings: ShardSettings) -> dict[str, Any]:
    """Make OUT what RAW and the settings say, and return its index, with `changed`, `rejected` (list) and `note` beside it.

    raises ValueError, one line: RAW cannot be used, OUT cannot be written, no pair is usable, another run is at work
    """
    root, out = Path(settings.raw), Path(settings.out)
    if out.exists() and root.exists() and out.samefile(root):
        raise ValueError(f"{shown(out)}: is RAW as well; expected another folder for the dataset")
    planned = plan(settings)
    with locked(out):
        _refuse_others(out / "index.json")
        for leftover in [*out.glob("*.tmp-*"), *out.glob("*/*.tmp-*"), *out.glob(".build/**/*.tmp-*")]:
            leftover.unlink(missing_ok=True)
        todo = [job for job in planned.jobs if not _record(out / job.name, job) and not _record(job.folder / job.name, job)]
        write_all(todo, settings.workers)
        records = {job.name: _record(job.folder / job.name, job) or _record(out / job.name, job) for job in planned.jobs}
        rejected = [{"path": r.path.relative_to(root).as_posix(), "reason": r.reason} for r in planned.rejects]
        rejected = sorted(rejected + [r for record in records.values() for r in record["rejects"]], key=lambda r: r["path"])
        lines = b"".join(as_json(r) for r in rejected)
        for name in planned.splits or ["train"]:
            if not sum(records[n]["count"] for n in planned.splits.get(name, [])):
                write_whole(out / "rejects.jsonl", lines)
                first = f"; the first: {rejected[0]['path']}: {rejected[0]['reason']}" if rejected else ""
                raise ValueError(f"{shown(root)}: no usable pair for {name}, {len(rejected)} rejected, see {out / 'rejects.jsonl'}{first}")
        index = _index(settings, planned, records, len(rejected))
        files = {"rejects.jsonl": lines, "index.json": as_json(index)}
        changed = any(_content(out / name) != content for name, content in files.items())
        if changed or not all(_record(out / job.name, job) for job in planned.jobs):
            _publish(out, planned.jobs, files)
            changed = True
        _sweep(out, set(records))
    return {**index, "changed": changed, "written": len(todo), "rejected": rejected, "note": planned.note}


def _refuse_others(path: Path) -> None:
    """Raise ValueError when OUT's index.json was written by something else: it would be overwritten."""
    content = _content(path) or b""
    try:
        ours = json.loads(content)["schema"] == SCHEMA
    except (ValueError, KeyError, TypeError):
        ours = not content.strip(b"\0")  # absent, or what a power cut leaves
    if not ours:
        raise ValueError(f"{shown(path)}: was not written by tools/shard.py; take another OUT")


def _record(tar: Path, job: Job) -> dict[str, Any] | None:
    """The commit record of a shard that is there whole and made from this very job, or None."""
    try:
        record = json.loads(tar.with_suffix(".json").read_bytes())
        return record if record["hash"] == job.hash and tar.stat().st_size == record["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _publish(out: Path, jobs: list[Job], files: dict[str, bytes]) -> None:
    """Give shards and files their final names, index.json last; it must never speak of tars that are not its own.

    What needs space on the disk is written before the old index goes; from then on there are only renames.
    """
    build = out / ".build"
    try:
        build.mkdir(exist_ok=True)
        for name, content in files.items():
            write_whole(build / name, content)
        (out / "index.json").unlink(missing_ok=True)
        sync_folder(out)
        for job in jobs:
            if _record(job.folder / job.name, job):
                (out / job.name).parent.mkdir(exist_ok=True)
                for suffix in (".tar", ".json"):
                    os.replace((job.folder / job.name).with_suffix(suffix), (out / job.name).with_suffix(suffix))
        for folder in {(out / job.name).parent for job in jobs}:
            sync_folder(folder)
        for name in files:
            os.replace(build / name, out / name)
        sync_folder(out)
    except OSError as err:
        raise ValueError(f"{shown(err.filename or out)}: cannot be written: {err.strerror}") from err


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _sweep(out: Path, names: set[str]) -> None:
    """Remove what an older run left: its shards that the index no longer lists, and the folder shards were built in."""
    for path in [*out.glob("train/shard-*"), *out.glob("val/shard-*")]:
        if path.suffix in (".tar", ".json") and path.relative_to(out).with_suffix(".tar").as_posix() not in names:
            path.unlink()
    shutil.rmtree(out / ".build", ignore_errors=True)
    for folder in (out / "train", out / "val"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _index(settings: ShardSettings, planned: Plan, records: dict[str, dict[str, Any]], num_rejects: int) -> dict[str, Any]:
    encoding, splits, left_out = planned.encoding, {}, []
    for name, names in planned.splits.items():
        shards = [{part: records[n][part] for part in ("name", "count", "bytes", "sha256", "samples")} for n in names]
        total = merge_stats([records[n]["stats"] for n in names])
        left_out.append(total)
        splits[name] = {"count": sum(s["count"] for s in shards), "shards": shards, "stats": statistics(total, encoding.step_mm)}
    both = merge_stats(left_out)
    jpeg = {"quality": encoding.quality, "subsampling": encoding.subsampling} if encoding.codec == "jpeg" else {}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "created_by": f"depthdist {__version__}",
        "config_hash": planned.hash,
        "settings": settings.content(),
        "size": list(encoding.size),
        "depth": {
            "size": list(encoding.depth_size),
            "step_mm": encoding.step_mm,
            "max_error_mm": encoding.step_mm / 2,
            "near_mm": encoding.near_mm,
            "far_mm": encoding.far_mm,
            "invalid": 0,
        },
        "rgb": {"codec": encoding.codec, **jpeg},
        "splits": splits,
        "out_of_range_pixels": both["nearer"] + both["farther"],
        "measured": {name: both[name] for name in ("measured", "nearer", "farther", "measured_min_mm", "measured_max_mm")},
        "rejects": num_rejects,
    }


def statistics(total: dict[str, Any], step_mm: float) -> dict[str, Any]:
    """Merged integer sums as millimetres: mean and (population) std and bounds of the stored depth."""
    count, first, second = total["valid"], total["sum"], total["sum_of_squares"]
    return {
        "min_mm": total["min_mm"],
        "max_mm": total["max_mm"],
        "mean_mm": step_mm * first / count,
        "std_mm": step_mm * math.sqrt(count * second - first * first) / count,
        "valid_fraction": count / total["pixels"],
        "histogram": {"bin_mm": step_mm * BIN, "counts": total["histogram"]},
    }
