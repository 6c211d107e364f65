"""What planning costs as datasets grow: indexes are made up, of 58 to ten million samples, and
opened by a process each.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_BYTES, SHARD_SAMPLES = 2_240_000, 115  # at 756x1260, in shards of 256 MiB
STEADY = 20_000  # samples over which the cost of one is measured


@dataclass(frozen=True)
class PlanSettings:
    """Planning"""

    work: Path = Path("data/bench")
    "Folder for the made-up indexes; 1.5 GB for ten million samples, removed afterwards."
    samples: tuple[int, ...] = (58, 10_000, 1_000_000, 10_000_000)
    "Sizes of the datasets."

    def problems(self) -> list[str]:
        return [f"--samples has {n}: expected 1 or more" for n in self.samples if n < 1]


def plan(settings: PlanSettings) -> int:
    """The table, and whether this run met the bars."""
    rows = []
    for count in settings.samples:
        folder = settings.work / f"plan-{count}"
        made_up(folder, count)
        try:
            rows.append(
                json.loads(
                    subprocess.run(
                        [sys.executable, "-m", "tools.benchmarks.plan", folder.resolve()],
                        check=True,
                        capture_output=True,
                        text=True,
                        cwd=ROOT,
                    ).stdout
                )
            )
        finally:
            shutil.rmtree(folder)
    print(
        f"{'samples':>10}{'shards':>8}{'index MB':>10}{'open s':>9}{'order s':>9}{'start s':>9}{'resume s':>10}{'MiB more':>10}{'us a sample':>13}"
    )
    for count, r in zip(settings.samples, rows):
        print(
            f"{count:>10}{r['shards']:>8}{r['index_mb']:>10.1f}{r['open_s']:>9.3f}{r['order_s']:>9.3f}{r['start_s']:>9.3f}{r['resume_s']:>10.3f}{r['more_mib']:>10.0f}{r['us']:>13.1f}"
        )
    print(
        "open: index and every shard's size; order: the epoch's shuffle; start, resume: all until"
        " the first sample's place is known,"
    )
    print(
        "from the beginning and from the middle; MiB more: peak of the process beyond its imports;"
        f" the last over {STEADY} samples or all\n"
    )
    largest, costs = rows[-1], [r["us"] for r in rows if r["steady"] > 1000]
    for text, met, found in (
        (
            "start under 5 s",
            max(largest["start_s"], largest["resume_s"]) < 5,
            f"{largest['start_s']:.2f} s at {settings.samples[-1]}",
        ),
        ("under 1 GiB", largest["more_mib"] < 1024, f"{largest['more_mib']:.0f} MiB"),
        (
            "flat cost a sample: within 2 x",
            not costs or max(costs) < 2 * min(costs),
            f"{min(costs, default=0):.1f} .. {max(costs, default=0):.1f} us",
        ),
    ):
        print(f"{'met' if met else 'MISSED':<8}{text}: {found}")
    return 0


def made_up(folder: Path, count: int) -> None:
    """An index of `count` samples whose shards are empty files of the right size (they take no
    space on the disk).
    """
    from depthdist.shards import SCHEMA, VERSION
    from depthdist.shards.encoding import as_npy
    from depthdist.shards.index import named_by_content, table_dtype

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "train").mkdir(parents=True)
    number = np.arange(count)
    rows = np.zeros(count, table_dtype(4))
    rows["shard"], rows["start"], rows["length"] = (
        number // SHARD_SAMPLES,
        number % SHARD_SAMPLES * SAMPLE_BYTES,
        SAMPLE_BYTES,
    )
    lines = np.array(
        [b"%08d 21-12-03-18-50-31_Zivid_acquisition_%08d\n" % (i, i) for i in range(count)]
    )
    rows["name"] = number * lines.dtype.itemsize
    entries = {}
    for what, kind, suffix, content in (
        ("table", "samples", ".npy", as_npy(rows)),
        ("names", "names", ".txt", lines.tobytes()),
    ):
        entries[what] = named_by_content(kind, suffix, content)
        (folder / entries[what]["name"]).write_bytes(content)
    shards = []
    for i in range(-(-count // SHARD_SAMPLES)):
        held = min(SHARD_SAMPLES, count - i * SHARD_SAMPLES)
        shards.append(
            {
                "name": f"train/shard-{i:06d}.tar",
                "bytes": held * SAMPLE_BYTES,
                "sha256": "0" * 64,
                "count": held,
            }
        )
        with open(folder / shards[-1]["name"], "wb") as file:
            file.truncate(shards[-1]["bytes"])
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
    (folder / "index.json").write_text(
        json.dumps(
            {
                "schema": SCHEMA,
                "version": VERSION,
                "size": [756, 1260],
                "depth": depth,
                "mask": {"member": "mask.npy", "packed": True},
                "meta": {"member": "meta.json"},
                "rgb": {"member": "rgb.jpg", "codec": "jpeg"},
                "members": ["depth.npy", "mask.npy", "meta.json", "rgb.jpg"],
                "splits": {"train": {"count": count, "stats": stats}},
                "shards": shards,
                **entries,
            }
        )
    )


def measure(folder: Path) -> dict[str, Any]:
    """In a process of its own: how long until the first sample's place is known, and what one costs
    from then on.
    """
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.sample_order import Position, TrainPlan, train_groups

    before = peak_mib()
    clock = time.perf_counter
    began = clock()
    dataset = open_dataset(DataSettings(data=(str(folder),)))
    opened = clock()
    order = dataset.order(0)
    order.epoch(0)
    ordered = clock()
    groups = train_groups(order, TrainPlan(order.num_samples, 8, 1, 1), 0)
    dataset.find("train", next(groups).slots[0].sample)
    started = clock() - ordered + opened - began
    again = clock()
    middle = open_dataset(DataSettings(data=(str(folder),)))
    resumed = train_groups(
        middle.order(0),
        TrainPlan(order.num_samples, 8, 1, 1),
        0,
        Position(3, order.num_samples // 2),
    )
    middle.find("train", next(resumed).slots[0].sample)
    resume_s = clock() - again
    steady = min(STEADY, order.num_samples - 1)
    began_steady = clock()
    for group in islice(groups, steady):
        dataset.find("train", group.slots[0].sample)
    us = (clock() - began_steady) / steady * 1e6
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return {
        "shards": len(dataset.parts[0].shards),
        "index_mb": size / 1e6,
        "open_s": opened - began,
        "order_s": ordered - opened,
        "start_s": started,
        "resume_s": resume_s,
        "more_mib": peak_mib() - before,
        "us": us,
        "steady": steady,
    }


def peak_mib() -> float:
    """Of this process's memory so far."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
