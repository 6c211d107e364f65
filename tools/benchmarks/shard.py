"""Measure how much of the speed of reading and encoding alone `tools/shard.py` keeps.

Both run with as many processes, one after the other.
"""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

from depthdist.core.text_table import format_table
from tools.benchmarks.bars import print_check
from tools.benchmarks.captures import CaptureSettings, check_lowest, make_raw
from tools.benchmarks.processes import ROOT, print_progress

ALONE = "reading and encoding alone"
HASHED = "the same and their sha256"
TOOL = "tools/shard.py"
UNCHECKED = "tools/shard.py --no-check-view"


@dataclass(frozen=True)
class ShardBenchSettings(CaptureSettings):
    """Sharding."""

    pairs: int = 320
    "Captures to shard; few different ones, linked under other names."
    workers: int = 2
    "Processes."
    repeats: int = 3
    "Measurements of each."

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return check_lowest(self, {"pairs": 1, "workers": 1, "repeats": 1, "captures": 1})


def measure_sharding(settings: ShardBenchSettings) -> int:
    """Print the rates, and whether this run met the bar."""
    raw = make_raw(settings, settings.pairs)
    size_mb = sum(path.stat().st_size for path in raw.rglob("*") if path.is_file()) / 1e6
    pair_mb = size_mb / settings.pairs
    rates: dict[str, list[float]] = {ALONE: [], HASHED: [], TOOL: [], UNCHECKED: []}
    for repeat in range(settings.repeats):
        alone_s = time_alone(raw, settings.workers, hashed=False)
        hashed_s = time_alone(raw, settings.workers, hashed=True)
        tool_s = time_tool(raw, settings)
        unchecked_s = time_tool(raw, settings, "--no-check-view")
        for name, seconds in zip(rates, (alone_s, hashed_s, tool_s, unchecked_s)):
            rates[name].append(settings.pairs / seconds)
        latest = [f"{name} {values[-1]:.2f} pairs/s" for name, values in rates.items()]
        print_progress(f"{repeat + 1}/{settings.repeats}  {', '.join(latest)}")
    print(
        f"{settings.pairs} pairs of {settings.capture_size}, {pair_mb:.1f} MB each,"
        f" {settings.workers} processes, median of {settings.repeats}"
    )
    rows = [
        [name, f"{median(values):.2f}", f"{median(values) * pair_mb:.0f}"]
        for name, values in rates.items()
    ]
    print(format_table(["", "pairs/s", "MB/s"], rows))
    for name in (ALONE, HASHED):
        kept = median(mine / bare for mine, bare in zip(rates[TOOL], rates[name]))
        print_check(kept >= 0.85, f"at least 85 % of {name}: {100 * kept:.0f} %")
    share = median(mine / bare for mine, bare in zip(rates[TOOL], rates[UNCHECKED]))
    print(f"checking that captures are a camera's view keeps {100 * share:.0f} % of the speed")
    return 0


def time_tool(raw: Path, settings: ShardBenchSettings, *more: str) -> float:
    """Return the seconds of the whole command, start of its processes and the disk included."""
    out = settings.work / "sharded"
    shutil.rmtree(out, ignore_errors=True)
    flags = [*f"--workers {settings.workers} --split none --shard-mb 64".split(), *more]
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "tools/shard.py"), str(raw), str(out), *flags]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def time_alone(raw: Path, workers: int, hashed: bool) -> float:
    """Return the seconds that `workers` processes take to read and encode the captures.

    Nothing else is in it: no start of processes, checks, statistics, tars.

    hashed  also compute the sha256 of the files
    """
    from depthdist.captures.layouts import find_pairs

    pairs = find_pairs(raw)[0]
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(workers + 1)
    done = context.Barrier(workers + 1)
    processes: list[Any] = [
        context.Process(target=_encode, args=(pairs[i::workers], hashed, ready, done))
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return seconds


def _encode(pairs: list[Any], hashed: bool, ready: Barrier, done: Barrier) -> None:
    """Do what every sharder has to, in plain Pillow, NumPy and simplejpeg."""
    import hashlib
    from io import BytesIO

    import numpy as np
    import simplejpeg
    from PIL import Image

    def encode(pair: Any) -> None:
        if hashed:  # what a sharder that keeps provenance has to do as well
            for path in (pair.rgb, pair.xyz):
                hashlib.sha256(path.read_bytes()).hexdigest()
        rgb = Image.open(pair.rgb).convert("RGB").resize((1260, 756), Image.Resampling.BICUBIC)
        z = np.load(pair.xyz)[:, :, 2]
        mask = np.isfinite(z) & (z > 0) & (z <= 4000)
        depth = np.rint(np.where(mask, z, 0) * (65535 / 4000)).astype(np.uint16)
        np.save(BytesIO(), depth)
        simplejpeg.encode_jpeg(np.asarray(rgb), 95, colorspace="RGB", colorsubsampling="420")
        np.packbits(mask, axis=1)

    encode(pairs[0])
    ready.wait()
    for pair in pairs:
        encode(pair)
    done.wait()
