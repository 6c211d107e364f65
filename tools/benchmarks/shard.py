"""How much of the time of reading and encoding alone `tools/shard.py` keeps: both with as many processes, one after the other."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tools.benchmarks.captures import CaptureSettings, make_raw, say

SHARD = Path(__file__).resolve().parents[1] / "shard.py"


@dataclass(frozen=True)
class ShardBenchSettings(CaptureSettings):
    """Sharding"""

    pairs: int = 96
    "Captures to shard; few different ones, linked under other names."
    workers: int = 2
    "Processes."
    repeats: int = 3
    "Measurements of each."

    def problems(self) -> list[str]:
        return [f"--{n} is {getattr(self, n)}: expected 1 or more" for n in ("pairs", "workers", "repeats", "captures") if getattr(self, n) < 1]


def shard(settings: ShardBenchSettings) -> int:
    """Both rates, and whether this run met the bar."""
    raw = make_raw(settings, settings.pairs)
    size_mb = sum(path.stat().st_size for path in raw.rglob("*") if path.is_file()) / 1e6
    rates: dict[str, list[float]] = {"reading and encoding alone": [], "tools/shard.py": []}
    for repeat in range(settings.repeats):
        rates["reading and encoding alone"].append(settings.pairs / alone(raw, settings.workers))
        rates["tools/shard.py"].append(settings.pairs / whole(raw, settings))
        say(f"{repeat + 1}/{settings.repeats}  " + ", ".join(f"{name} {values[-1]:.2f} pairs/s" for name, values in rates.items()))
    print(f"{settings.pairs} pairs of {settings.capture_size}, {size_mb / settings.pairs:.1f} MB each, {settings.workers} processes, middle of {settings.repeats}")
    for name, values in rates.items():
        print(f"{name:<28}{median(values):>8.2f} pairs/s{median(values) * size_mb / settings.pairs:>9.0f} MB/s")
    kept = median(mine / bare for mine, bare in zip(rates["tools/shard.py"], rates["reading and encoding alone"]))
    print(f"{'met' if kept >= 0.85 else 'MISSED':<8}at least 85 % of reading and encoding alone: {100 * kept:.0f} %")
    return 0


def whole(raw: Path, settings: ShardBenchSettings) -> float:
    """Seconds of the command, from its start to its end, start-up of the processes and the disk included."""
    out = settings.work / "sharded"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, SHARD, raw, out, "--workers", str(settings.workers), "--split", "none", "--shard-mb", "64"], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def alone(raw: Path, workers: int) -> float:
    """Seconds that `workers` processes take to read the captures and encode them, and nothing else: no start-up, statistics, hashes, tars."""
    from depthdist.pairs import find_pairs

    pairs = find_pairs(raw)[0]
    context = multiprocessing.get_context("spawn")
    ready, done, go = context.Barrier(workers + 1), context.Barrier(workers + 1), [pairs[i::workers] for i in range(workers)]
    processes = [context.Process(target=_encode, args=(share, ready, done)) for share in go]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return seconds


def _encode(pairs: list[Any], ready, done) -> None:
    import numpy as np

    from depthdist.config import Size
    from depthdist.pairs import read_pair
    from depthdist.shards.codec import encode_depth, encode_mask, encode_rgb, quantise

    def one(pair) -> int:
        rgb, xyz = read_pair(pair)
        depth, _ = quantise(np.ascontiguousarray(xyz[:, :, 2]), 0.0, 4000.0)
        parts = encode_rgb(rgb, Size(756, 1260), "jpeg", 95, "420")[1], encode_depth(depth, "npy")[1], encode_mask(depth > 0), json.dumps({}).encode()
        return sum(map(len, parts))

    one(pairs[0])
    ready.wait()
    for pair in pairs:
        one(pair)
    done.wait()
