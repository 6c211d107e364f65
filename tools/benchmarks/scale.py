"""Measure what a rank does at the start, and ranks exchange, with a million captures on 64 ranks.

Indexes and scores are made up; no image is read. Rank 0 is one process, which is given what the
other ranks would send; with --processes so many really meet and exchange. What grows with the
captures' files is measured on fewer and multiplied; the step is a model of measured parts.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdist.core.text_table import format_table
from tools.benchmarks.bars import print_check
from tools.benchmarks.plan import SHARD_SAMPLES, write_dataset
from tools.benchmarks.processes import print_progress, run_module
from tools.benchmarks.weak_scaling import print_model

LIMIT_S = 30.0  # of a start
LIMIT_MIB = 2048.0  # of rank 0
LIMIT_SENT = 65536  # bytes of a rank in an evaluation


@dataclass(frozen=True)
class ScaleSettings:
    """Scale."""

    work: Path = Path("data/bench")
    "Folder for what is made up, which is removed afterwards; 2.5 GB."
    captures: int = 1_000_000
    "Captures, a fifth of them for validation."
    ranks: int = 64
    "Ranks, 8 on a machine."
    files: int = 20_000
    "Captures whose files are made to measure how sharding begins."
    processes: int = 64
    "Processes that meet and exchange; a multiple of 8 or fewer."

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            f"--{name} is {getattr(self, name)}: expected 1 or more"
            for name in ("captures", "ranks", "files", "processes")
            if getattr(self, name) < 1
        ]


def measure_scale(settings: ScaleSettings) -> int:
    """Print the tables, and whether this run met the bars."""
    place = settings.work / "scale"
    try:
        print_progress(f"an index of {settings.captures} captures")
        write_dataset(place / "data", settings.captures, settings.captures // 5)
        start = measured(place, "start", settings.captures, settings.ranks)
        print_progress(f"{settings.processes} processes meet")
        met = measured(place, "meet", settings.captures, settings.processes)
        print_progress(f"files of {settings.files} captures")
        shard = measured(place, "shard", settings.files, settings.ranks)
        print_progress(f"commit records of {settings.captures} captures")
        measured(place / "merged", "records", settings.captures, settings.ranks)
        merged = measured(place / "merged", "merge", settings.captures, settings.ranks)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"{settings.captures} captures on {settings.ranks} ranks\n")
    print_start(start, settings)
    print_exchange(start, met, settings)
    print_sharding(shard, settings)
    print_merge(merged, settings)
    print_model(settings.ranks)
    return 0


def measured(place: Path, what: str, count: int, ranks: int) -> dict[str, Any]:
    """Return what a process of its own measured of one part."""
    words = [what, str(place.resolve()), str(count), str(ranks)]
    return dict(json.loads(run_module(Path(sys.executable), "scale_parts", *words)))


def print_start(found: dict[str, Any], settings: ScaleSettings) -> None:
    """Print what rank 0 does until training begins."""
    names = ("settings and opening", "sizes of shards", "hashes of images", "seen.npy", "order")
    columns = {"s": ".2f", "mib": ".0f", "opens": "d", "stats": "d"}
    rows = [
        [name, *(format(found[name][column], spec) for column, spec in columns.items())]
        for name in names
    ]
    print(format_table(["start of rank 0", "s", "peak MiB", "opens", "shards' stats"], rows))
    print("without meeting, the model and the network; peak beyond the imports\n")
    seconds = sum(found[name]["s"] for name in names)
    print_check(seconds < LIMIT_S, f"start under {LIMIT_S:g} s: {seconds:.1f} s")
    most = max(found[name]["mib"] for name in names)
    print_check(most < LIMIT_MIB, f"rank 0 under 2 GiB: {most:.0f} MiB")
    num_shards = -(-settings.captures // SHARD_SAMPLES)
    stats = found["stats of a machine"]
    print_check(
        stats == num_shards,
        f"the ranks of a machine look at each of {num_shards} shards once: {stats} stats",
    )


def print_exchange(start: dict[str, Any], met: dict[str, Any], settings: ScaleSettings) -> None:
    """Print what an evaluation exchanges."""
    sent = start["bytes of scores"]
    print(
        f"\nevaluation of {settings.captures // 5} images, all of them: a rank sends {sent} bytes;"
        f" {settings.ranks} ranks' are put together in {start['scores']['s']:.3f} s"
    )
    print(
        f"{settings.processes} processes: they meet in {met['meet_s']:.1f} s, exchange scores in"
        f" {met['scores_s']:.3f} s and hashes in {met['hashes_s']:.2f} s; the largest has"
        f" {met['mib']:.0f} MiB"
    )
    print_check(sent < LIMIT_SENT, f"under {LIMIT_SENT >> 10} KiB of a rank: {sent / 1024:.1f} KiB")


def print_sharding(found: dict[str, Any], settings: ScaleSettings) -> None:
    """Print how sharding begins, of fewer captures, multiplied."""
    factor = settings.captures / settings.files
    listing, rest = found["listing_s"] * factor, found["rest_s"] * factor
    headers = found["headers_s"] * factor
    mib = found["mib"] * factor
    print(
        f"\nsharding, measured on {settings.files} captures and multiplied: rank 0 lists in"
        f" {listing:.0f} s, plans in {rest:.0f} s;\nheaders {headers:.0f} s by one rank,"
        f" {headers / settings.ranks:.1f} s by {settings.ranks}; {found['opens']:.1f} opens of"
        " headers a capture, whatever the number of ranks"
    )
    seconds = listing + headers / settings.ranks + rest
    print_check(seconds < LIMIT_S, f"plan under {LIMIT_S:g} s: {seconds:.0f} s")
    print_check(mib < LIMIT_MIB, f"rank 0 under 2 GiB: {mib:.0f} MiB")


def print_merge(found: dict[str, Any], settings: ScaleSettings) -> None:
    """Print what the end of sharding takes, when all shards are written."""
    print(
        f"\nthe records of {settings.captures} captures merged in {found['s']:.0f} s, with"
        " near-duplicates of validation and training"
    )
    print_check(found["mib"] < LIMIT_MIB, f"merging under 2 GiB: {found['mib']:.0f} MiB")
