"""How much of the time of reading and encoding alone `tools/shard.py` keeps: both with as many
processes, one after the other.
"""

from __future__ import annotations

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

    pairs: int = 320
    "Captures to shard; few different ones, linked under other names."
    workers: int = 2
    "Processes."
    repeats: int = 3
    "Measurements of each."

    def problems(self) -> list[str]:
        return [
            f"--{n} is {getattr(self, n)}: expected 1 or more"
            for n in ("pairs", "workers", "repeats", "captures")
            if getattr(self, n) < 1
        ]


def shard(settings: ShardBenchSettings) -> int:
    """Both rates, and whether this run met the bar."""
    raw = make_raw(settings, settings.pairs)
    size_mb = sum(path.stat().st_size for path in raw.rglob("*") if path.is_file()) / 1e6
    ways = {
        "reading and encoding alone": lambda: alone(raw, settings.workers, hashed=False),
        "the same and their sha256": lambda: alone(raw, settings.workers, hashed=True),
        "tools/shard.py": lambda: whole(raw, settings),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(settings.repeats):
        for name, seconds in ways.items():
            rates[name].append(settings.pairs / seconds())
        say(
            f"{repeat + 1}/{settings.repeats}  "
            + ", ".join(f"{name} {values[-1]:.2f} pairs/s" for name, values in rates.items())
        )
    print(
        f"{settings.pairs} pairs of {settings.capture_size}, {size_mb / settings.pairs:.1f} MB"
        f" each, {settings.workers} processes, middle of {settings.repeats}"
    )
    for name, values in rates.items():
        print(
            f"{name:<28}{median(values):>8.2f}"
            f" pairs/s{median(values) * size_mb / settings.pairs:>9.0f} MB/s"
        )
    for name in [*ways][:2]:
        kept = median(mine / bare for mine, bare in zip(rates["tools/shard.py"], rates[name]))
        print(
            f"{'met' if kept >= 0.85 else 'MISSED':<8}at least 85 % of {name}: {100 * kept:.0f} %"
        )
    return 0


def whole(raw: Path, settings: ShardBenchSettings) -> float:
    """Seconds of the command, from its start to its end, start-up of the processes and the disk
    included.
    """
    out = settings.work / "sharded"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            SHARD,
            raw,
            out,
            "--workers",
            str(settings.workers),
            "--split",
            "none",
            "--shard-mb",
            "64",
        ],
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def alone(raw: Path, workers: int, hashed: bool) -> float:
    """Seconds that `workers` processes take to read the captures (and hash their files) and encode
    them.

    Nothing else: no start-up, checks, statistics, tars.
    """
    from depthdist.captures.layouts import find_pairs

    pairs = find_pairs(raw)[0]
    context = multiprocessing.get_context("spawn")
    ready, done, go = (
        context.Barrier(workers + 1),
        context.Barrier(workers + 1),
        [pairs[i::workers] for i in range(workers)],
    )
    processes = [context.Process(target=_encode, args=(share, hashed, ready, done)) for share in go]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return seconds


def _encode(pairs: list[Any], hashed: bool, ready, done) -> None:
    """What every sharder has to do, in plain Pillow, NumPy and simplejpeg.

    And what one that keeps provenance has to.
    """
    import hashlib
    from io import BytesIO

    import numpy as np
    import simplejpeg
    from PIL import Image

    def one(pair: Any) -> int:
        for path in (pair.rgb, pair.xyz) if hashed else ():
            hashlib.sha256(path.read_bytes()).hexdigest()
        rgb = Image.open(pair.rgb).convert("RGB").resize((1260, 756), Image.Resampling.BICUBIC)
        z = np.load(pair.xyz)[:, :, 2]
        mask = np.isfinite(z) & (z > 0) & (z <= 4000)
        depth = np.rint(np.where(mask, z, 0) * (65535 / 4000)).astype(np.uint16)
        np.save(file := BytesIO(), depth)
        return (
            len(
                simplejpeg.encode_jpeg(
                    np.asarray(rgb), 95, colorspace="RGB", colorsubsampling="420"
                )
            )
            + len(file.getvalue())
            + np.packbits(mask, axis=1).size
        )

    one(pairs[0])
    ready.wait()
    for pair in pairs:
        one(pair)
    done.wait()
