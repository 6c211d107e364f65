"""Build a dataset of shards from a folder of captures: plan, write in parallel, publish.

    depthdist shard RAW OUT --workers 8
    depthdist shard RAW OUT --append  # captures that came later
    # or torchrun, srun: each rank takes its share
    deepspeed --hostfile hosts tools/shard.py RAW OUT

plan      find pairs, reject what their headers rule out, split, cut into jobs of one shard each:
          sizes decide, never the number of workers; rank 0 does it, all read headers
write     every job whose commit record is missing, one process per shard, into OUT/.build
publish   rename shards to their final names, then write index.json, last; only then are files of
          an older run removed

A run that is killed leaves OUT as it was, and the next one continues where it stopped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from depthdist.captures.layouts import CapturePair, search_folder
from depthdist.captures.read_options import ReadOptions
from depthdist.core.errors import BadFile, SettingsError, printable_path
from depthdist.core.file_lock import hold_folder
from depthdist.core.files import parse_json, sync_folder, write_atomic
from depthdist.core.progress import with_progress
from depthdist.core.stop_signals import leave_if_stopped
from depthdist.distributed.cpu_group import MEANWHILE, CpuGroup
from depthdist.shards.format import Job, as_json
from depthdist.shards.headers import (
    Header,
    help_to_look,
    look_at,
    look_together,
    release_helpers,
)
from depthdist.shards.index_writer import compose_index
from depthdist.shards.plan import Plan, make_plan
from depthdist.shards.previous_output import (
    PreviousOutput,
    read_if_present,
    read_previous_output,
    read_record,
    refuse_foreign_index,
)
from depthdist.shards.record_sums import RecordSums, index_order
from depthdist.shards.settings import ShardSettings, settle_split
from depthdist.shards.split_names import SPLITS
from depthdist.shards.worker_pool import write_shards

VISIBILITY_TIMEOUT = 60.0  # seconds until files of one node must be seen on another


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold OUT for one run.

    raises ValueError where another run holds it, or it is no folder that can be written
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{printable_path(out)}: is a file; expected a folder for the dataset")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_folder(out, "depthdist shard", "OUT"))
        except OSError as err:
            raise ValueError(
                f"{printable_path(err.filename or out)}: cannot be written: {err.strerror};"
                " expected a folder for the dataset"
            ) from err
        yield


def build_shards(settings: ShardSettings, ranks: CpuGroup | None = None) -> dict[str, Any] | None:
    """Make OUT the dataset that RAW and the settings describe, and return its index.

    ranks    the processes that share the work; each calls this, only rank 0 gets the index; by
             default those that a launcher started, which part at the end
    returns  the index, and beside its entries `changed`, `written`, `rejected` and `warned`
             (lists), `held` and `note`

    raises ValueError, one line, where RAW cannot be used, OUT cannot be written, no pair is usable,
    or another run is at work
    """
    if ranks is None:
        ranks = CpuGroup()
        index = build_shards(settings, ranks)
        ranks.leave()
        return index
    out = Path(settings.out)
    with contextlib.ExitStack() as stack:
        planned = None
        with _together(ranks):
            if ranks.rank == 0:
                planned = _plan(settings, out, ranks)
            else:
                help_to_look(ranks)
        with _together(ranks):
            if planned:
                stack.enter_context(locked(out))
                _prepare(out, planned.previous)
        num_written = _write(planned.plan.jobs if planned else [], settings, ranks)
        index = None
        with _together(ranks):
            if planned:
                planned = planned.without_captures()
                index = _merge(*planned, num_written)
        return index


def _write(jobs: list[Job], settings: ShardSettings, ranks: CpuGroup) -> int:
    """Write the shards that are missing, each rank its share; return how many they were.

    jobs  of the whole plan, which rank 0 has
    """
    shares = [jobs[rank :: ranks.size] for rank in range(ranks.size)] if ranks.rank == 0 else None
    out = Path(settings.out)
    todo = [job for job in ranks.scatter(shares) if not _find_record(out, job)]
    with _together(ranks):
        write_shards(todo, settings.workers, ranks)
    return sum(ranks.gather(len(todo)))


class _Planned(NamedTuple):
    """What rank 0 alone knows: the settings with all that was chosen, the plan, and OUT before."""

    settings: ShardSettings
    plan: Plan
    previous: PreviousOutput

    def without_captures(self) -> _Planned:
        """Return what is still needed once all shards are written."""
        jobs = [job._replace(items=[]) for job in self.plan.jobs]
        return self._replace(plan=self.plan._replace(jobs=jobs))


def _plan(settings: ShardSettings, out: Path, ranks: CpuGroup) -> _Planned:
    """Return the plan; the other ranks look at headers meanwhile, and never have all captures."""
    have_helped = ranks.size == 1

    def look(pairs: list[CapturePair], options: ReadOptions) -> list[Header | BadFile]:
        nonlocal have_helped
        have_helped = True
        return look_together(pairs, options, ranks)

    try:
        found = None
        if settings.split == "auto":
            found = search_folder(settings.raw)
            settings = settle_split(settings, found.pairs)
        _refuse_same_folder(Path(settings.raw), out)
        previous = read_previous_output(settings)
        plan = make_plan(settings, previous.held, found, look_at if ranks.size == 1 else look)
    finally:
        if not have_helped:
            release_helpers(ranks)
    return _Planned(replace(settings, size=plan.size), plan, previous)


@contextlib.contextmanager
def _together(ranks: CpuGroup) -> Iterator[None]:
    """Stop all ranks with the same message when the block fails on one of them."""
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


def _refuse_same_folder(root: Path, out: Path) -> None:
    if out.exists() and root.exists() and out.samefile(root):
        raise ValueError(
            f"{printable_path(out)}: is RAW as well; expected another folder for the dataset"
        )


def _prepare(out: Path, previous: PreviousOutput) -> None:
    """Check that OUT may be written and is as it was read, and remove unfinished files."""
    refuse_foreign_index(out / "index.json")
    if read_if_present(out / "index.json") != previous.content:
        raise ValueError(
            f"{printable_path(out)}: another depthdist shard changed it since this one began; run"
            " again"
        )
    for pattern in ("*.tmp-*", "*/*.tmp-*", ".build/**/*.tmp-*"):
        for leftover in list(out.glob(pattern)):
            leftover.unlink(missing_ok=True)


def _merge(
    settings: ShardSettings, plan: Plan, previous: PreviousOutput, num_written: int
) -> dict[str, Any]:
    """Make the index from the records of all shards, publish it, and return it."""
    root, out = Path(settings.raw), Path(settings.out)
    with RecordSums(out) as sums:
        shards = _add_records(sums, out, plan.jobs, previous.shards)
        own = {job.name: shards[job.name] for job in plan.jobs}
        rejected = _rejected(root, plan, own)
        # rejects of other folders stay: the files of this one were looked at again
        kept = [reject for reject in previous.rejects if not (root / reject["path"]).exists()]
        lines = [as_json(reject) for reject in sorted(kept + rejected, key=lambda r: r["path"])]
        if not previous.index:
            _refuse_empty_split(settings, plan, own, rejected, b"".join(lines))
        if previous.is_of(plan.hash) and not previous.has("stretched"):
            plan = plan._replace(stretched=[])  # of an older version: its index, and hash, stay
        index, files = compose_index(
            settings,
            plan,
            sums,
            added=any(shard.num_samples for shard in own.values()),
            num_rejects=len(lines),
            old=previous.index.raw if previous.index else {},
        )
    warnings = [warning for shard in shards.values() for warning in shard.warnings]
    if warnings:
        in_order = sorted(warnings, key=lambda warning: warning["path"])
        files["warnings.jsonl"] = b"".join(map(as_json, in_order))
    files |= {"rejects.jsonl": b"".join(lines), "index.json": as_json(index)}
    unpublished = [job for job in plan.jobs if not own[job.name].is_published]
    changed = any(read_if_present(out / name) != content for name, content in files.items())
    if changed or unpublished:
        _publish(out, unpublished, files, keep=previous.index is not None)
        changed = True
    _remove_leftovers(out, shards=set(shards), files=set(files))
    return {
        **index,
        "changed": changed,
        "written": num_written,
        "rejected": rejected,
        "warned": [warning for shard in own.values() for warning in shard.warnings],
        "held": plan.held,
        "note": plan.note,
    }


class _Merged(NamedTuple):
    """What is kept of a shard's commit record once it is added up: all but its samples."""

    num_samples: int
    rejects: list[dict[str, str]]
    warnings: list[dict[str, str]]
    is_published: bool


def _add_records(
    sums: RecordSums, out: Path, jobs: list[Job], previous: list[str]
) -> dict[str, _Merged]:
    """Add up the records of all shards, of which one at a time is in memory.

    previous  names of the shards that OUT had and keeps
    returns   the rest of each record, first of those that OUT had
    """
    by_name = {job.name: job for job in jobs}
    names = list(dict.fromkeys([*previous, *by_name]))
    merged = {}
    for name in with_progress(index_order(names), "merging", "shards"):
        leave_if_stopped(MEANWHILE)
        if name in by_name:
            record, folder = _await_record(out, by_name[name])
        else:
            record, folder = read_record(out / name), out
        sums.add(record)
        merged[name] = _Merged(
            num_samples=record["count"],
            rejects=record.get("rejects", []),
            warnings=record.get("warnings", []),  # older versions wrote none
            is_published=folder == out,
        )
    return {name: merged[name] for name in names}


def _rejected(root: Path, plan: Plan, shards: dict[str, _Merged]) -> list[dict[str, str]]:
    """Return the files that this run rejected, while planning and while writing, by path."""
    found = [
        {"path": reject.path.relative_to(root).as_posix(), "reason": reject.reason}
        for reject in plan.rejects
    ]
    for shard in shards.values():
        found += shard.rejects
    return sorted(found, key=lambda reject: reject["path"])


def _refuse_empty_split(
    settings: ShardSettings,
    plan: Plan,
    shards: dict[str, _Merged],
    rejected: list[dict[str, str]],
    lines: bytes,
) -> None:
    """Write rejects.jsonl and raise ValueError where a split has no sample."""
    path = Path(settings.out) / "rejects.jsonl"
    for name in plan.splits or ["train"]:
        if any(shards[shard].num_samples for shard in plan.splits.get(name, [])):
            continue
        write_atomic(path, lines)
        first = f"; the first: {rejected[0]['path']}: {rejected[0]['reason']}" if rejected else ""
        raise ValueError(
            f"{printable_path(settings.raw)}: no usable pair for {name}, {len(rejected)} rejected,"
            f" see {path}{first}"
        )


# ------------------------------------------------------------------------------------------ records


def _read_record(folder: Path, job: Job) -> dict[str, Any] | None:
    """Return the commit record of a whole shard in `folder` that is of this very job, or None."""
    tar = folder / job.name
    try:
        record = parse_json(tar.with_suffix(".json").read_bytes())
        whole = record["hash"] == job.hash and tar.stat().st_size == record["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def _find_record(out: Path, job: Job) -> tuple[dict[str, Any], Path] | None:
    """Return the record of a shard that was written and its folder, OUT where it is published."""
    for folder in (out, job.folder):
        if record := _read_record(folder, job):
            return record, folder
    return None


def _await_record(out: Path, job: Job) -> tuple[dict[str, Any], Path]:
    """Return `_find_record` of a shard that was written; files of another node may come late."""
    until = time.monotonic() + VISIBILITY_TIMEOUT
    while True:
        if found := _find_record(out, job):
            return found
        if time.monotonic() > until:
            raise ValueError(
                f"{printable_path(job.folder / job.name)}: was written by another rank and is not"
                " seen here; is OUT on a disk that all nodes share?"
            )
        time.sleep(0.5)


# ------------------------------------------------------------------------------------------ publish


def _publish(out: Path, jobs: list[Job], files: dict[str, bytes], keep: bool) -> None:
    """Give shards and files their final names, index.json last: it never lists what is not there.

    jobs  whose shards are not published
    keep  no shard of the old index changes: it may stay until the new one takes its place

    What needs space on the disk is written before the old index is removed; from then on there are
    only renames.
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
            source, target = job.folder / job.name, out / job.name
            target.parent.mkdir(exist_ok=True)
            os.replace(source, target)
            os.replace(source.with_suffix(".json"), target.with_suffix(".json"))
        for folder in {(out / job.name).parent for job in jobs}:
            sync_folder(folder)
        for name in files:
            os.replace(build / name, out / name)
        sync_folder(out)
    except OSError as err:
        raise ValueError(
            f"{printable_path(err.filename or out)}: cannot be written: {err.strerror}"
        ) from err


def _remove_leftovers(out: Path, shards: set[str], files: set[str]) -> None:
    """Remove files of an older run that the index no longer lists, and the build folder."""
    for path in [path for split in SPLITS for path in out.glob(f"{split}/shard-*")]:
        tar = path.relative_to(out).with_suffix(".tar").as_posix()
        if path.suffix in (".tar", ".json") and tar not in shards:
            path.unlink()
    named = ("samples-*.npy", "names-*.txt", "warnings.jsonl")
    for path in [path for pattern in named for path in out.glob(pattern)]:
        if path.name not in files:
            path.unlink()
    shutil.rmtree(out / ".build", ignore_errors=True)
    for folder in (out / split for split in SPLITS):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
