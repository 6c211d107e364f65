"""Measure what opening and shuffling cost as datasets grow, from 58 to ten million samples.

The indexes are generated, and each is opened by a process of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from depthdist.core.text_table import format_table
from tools.benchmarks.bars import print_check
from tools.benchmarks.processes import run_module

SAMPLE_BYTES = 2_240_000  # at 756x1260
SHARD_SAMPLES = 115  # in shards of 256 MiB
STEADY = 20_000  # samples over which the cost of one is measured


@dataclass(frozen=True)
class PlanSettings:
    """Planning."""

    work: Path = Path("data/bench")
    "Folder for the generated indexes; 1.5 GB for ten million samples, removed afterwards."
    samples: tuple[int, ...] = (58, 10_000, 1_000_000, 10_000_000)
    "Sizes of the datasets."

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [f"--samples has {n}: expected 1 or more" for n in self.samples if n < 1]


def measure_planning(settings: PlanSettings) -> int:
    """Print the table, and whether this run met the bars."""
    measured = []
    for count in settings.samples:
        folder = settings.work / f"plan-{count}"
        write_dataset(folder, count)
        try:
            measured.append(
                json.loads(run_module(Path(sys.executable), "plan", str(folder.resolve())))
            )
        finally:
            shutil.rmtree(folder)
    columns = {
        "shards": ("shards", "d"),
        "index MB": ("index_mb", ".1f"),
        "open s": ("open_s", ".3f"),
        "order s": ("order_s", ".3f"),
        "start s": ("start_s", ".3f"),
        "resume s": ("resume_s", ".3f"),
        "MiB more": ("more_mib", ".0f"),
        "us a sample": ("us", ".1f"),
    }
    rows = [
        [count, *(format(values[name], spec) for name, spec in columns.values())]
        for count, values in zip(settings.samples, measured)
    ]
    print(format_table(["samples", *columns], rows))
    print(
        "open: index and every shard's size; order: the epoch's shuffle; start, resume: everything"
        " until the first sample's place is known,\nfrom the beginning and from the middle; MiB"
        " more: peak of the process beyond its imports; the last column over"
        f" {STEADY} samples or all\n"
    )
    largest = measured[-1]
    slowest_start = max(largest["start_s"], largest["resume_s"])
    largest_start = f"{largest['start_s']:.2f} s at {settings.samples[-1]}"
    print_check(slowest_start < 5, f"start under 5 s: {largest_start}")
    print_check(largest["more_mib"] < 1024, f"under 1 GiB: {largest['more_mib']:.0f} MiB")
    costs = [values["us"] for values in measured if values["steady"] > 1000]
    flat = not costs or max(costs) < 2 * min(costs)
    found = f"{min(costs, default=0):.1f} .. {max(costs, default=0):.1f} us"
    print_check(flat, f"flat cost a sample: within 2 x: {found}")
    return 0


def write_dataset(folder: Path, count: int, num_val: int = 0) -> None:
    """Write the index of a dataset of `count` samples, the last of them for validation.

    Its shards are empty files of the right size, which take no space on the disk.
    """
    from depthdist.shards import SCHEMA, VERSION

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "train").mkdir(parents=True)
    shards = []
    for i in range(-(-count // SHARD_SAMPLES)):
        num_samples = min(SHARD_SAMPLES, count - i * SHARD_SAMPLES)
        name = f"train/shard-{i:06d}.tar"
        num_bytes = num_samples * SAMPLE_BYTES
        shards.append({"name": name, "bytes": num_bytes, "sha256": "0" * 64, "count": num_samples})
        with open(folder / name, "wb") as file:
            file.truncate(num_bytes)
    stats = {
        "min_mm": 250.0,
        "max_mm": 3900.0,
        "mean_mm": 1500.0,
        "std_mm": 300.0,
        "valid_pixels": count,
    }
    depth = {
        "member": "depth.npy",
        "codec": "npy",
        "steps": True,
        "size": [756, 1260],
        "step_mm": 0.061,
        "near_mm": 0.0,
        "far_mm": 4000.0,
    }
    index = {
        "schema": SCHEMA,
        "version": VERSION,
        "size": [756, 1260],
        "depth": depth,
        "mask": {"member": "mask.npy", "packed": True},
        "meta": {"member": "meta.json"},
        "rgb": {"member": "rgb.jpg", "codec": "jpeg"},
        "members": ["depth.npy", "mask.npy", "meta.json", "rgb.jpg"],
        "splits": {
            "train": {"count": count - num_val, "stats": stats},
            **({"val": {"count": num_val, "stats": stats}} if num_val else {}),
        },
        "shards": shards,
        **write_sample_table(folder, count),
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def write_sample_table(folder: Path, count: int) -> dict[str, Any]:
    """Write each sample's place and name, return the index's entries of the two files."""
    from depthdist.shards.encoding import as_npy
    from depthdist.shards.index import named_by_content, table_dtype

    number = np.arange(count)
    rows = np.zeros(count, table_dtype(4))
    rows["shard"] = number // SHARD_SAMPLES
    rows["start"] = number % SHARD_SAMPLES * SAMPLE_BYTES
    rows["length"] = SAMPLE_BYTES
    rows["size"] = 1000
    rows["member_crc"] = np.random.default_rng(0).integers(1, 2**32, (count, 4), np.uint32)
    lines = np.array(
        [b"%08d 21-12-03-18-50-31_Zivid_acquisition_%08d\n" % (i, i) for i in range(count)]
    )
    rows["name"] = number * lines.dtype.itemsize
    table = as_npy(rows)
    names = lines.tobytes()
    entries = {
        "table": named_by_content("samples", ".npy", table),
        "names": named_by_content("names", ".txt", names),
    }
    (folder / entries["table"]["name"]).write_bytes(table)
    (folder / entries["names"]["name"]).write_bytes(names)
    return entries


def measure(folder: Path) -> dict[str, Any]:
    """Return how long it takes until the first sample's place is known, and what one costs then.

    To be called in a new process.
    """
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.sample_order import Position, TrainPlan, train_groups

    settings = DataSettings(data=(str(folder),))
    clock = time.perf_counter
    memory_before = peak_mib()

    start = clock()
    dataset = open_dataset(settings)
    opened = clock()
    order = dataset.order(0)
    order.epoch(0)
    ordered = clock()
    plan = TrainPlan(order.num_samples, 8, 1, 1)
    groups = train_groups(order, plan, 0)
    dataset.find("train", next(groups).slots[0].sample)
    started = clock()

    resume_start = clock()
    middle = open_dataset(settings)
    position = Position(3, order.num_samples // 2)
    resumed = train_groups(middle.order(0), plan, 0, position)
    middle.find("train", next(resumed).slots[0].sample)
    resume_s = clock() - resume_start

    steady = min(STEADY, order.num_samples - 1)
    steady_start = clock()
    for group in islice(groups, steady):
        dataset.find("train", group.slots[0].sample)
    steady_s = clock() - steady_start
    return {
        "shards": len(dataset.parts[0].shards),
        "index_mb": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6,
        "open_s": opened - start,
        "order_s": ordered - opened,
        # the groups compute the epoch's order again
        "start_s": (started - ordered) + (opened - start),
        "resume_s": resume_s,
        "more_mib": peak_mib() - memory_before,
        "us": steady_s / steady * 1e6,
        "steady": steady,
    }


def peak_mib() -> float:
    """Return the peak of this process's memory so far."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match, "Linux reports it"
    return int(match[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
