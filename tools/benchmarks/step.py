"""Compare optimizer steps with the ordinary way: transformers' Trainer and peft on raw files.

Captures, their shards and an untrained Depth Anything V2 Small are made, all kept under --work.
Then each of the two paths runs in a process of its own, and they take turns, a global batch each:
with data from the files, with data in memory already, and only reading. Ratios are taken turn by
turn. Before that both compute the loss of the same captures, without dropout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from depthdist.core.settings import Size, as_dict
from depthdist.core.text_table import format_table
from tools.benchmarks.bars import format_bar
from tools.benchmarks.captures import IMAGE_SIZE, CaptureSettings, check_lowest, make_raw
from tools.benchmarks.machine import describe_machine, print_machine
from tools.benchmarks.processes import ROOT, print_progress, run_tool

PATHS = ("ordinary", "ours")
SUPPLIES = {"files": "whole step, with data", "memory": "step alone", "data": "data alone"}
PARTS = ("data", "forward", "backward", "optimizer")
BARS = {"cpu": {"files": 1.5}, "cuda": {"files": 10.0, "memory": 2.0, "waiting": 0.02}}

Turn = dict[str, Any]
"""What a path sends after a turn: seconds, cpu_seconds, parts, memory_gib; ours also waited."""


@dataclass(frozen=True)
class StepSettings(CaptureSettings):
    """Steps."""

    model: str | None = None
    """A whole Depth Anything V2, hub id or folder. Default: one of the Small size with random
    weights."""
    size: Size | None = None
    "Height and width of the images. Default: 756x1260 on a GPU, 378x630 without."
    precision: Literal["fp32", "fp16", "bf16"] | None = None
    """Of both paths; ours takes ds_configs/PRECISION.json, and both take the global batch from
    there. Default: fp16 on a GPU, fp32 without."""
    micro_batch: str | None = None
    """Images that our path puts through the network at a time, or auto. Default: auto on a GPU,
    1 without. The ordinary path has 1, as the document."""
    compile: bool = False
    "Let torch.compile make our path's kernels."
    repeats: int = 3
    "Steps of each path that are measured, after one to warm up."
    json: Path | None = None
    "Also write every measurement to this file."

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return check_lowest(self, {"repeats": 1, "captures": 4})

    def for_device(self, device: str) -> StepSettings:
        """Return the settings with the device's defaults in place of None."""
        gpu = device == "cuda"
        return replace(
            self,
            work=self.work.resolve(),
            size=self.size or (IMAGE_SIZE if gpu else Size(378, 630)),
            precision=self.precision or ("fp16" if gpu else "fp32"),
            micro_batch=self.micro_batch or ("auto" if gpu else "1"),
        )


class Measurements(NamedTuple):
    """What the two paths sent.

    ready  by path, what it sent before its first turn
    runs   by supply and path, its turns after one to warm up
    parts  by path, one more whole step with the time of its parts
    """

    ready: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, list[Turn]]]
    parts: dict[str, Turn]


class Process:
    """A path in a process of its own; `ready` is what it sends before the first turn."""

    def __init__(self, path: str, job: dict[str, Any]):
        self.path = path
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (close() closes it)
        command = [sys.executable, "-m", "tools.benchmarks.step_process", path, json.dumps(job)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
        )
        self.ready = self._answer()

    def turn(self, wanted: str) -> Turn:
        """Let the path take a turn, return what it sends after it."""
        assert self.process.stdin
        print(wanted, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.errors.seek(0)
        errors = self.errors.read().strip().splitlines()
        raise ValueError(
            f"the {self.path} path ended: {errors[-1] if errors else 'without an error message'}"
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()  # no more turns
        self.process.wait()
        self.errors.close()


def compare_steps(settings: StepSettings) -> int:
    """Print the tables, and which bars this run met."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = settings.for_device(device)
    machine = describe_machine()
    print_machine(machine)
    job = make_job(settings)
    measured = take_turns(job, settings.repeats)
    ours = measured.ready["ours"]
    print(f"\n{format_conditions(settings, ours)}")
    print(step_table(measured.runs, ours["batch"]))
    print(f"\n{parts_table(measured.parts)}\n")
    print("\n".join(remarks(settings, job, measured)))
    bars = step_bars(device, measured.runs)
    print("\n".join(map(format_bar, bars)))
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": machine,
            "settings": as_dict(settings),
            "job": job,
            **measured._asdict(),
            "bars": bars,
        }
        settings.json.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    return 0


# ---------------------------------------------------------------------------- what is measured with


def make_job(settings: StepSettings) -> dict[str, Any]:
    """Make everything that the paths need, return the fields of turns.Job."""
    raw = make_raw(settings, settings.captures)
    model = settings.model or str(untrained_small(settings.work / "untrained-small"))
    shards = {}
    for rgb in ("jpeg", "raw"):
        shards[rgb] = settings.work / f"steps-{rgb}-{settings.size}-of-{raw.name}"
        size = ["--size", settings.size]
        run_tool("shard.py", raw, shards[rgb], "--split", "none", *size, "--rgb", rgb)
    stats = json.loads((shards["jpeg"] / "index.json").read_text(encoding="utf-8"))["splits"][
        "train"
    ]["stats"]
    return {
        "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
        "raw": str(raw),
        "shards": str(shards["jpeg"]),
        "lossless": str(shards["raw"]),
        "size": settings.size,
        "near_mm": stats["min_mm"],
        "far_mm": stats["max_mm"],
        "deepspeed": str(ROOT / "ds_configs" / f"{settings.precision}.json"),
        "precision": settings.precision,
        "micro_batch": settings.micro_batch,
        "compile": settings.compile,
    }


def untrained_small(folder: Path) -> Path:
    """Make a folder with Depth Anything V2 Small's architecture and processor, return it.

    Its weights are random, the same ones every time.
    """
    import torch
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    if (folder / "model.safetensors").exists():
        return folder
    print_progress(f"an untrained Depth Anything V2 Small in {folder}")
    backbone: dict[str, Any] = {
        "image_size": 518,
        "patch_size": 14,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "out_indices": [3, 6, 9, 12],
        "reshape_hidden_states": False,
        "apply_layernorm": True,
    }
    torch.manual_seed(0)
    # "metric" ends in a sigmoid: from random weights a "relative" one, with its ReLU, might give 0
    # and no gradient
    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(**backbone),
        reassemble_hidden_size=384,
        patch_size=14,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
        depth_estimation_type="metric",
        max_depth=1,
    )
    DPTImageProcessor(
        size={"height": 518, "width": 518},
        resample=3,
        keep_aspect_ratio=True,
        ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    return folder


def take_turns(job: dict[str, Any], repeats: int) -> Measurements:
    """Let both paths take turns on every supply of data, once to warm up and `repeats` times."""
    runs: dict[str, dict[str, list[Turn]]] = {
        supply: {path: [] for path in PATHS} for supply in SUPPLIES
    }
    with ExitStack() as stack:
        processes = {path: stack.enter_context(Process(path, job)) for path in PATHS}
        for number in range(repeats + 1):
            for supply, path in product(SUPPLIES, PATHS):
                turn = processes[path].turn(supply)
                print_progress(
                    f"{SUPPLIES[supply]:<24}{path:<10}{turn['seconds']:9.3f}"
                    f" s{turn['cpu_seconds']:9.3f} CPU-s{'' if number else '  to warm up'}"
                )
                if number:
                    runs[supply][path].append(turn)
        return Measurements(
            ready={path: process.ready for path, process in processes.items()},
            runs=runs,
            parts={path: process.turn("parts") for path, process in processes.items()},
        )


def count_flop(model: str, size: Size) -> int:
    """Return the floating-point operations of one image's forward and backward pass.

    They are counted on tensors without data: nothing is computed.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForDepthEstimation

    from tools.benchmarks.trainer_path import LORA_MODULES

    with torch.device("meta"):
        base = AutoModelForDepthEstimation.from_config(AutoConfig.from_pretrained(model))
    net = get_peft_model(base, LoraConfig(r=16, target_modules=LORA_MODULES))
    with FlopCounterMode(display=False) as counter:
        net(pixel_values=torch.empty(1, 3, *size, device="meta")).predicted_depth.sum().backward()
    return int(counter.get_total_flops())


# ------------------------------------------------------------------------------------------ results


def median_of(turns: list[Turn], what: str = "seconds") -> float:
    """Return the median of a value of the turns."""
    return float(median(turn[what] for turn in turns))


def ratios(runs: dict[str, list[Turn]], what: str = "seconds") -> list[float]:
    """Return how many times as fast ours is, turn by turn, the slowest first."""
    return sorted(theirs[what] / mine[what] for theirs, mine in zip(runs["ordinary"], runs["ours"]))


def format_conditions(settings: StepSettings, ours: dict[str, Any]) -> str:
    """Return the line that says what was measured."""
    batch, micro_batch = ours["batch"], ours["micro_batch"]
    return (
        f"{ours['device']['name']}, {settings.precision}, images {settings.size}, truth"
        f" {settings.capture_size}, global batch {batch}: ordinary {batch} x 1, ours"
        f" {batch // micro_batch} x {micro_batch}; median of {settings.repeats}"
    )


def step_table(runs: dict[str, dict[str, list[Turn]]], batch: int) -> str:
    """Return a row for each supply: seconds a step, images a second, ours against the ordinary.

    The ratio is by the clock, with its range, and by CPU time.
    """
    header = [""]
    for path in PATHS:
        header += [f"{path} s", "images/s"]
    rows = []
    for supply, label in SUPPLIES.items():
        row = [label]
        for path in PATHS:
            seconds = median_of(runs[supply][path])
            row += [f"{seconds:.3f}", f"{batch / seconds:.2f}"]
        by_clock = ratios(runs[supply])
        row.append(f"{median(by_clock):.2f}x")
        row.append(f"({by_clock[0]:.2f}..{by_clock[-1]:.2f})")
        row.append(f"{median(ratios(runs[supply], 'cpu_seconds')):.2f}x")
        rows.append(row)
    return format_table([*header, "ratio", "(least..most)", "CPU ratio"], rows)


def parts_table(parts: dict[str, Turn]) -> str:
    """Return where the time of one whole step went; a single process does not communicate."""
    rows = []
    for path, turn in parts.items():
        seconds = [turn["parts"].get(part, 0.0) for part in PARTS]
        rest = turn["seconds"] - sum(seconds)
        rows.append([path, *(f"{s:.3f}" for s in (*seconds, rest, turn["seconds"]))])
    return format_table(["of one whole step, s", *PARTS, "the rest", "in all"], rows)


def remarks(settings: StepSettings, job: dict[str, Any], measured: Measurements) -> list[str]:
    """Return lines about the losses, waiting, memory, and the computing speed reached."""
    assert settings.size, "set by for_device()"
    losses = measured.ready["ordinary"]["losses"]
    ours = measured.ready["ours"]
    difference = {
        name: max(abs(ours[name][key] / loss - 1) for key, loss in losses.items())
        for name in ("lossless", "losses")
    }
    whole_steps = measured.runs["files"]
    tflop = count_flop(job["model"], settings.size) / 1e12
    limit = ours["device"]["tflops"]
    memory = []
    speeds = []
    for path in PATHS:
        gib = max(turn["memory_gib"] for turn in whole_steps[path])
        speed = tflop * ours["batch"] / median_of(whole_steps[path])
        memory.append(f"{path} {gib:.2f}")
        speeds.append(f"{path} {speed:.3g} ({speed / limit:.0%})")
    return [
        (
            f"loss of {len(losses)} captures, untrained, without dropout:"
            f" {min(losses.values()):.4f} .. {max(losses.values()):.4f}; ours differs by at most"
            f" {difference['lossless']:.1e} of it with images stored raw,"
            f" {difference['losses']:.1e} with those of the default, JPEG"
        ),
        f"waiting for data: {median_of(whole_steps['ours'], 'waited'):.2%} of our step",
        f"peak memory, GiB: {', '.join(memory)}",
        (
            f"{tflop:.3g} TFLOP an image, counted on the document's model; TFLOP/s:"
            f" {', '.join(speeds)}, one large matrix product {limit:.3g}"
        ),
    ]


def step_bars(device: str, runs: dict[str, dict[str, list[Turn]]]) -> list[dict[str, Any]]:
    """Return the bars for such a device, as `format_bar` takes them."""
    bars = []
    for what, limit in BARS[device].items():
        if what == "waiting":
            found = median_of(runs["files"]["ours"], "waited")
            text = f"<= {limit:g} of our step waiting for data"
            met = found <= limit
        else:
            found = median(ratios(runs[what]))
            text = f">= {limit:g} x the ordinary path, {SUPPLIES[what]}"
            met = found >= limit
        bars.append({"bar": text, "found": found, "met": met})
    return bars
