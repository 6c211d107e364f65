"""The rows of the loaders' table: how each is run, what each repeat gave, whether it is right."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import simplejpeg

from tools.benchmarks.processes import print_progress, run_module

LIMIT_S = 300  # a measurement that takes longer has failed

Measurement = dict[str, Any]
"""What tools.benchmarks.measure_loader prints."""


@dataclass
class Row:
    """One loader of a table.

    python    that of the loader's own environment
    job       the fields of loaders.Job
    note      a remark beside its numbers
    skipped   why it has no numbers, "" where it has some
    runs      what each repeat gave
    """

    label: str
    python: Path
    job: dict[str, Any]
    note: str = ""
    skipped: str = ""
    runs: list[Measurement] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """Whether there are numbers to show."""
        return bool(self.runs) and not self.skipped

    def median(self, value: Callable[[Measurement], float]) -> float:
        """Return the median over the repeats of a value of one."""
        return median(map(value, self.runs))

    def speedup(self, other: Row, clock: str = "seconds") -> float:
        """Return how many times as fast as `other` this is: the median of the repeats' ratios.

        clock  "seconds", or "cpu_seconds" for CPU time
        """
        return median(
            rate(mine, clock) / rate(theirs, clock) for mine, theirs in zip(self.runs, other.runs)
        )


def rate(run: Measurement, clock: str = "seconds") -> float:
    """Return the samples per second of a measurement."""
    return float(run["samples"] / run[clock])


def cpu_ms(run: Measurement) -> float:
    """Return the CPU time of a sample, ms."""
    return 1000 / rate(run, "cpu_seconds")


def measure(rows: list[Row], repeats: int, look: bool) -> float:
    """Fill in the rows' runs, A B C A B C, and return the time that one JPEG alone took, ms.

    look  whether the first repeat adds up all that is delivered
    """
    decode_ms = []
    for repeat in range(repeats):
        for row in [row for row in rows if not row.skipped]:
            job = {**row.job, "look": look and not repeat}
            try:
                out = run_module(
                    row.python, "measure_loader", "measure", json.dumps(job), limit_s=LIMIT_S
                )
            except ValueError as err:
                row.skipped = str(err)
                continue
            row.runs.append(json.loads(out.splitlines()[-1]))
            print_progress(
                f"{repeat + 1}/{repeats}  {row.label:<32}{rate(row.runs[-1]):>8.1f}"
                f" samples/s{cpu_ms(row.runs[-1]):>8.1f} CPU-ms a sample"
            )
        decode_ms.append(jpeg_decode_ms(rows[0].job["shards"]) if rows else 0.0)
    return median(decode_ms)


def jpeg_decode_ms(shards: str) -> float:
    """Return the CPU time to decode one of the images into a new array, and nothing else, ms."""
    images = []
    with tarfile.open(min(Path(shards, "train").glob("*.tar"))) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file and member.name.endswith(".jpg"):
                images.append(file.read())
    start = time.process_time()
    for content in images:
        simplejpeg.decode_jpeg(content)
    return 1000 * (time.process_time() - start) / len(images)


def mark_wrong(rows: list[Row], reference: Row, lossless: str) -> None:
    """Mark in their notes the rows that lost or repeated samples or delivered other values.

    reference  the row whose values are right; only measurements that added up values are compared
    lossless   the loader whose images are not JPEG: they may differ more
    """
    for row in [row for row in rows if row.runs]:
        lost = max(run["lost"] for run in row.runs)
        repeated = max(run["repeated"] for run in row.runs)
        wrong = []
        if lost:
            wrong.append(f"{lost} samples lost")
        if repeated:
            wrong.append(f"{repeated} repeated")
        tolerance = 0.01 if row.job.get("loader") == lossless else 0.001
        added_up = bool(row.runs[0]["delivered"])
        if added_up and not wrong and not same_values(row.runs[0], reference.runs[0], tolerance):
            wrong = [f"other values than {reference.label} delivers"]
        if wrong:
            row.note = f"WRONG: {', '.join(wrong)}" + (f"; {row.note}" if row.note else "")


def same_values(run: Measurement, other: Measurement, tolerance: float = 0.001) -> bool:
    """Return whether depth and mask add up to the same, and images to the same within `tolerance`.

    Images differ by the rounding of the JPEG decoder, or by JPEG itself.
    """
    mine = run["delivered"]
    theirs = other["delivered"]
    return (
        mine["depth"] == theirs["depth"]
        and mine["valid"] == theirs["valid"]
        and bool(abs(mine["rgb"] / theirs["rgb"] - 1) < tolerance)
    )
