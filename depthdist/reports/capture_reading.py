"""Read the captures of a data report, in worker processes: raw captures, or samples of shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from depthdist.captures.layouts import CapturePair, search_folder
from depthdist.captures.read_options import NO_OPTIONS, ReadOptions
from depthdist.captures.readers import read_capture
from depthdist.captures.reading_notes import reading_notes
from depthdist.captures.sessions import number_sessions
from depthdist.core.environment import count_workers, open_pool, start_worker
from depthdist.core.errors import BadFile, printable_path
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.geometry.camera import known_intrinsics
from depthdist.reports.capture_summary import CaptureSummary, summarize_capture
from depthdist.shards.rejects import read_rejects

if TYPE_CHECKING:
    from depthdist.data.loader import Loader


class Rejection(NamedTuple):
    """A file or sample that cannot be used, and why."""

    path: str
    reason: str


class RawJob(NamedTuple):
    """One capture's files to read, its session, and how they are read."""

    pair: CapturePair
    session: int
    options: ReadOptions


class ShardJob(NamedTuple):
    """One sample to read of the shards in a folder."""

    folder: str
    split: str
    number: int


class Source(NamedTuple):
    """What there is to read in a folder, what was rejected before, and how files were paired."""

    kind: str
    jobs: Sequence[RawJob | ShardJob]
    rejections: list[Rejection]
    notes: Sequence[str] = ()


def find_captures(folder: Path, options: ReadOptions = NO_OPTIONS) -> Source:
    """Return what to read in a folder of shards or of raw captures, these as `options` say."""
    return _find_samples(folder) if (folder / "index.json").exists() else _find_raw(folder, options)


def _find_raw(folder: Path, options: ReadOptions) -> Source:
    found = search_folder(folder)
    sessions = number_sessions([pair.stem for pair in found.pairs])
    return Source(
        "raw captures",
        [RawJob(pair, session, options) for pair, session in zip(found.pairs, sessions)],
        [Rejection(printable_path(reject.path), reject.reason) for reject in found.rejects],
        [*found.notes, *reading_notes(found.pairs, options)],
    )


def _find_samples(folder: Path) -> Source:
    dataset = open_dataset(DataSettings(data=(str(folder),)))
    jobs = [
        ShardJob(str(folder), split, number)
        for split in dataset.parts[0].raw["splits"]
        for number in range(dataset.count(split))
    ]
    rejections = [
        Rejection(
            line.get("path") or f"{line.get('shard')}: {line.get('key')}",
            line.get("reason") or line.get("why") or "?",
        )
        for line in read_rejects(folder / "rejects.jsonl")
    ]
    return Source("shards", jobs, rejections)


def read_captures(
    jobs: Sequence[RawJob | ShardJob], workers: int
) -> tuple[list[CaptureSummary], list[Rejection]]:
    """Summarize captures in `workers` processes (0: one per core), in the order of the jobs.

    Returns those that can be read, and why each of the others cannot.
    """
    summaries = []
    rejections = []
    num_workers = count_workers(workers, len(jobs))
    with open_pool(num_workers, start_worker) as pool:
        progress = tqdm(
            pool.map(read_job, jobs),
            desc="looking",
            total=len(jobs),
            unit="capture",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        for found in progress:
            if isinstance(found, CaptureSummary):
                summaries.append(found)
            else:
                rejections.append(found)
    return summaries, rejections


def read_job(job: RawJob | ShardJob) -> CaptureSummary | Rejection:
    """Return a capture's summary, or why it cannot be read."""
    return _read_raw(job) if isinstance(job, RawJob) else _read_sample(job)


def _read_raw(job: RawJob) -> CaptureSummary | Rejection:
    from depthdist.geometry.camera import fit_intrinsics
    from depthdist.geometry.camera_view import find_view_problem

    try:
        capture = read_capture(job.pair, options=job.options)
    except BadFile as err:
        return Rejection(printable_path(err.path), err.reason)
    problem = find_view_problem(capture.xyz)
    return summarize_capture(
        name=job.pair.stem,
        split=job.pair.split or "",
        session=job.session,
        rgb=np.asarray(capture.image),
        depth_mm=capture.xyz[..., 2],
        num_grooves=1 if job.pair.grooves else 0,
        intrinsics=fit_intrinsics(capture.xyz),
        remarks=[problem.text] if problem else [],
    )


def _read_sample(job: ShardJob) -> CaptureSummary | Rejection:
    import torch

    loader = _open_loader(job.folder)
    try:
        batch = loader.samples(job.split, [job.number]).to(torch.device("cpu"))
    except ValueError as err:  # Damaged
        return Rejection(f"{job.split} sample {job.number}", str(err))
    if not batch.mask.any():
        return Rejection(batch.stems[0], "no valid pixel")
    meta = loader.dataset.meta(job.split, job.number)
    _, ref = loader.dataset.find(job.split, job.number)
    label = loader.dataset.groove_label(job.split, job.number)
    num_grooves = 0 if label is None else len(np.unique(label)) - 1
    return summarize_capture(
        name=batch.stems[0],
        split=job.split,
        session=ref.session,
        rgb=batch.rgb[0].numpy(),
        depth_mm=np.where(batch.mask[0].numpy(), batch.depth_mm[0].numpy(), np.nan),
        num_grooves=num_grooves,
        intrinsics=known_intrinsics(meta),
    )


@cache
def _open_loader(folder: str) -> Loader:
    """Open the shards in `folder`, once per worker process."""
    import torch

    from depthdist.data.loader import Loader

    torch.set_num_threads(1)
    settings = DataSettings(data=(folder,), threads=1)
    return Loader(open_dataset(settings), settings)
