"""Make up the commit records of a dataset's shards, and merge them as the end of sharding does."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.benchmarks.plan import SAMPLE_BYTES, SHARD_SAMPLES, peak_mib

MEMBERS = 4  # of a sample
NUM_STATS = 8  # shards' statistics that differ
HELD_OUT = 5  # every 5th shard is of val


def write_records(folder: Path, count: int, ranks: int) -> dict[str, Any]:
    """Write the records of shards that are written and not yet published, 2 kB a capture.

    The shards are empty files of the right size, which take no space on the disk.
    """
    from depthdist.shards.format import as_json

    draw = np.random.default_rng(0)
    all_stats = [shard_stats(draw) for _ in range(NUM_STATS)]
    jobs = made_up_jobs(folder, count)
    for job in jobs:
        tar = job.folder / job.name
        tar.parent.mkdir(parents=True, exist_ok=True)
        num_bytes = len(job.items) * SAMPLE_BYTES
        with open(tar, "wb") as file:
            file.truncate(num_bytes)
        record = {
            "hash": job.hash,
            "name": job.name,
            "bytes": num_bytes,
            "sha256": "0" * 64,
            **samples_of(job, all_stats[len(job.items[0].key) % NUM_STATS], draw),
        }
        tar.with_suffix(".json").write_bytes(as_json(record))
    return {"shards": len(jobs)}


def made_up_jobs(folder: Path, count: int) -> list[Any]:
    """Return jobs of so many captures, as a plan has them."""
    from depthdist.captures.layouts import CapturePair
    from depthdist.captures.read_options import NO_OPTIONS
    from depthdist.core.settings import Size
    from depthdist.shards.format import Encoding, Item, Job

    size = Size(756, 1260)
    encoding = Encoding(size, size, 0.0, 4000.0, "jpeg", 95, "4:4:4", "npy", True)
    numbers = {"train": 0, "val": 0}
    jobs = []
    for number in range(-(-count // SHARD_SAMPLES)):
        items = []
        for i in range(number * SHARD_SAMPLES, min(count, (number + 1) * SHARD_SAMPLES)):
            stem = f"21-12-03-18-50-31_Zivid_acquisition_{i:08d}"
            rgb, xyz = f"images/{stem}_color.png", f"depth/{stem}_rawDepth.npy"
            items.append(Item(f"{i:08d}", CapturePair(stem, str(folder), rgb, xyz), i // 100))
        split = "train" if number % HELD_OUT else "val"
        name = f"{split}/shard-{numbers[split]:06d}.tar"
        numbers[split] += 1
        jobs.append(
            Job(name, items, f"{number:064x}", folder, folder / ".build", encoding, NO_OPTIONS)
        )
    return jobs


def shard_stats(draw: np.random.Generator) -> dict[str, Any]:
    """Return the statistics of a shard of captures around 1.5 m."""
    from depthdist.shards.format import LEVELS
    from depthdist.shards.statistics import depth_stats, merge_stats

    parts = []
    for _ in range(SHARD_SAMPLES):
        levels = draw.normal(24000, 5000, 50_000).clip(1, LEVELS).astype(int)
        counts = {
            "histogram": np.bincount(levels, minlength=LEVELS + 1),
            "flying": np.zeros(LEVELS + 1, np.int64),
            "measured": 50_000,
            "nearer": 0,
            "farther": 0,
            "measured_min_mm": 300.0,
            "measured_max_mm": 3900.0,
            "no_value": {"NaN": [1000, 1]},
            "raw_bytes": 5 * SAMPLE_BYTES,
        }
        parts.append(depth_stats(counts, 4000 / LEVELS, ""))
    return merge_stats(parts)


def samples_of(job: Any, stats: dict[str, Any], draw: np.random.Generator) -> dict[str, Any]:
    """Return what the record of a shard says of its samples."""
    size = SAMPLE_BYTES // MEMBERS
    edges = [[[8.12, 1.23, -0.57, 0.31], 8.52, [0.0, -0.01]]] * len(job.items)
    samples = []
    for i, item in enumerate(job.items):
        start = i * SAMPLE_BYTES
        crcs = draw.integers(1 << 32, size=MEMBERS + 1).tolist()
        places = [[start + 512 + n * size, size - 512, crcs[n]] for n in range(MEMBERS)]
        samples.append(
            [item.key, item.pair.stem, item.session, start, SAMPLE_BYTES, crcs[-1], places]
        )
    prints = draw.integers(256, size=(len(samples), 1032), dtype=np.uint8)
    tails = [[item.pair.stem, *tail[1:]] for item, tail in zip(job.items, stats["tails"])]
    return {
        "count": len(samples),
        "samples": samples,
        "fingerprints": [base64.b64encode(one.tobytes()).decode() for one in prints],
        "rejects": [],
        "warnings": [],
        "edges": edges,
        "stats": {**stats, "tails": sorted(tails)},
    }


def merge(out: Path, count: int, ranks: int) -> dict[str, Any]:
    """Merge the records of so many captures; return seconds, and memory beyond imports and jobs."""
    from depthdist.core.settings import Size
    from depthdist.shards.build import _merge
    from depthdist.shards.plan import Plan
    from depthdist.shards.previous_output import PreviousOutput
    from depthdist.shards.settings import ShardSettings

    jobs = made_up_jobs(out, count)
    splits: dict[str, list[str]] = {}
    for job in jobs:
        splits.setdefault(job.name.split("/")[0], []).append(job.name)
    size = Size(756, 1260)
    settings = ShardSettings(raw=str(out / "raw"), out=str(out), size=size)
    plan = Plan(jobs, splits, [], "0" * 64, jobs[0].encoding, "", 0, {}, [], size, size)
    before = peak_mib()
    start = time.perf_counter()
    _merge(settings, plan, PreviousOutput(None), len(jobs))
    return {"s": time.perf_counter() - start, "mib": peak_mib() - before}
