"""Measure the detail stage: seconds an image, and a training step, on one thread.

Each precision has a process of its own. The weights are random: time does not depend on them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from depthdist.core.settings import Size, range_problems
from depthdist.core.text_table import format_table
from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.resampling import upsample
from depthdist.losses.relief import ReliefWeights, relief_losses
from depthdist.models.detail import Detail, DetailRecord, coarse_log, refine_by_detail
from depthdist.models.detail_network import MULTIPLE, DetailNetwork
from tools.benchmarks.bars import print_check
from tools.benchmarks.machine import describe_machine, print_machine
from tools.benchmarks.plan import peak_mib
from tools.benchmarks.processes import print_progress, run_module

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
FULL = Size(1200, 1944)  # the camera's images, which have the bar
GOAL_S = 0.5  # for one of them, in the precision that is used there
MATRIX = 2048  # rows of the square matrices that say how fast the machine can be
COARSE = (294, 476)  # size of the adapter's prediction
BOUNDS = DepthRange(250.0, 3900.0)


@dataclass(frozen=True)
class DetailBenchSettings:
    """Detail stage."""

    capture_size: Size = FULL
    "Size of the image."
    precisions: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    "What the inner layers compute in, separated by commas."
    crops: int = 8
    "Crops of a training step."
    crop: int = 256
    "Their side, pixels."
    repeats: int = 5
    "Repetitions of each measurement, after one to warm up; the median counts."

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        sides = f"a multiple of {MULTIPLE}, from {MULTIPLE} to the image's height"
        is_side = self.crop % MULTIPLE == 0 and MULTIPLE <= self.crop <= min(self.capture_size)
        return range_problems(
            self,
            ("crop", is_side, sides),
            ("crops", self.crops >= 1, "1 or more"),
            ("repeats", self.repeats >= 1, "1 or more"),
        )


def measure_detail(settings: DetailBenchSettings) -> int:
    """Print the table, and whether an image took no more than the goal."""
    print_machine(describe_machine())
    words = [*settings.capture_size, settings.crops, settings.crop, settings.repeats]
    measured = {}
    for name in settings.precisions:
        print_progress(f"{name} ...")
        found = run_module(Path(sys.executable), "detail", name, *map(str, words))
        measured[name] = json.loads(found)
    what = {
        "image": f"an image of {settings.capture_size}",
        "step": f"a step of {settings.crops} crops of {settings.crop} px",
    }
    rows = []
    for part, label in what.items():
        for name, found in measured.items():
            of_part = found[part]
            rate = of_part["gflop"] / of_part["cpu_s"]
            values = [f"{of_part['s']:.3f}", f"{of_part['cpu_s']:.3f}", f"{of_part['gflop']:.1f}"]
            values += [f"{rate:.0f}", f"{found['matrix']:.0f}", f"{rate / found['matrix']:.0%}"]
            memory = f"{of_part['more_mib']:.0f}" if part == "image" else ""
            rows.append([f"{label}, {name}", *values, memory])
    header = ["", "s", "CPU s", "GFLOP", "GFLOP/s", "a product's", "share", "MiB more"]
    print(format_table(header, rows))
    print(
        f"median of {settings.repeats}, on one thread; GFLOP/s by CPU time; a product's: of"
        f" {MATRIX} x {MATRIX} matrices in that precision;\na step is forward and backward with the"
        " losses, without reading crops and the optimizer; MiB more: peak of the process beyond"
        " what it was"
    )
    if settings.capture_size == FULL:
        best = min(measured, key=lambda name: float(measured[name]["image"]["cpu_s"]))
        cpu_s = measured[best]["image"]["cpu_s"]
        print_check(cpu_s <= GOAL_S, f"an image in {GOAL_S:g} CPU s: {cpu_s:.2f} in {best}")
    return 0


# -------------------------------------------------------------------- in a process of its own


def measure(name: str, image: tuple[int, int], crops: int, crop: int, repeats: int) -> None:
    """Print what was measured in a precision, as JSON."""
    torch.set_num_threads(1)
    dtype = PRECISIONS[name]
    random = torch.Generator().manual_seed(0)
    network = DetailNetwork().begin(0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.nn.init.normal_(network.head.weight, std=0.01, generator=random)
    detail = Detail(network, DetailRecord("", network.widths, image, step=0))
    rgb = torch.randint(0, 256, (*image, 3), generator=random, dtype=torch.uint8)
    pred = torch.rand(COARSE, generator=random) * 0.5 + 0.2

    def refine() -> None:
        refine_by_detail(detail, pred, rgb, BOUNDS, dtype)

    parts = rgb[:crop, :crop].expand(crops, crop, crop, 3)
    coarse = coarse_log(upsample(pred[None], image), BOUNDS)[:, :crop, :crop]
    coarse = coarse.expand(crops, crop, crop)
    truth = coarse.exp() + 5 * torch.rand(crops, crop, crop, generator=random)
    mask = torch.ones(crops, crop, crop, dtype=torch.bool)

    def train() -> None:
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            log_depth = network(parts, coarse)
        losses = relief_losses(ReliefWeights(), log_depth, coarse, truth, mask, image[1])
        losses["loss"].mean().backward()

    matrix = torch.randn(MATRIX, MATRIX, generator=random).to(dtype)
    product = time_it(lambda: matrix @ matrix, repeats)
    found: dict[str, Any] = {"matrix": 2 * MATRIX**3 / 1e9 / product["cpu_s"]}
    before = peak_mib()
    for part, act in (("image", refine), ("step", train)):
        timed = time_it(act, repeats)
        found[part] = {**timed, "more_mib": peak_mib() - before, "gflop": count_gflop(act)}
    print(json.dumps(found))


def time_it(act: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the median seconds by the clock and of CPU time, without the first."""
    clock, cpu = [], []
    for _ in range(repeats + 1):
        started = time.perf_counter(), time.process_time()
        act()
        clock.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return {"s": median(clock[1:]), "cpu_s": median(cpu[1:])}


def count_gflop(act: Callable[[], object]) -> float:
    """Return the floating-point operations of convolutions and matrix products, 1e9."""
    with FlopCounterMode(display=False) as counter:
        act()
    return float(counter.get_total_flops()) / 1e9


if __name__ == "__main__":
    height, width, *counts = map(int, sys.argv[2:])
    measure(sys.argv[1], (height, width), *counts)
