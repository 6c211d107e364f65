"""Optimizer steps beside the ordinary path: transformers' Trainer and peft on raw files, as the
document trains.

Captures, their shards and an untrained Depth Anything V2 Small are made, all kept under --work.
Then each path runs in a process of its own, and the two take turns, a global batch each: with data
from the files, with data in memory already, and only reading. Ratios are taken turn by turn. Before
that both say the loss of the same captures, without dropout.
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
from typing import Any, Literal

from depthdist.core.settings import Size, as_dict
from tools.benchmarks.captures import CaptureSettings, make_raw, say
from tools.benchmarks.data import machine, tool, verdict

ROOT = Path(__file__).resolve().parents[2]
PATHS = ("ordinary", "ours")
SUPPLIES = {"files": "whole step, with data", "memory": "step alone", "data": "data alone"}
PARTS = ("data", "forward", "backward", "optimizer")
DEFAULTS = {
    "cpu": {"size": Size(378, 630), "precision": "fp32", "micro_batch": "1"},
    "cuda": {"size": Size(756, 1260), "precision": "fp16", "micro_batch": "auto"},
}
BARS = {"cpu": {"files": 1.5}, "cuda": {"files": 10.0, "memory": 2.0, "waiting": 0.02}}


@dataclass(frozen=True)
class StepSettings(CaptureSettings):
    """Steps"""

    model: str | None = None
    """A whole Depth Anything V2, hub id or folder. Default: one of the Small size with random
    weights."""
    size: Size | None = None
    "Height and width of the pictures. Default: 756x1260 on a GPU, 378x630 without."
    precision: Literal["fp32", "fp16", "bf16"] | None = None
    """Of both paths; ours takes ds_configs/PRECISION.json, and both the global batch from there.
    Default: fp16 on a GPU, fp32 without."""
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
        return [
            f"--{name} is {value}: expected {low} or more"
            for name, value, low in (("repeats", self.repeats, 1), ("captures", self.captures, 4))
            if value < low
        ]


class Process:
    """A path in a process of its own; `ready` is what it says before the first turn."""

    def __init__(self, path: str, job: dict[str, Any]):
        self.path, self.errors = path, tempfile.TemporaryFile("w+")
        command = [sys.executable, "-m", "tools.benchmarks.paths", path, json.dumps(job)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
        )
        self.ready = self._answer()

    def turn(self, wanted: str) -> dict[str, Any]:
        print(wanted, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.errors.seek(0)
        raise ValueError(
            f"the {self.path} path ended:"
            f" {(self.errors.read().strip().splitlines() or ['without a word'])[-1]}"
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.stdin.close()  # no more turns
        self.process.wait()
        self.errors.close()


def step(settings: StepSettings) -> int:
    """The tables, and which bars this run met."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = {
        name: getattr(settings, name) or default for name, default in DEFAULTS[device].items()
    }
    settings, facts = replace(settings, work=settings.work.resolve(), **chosen), machine()
    print("\n".join(f"{name:<10}{value}" for name, value in facts.items()), flush=True)
    job = make_job(settings)
    ready, runs, parts = take_turns(job, settings.repeats)
    print(
        "\n".join(
            [
                *head(settings, ready["ours"]),
                "",
                *table(runs, ready["ours"]["batch"]),
                "",
                *whereabouts(parts),
                "",
                *remarks(settings, job, ready, runs),
            ]
        )
    )
    print("\n".join(verdict({**bar, "remark": ""}) for bar in bars(device, runs)))
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": facts,
            "settings": as_dict(settings),
            "job": job,
            "ready": ready,
            "runs": runs,
            "parts": parts,
            "bars": bars(device, runs),
        }
        settings.json.write_text(json.dumps(content, indent=1, default=str))
    return 0


# ---------------------------------------------------------------------------- what is measured with


def make_job(settings: StepSettings) -> dict[str, Any]:
    """The fields of `paths.Job`, and all of it made."""
    raw, model, shards = (
        make_raw(settings, settings.captures),
        settings.model or str(untrained_small(settings.work / "untrained-small")),
        {},
    )
    for rgb in ("jpeg", "raw"):
        shards[rgb] = settings.work / f"steps-{rgb}-{settings.size}-of-{raw.name}"
        tool("shard.py", raw, shards[rgb], "--split", "none", "--size", settings.size, "--rgb", rgb)
    stats = json.loads((shards["jpeg"] / "index.json").read_text())["splits"]["train"]["stats"]
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
    """A folder with Depth Anything V2 Small's architecture and processor, and random weights, the
    same ones every time.
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
    say(f"an untrained Depth Anything V2 Small in {folder}")
    backbone = Dinov2Config(
        image_size=518,
        patch_size=14,
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        out_indices=[3, 6, 9, 12],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    torch.manual_seed(0)
    # "metric" ends in a sigmoid: from random weights a "relative" one, with its ReLU, might give 0
    # and no gradient
    depth = DepthAnythingConfig(
        backbone_config=backbone,
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
    DepthAnythingForDepthEstimation(depth).save_pretrained(folder)
    return folder


def take_turns(
    job: dict[str, Any], repeats: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What each path said at first; by supply and path its turns, `repeats` after one to warm up.

    A last turn with clocks on the parts.
    """
    runs: dict[str, Any] = {supply: {path: [] for path in PATHS} for supply in SUPPLIES}
    with ExitStack() as stack:
        processes = {path: stack.enter_context(Process(path, job)) for path in PATHS}
        for number in range(repeats + 1):
            for supply, path in product(SUPPLIES, PATHS):
                run = processes[path].turn(supply)
                say(
                    f"{SUPPLIES[supply]:<24}{path:<10}{run['seconds']:9.3f}"
                    f" s{run['cpu_seconds']:9.3f} CPU-s{'' if number else '  to warm up'}"
                )
                runs[supply][path] += [run] if number else []
        return (
            {path: process.ready for path, process in processes.items()},
            runs,
            {path: process.turn("parts") for path, process in processes.items()},
        )


# ------------------------------------------------------------------------------------ what is shown


def middle(runs: list[dict[str, Any]], what: str = "seconds") -> float:
    return median(run[what] for run in runs)


def ratios(runs: dict[str, Any], what: str = "seconds") -> list[float]:
    """How many times as fast ours is, turn by turn, the slowest first."""
    return sorted(theirs[what] / mine[what] for theirs, mine in zip(runs["ordinary"], runs["ours"]))


def ratio(runs: dict[str, Any], what: str = "seconds") -> float:
    return median(ratios(runs, what))


def head(settings: StepSettings, ours: dict[str, Any]) -> list[str]:
    batch, micro_batch = ours["batch"], ours["micro_batch"]
    batches = (
        f"global batch {batch}: ordinary {batch} x 1, ours {batch // micro_batch} x {micro_batch}"
    )
    return [
        f"\n{ours['device']['name']}, {settings.precision}, pictures {settings.size}, truth"
        f" {settings.capture_size}, {batches}; middle of {settings.repeats}"
    ]


def table(runs: dict[str, Any], batch: int) -> list[str]:
    """A row a supply: seconds a step and images a second of each path, and the ratio by the clock
    and by CPU time.
    """
    lines = [
        f"{'':<24}"
        + "".join(f"{path + ' s':>12}{'images/s':>10}" for path in PATHS)
        + f"{'ratio':>9}{'(least..most)':>16}{'CPU ratio':>11}"
    ]
    for supply, text in SUPPLIES.items():
        of = runs[supply]
        seconds, all_ratios = [middle(of[path]) for path in PATHS], ratios(of)
        shown = "".join(f"{s:>12.3f}{batch / s:>10.2f}" for s in seconds)
        lines.append(
            f"{text:<24}{shown}{ratio(of):>8.2f}x{f'({all_ratios[0]:.2f}..{all_ratios[-1]:.2f})':>16}{ratio(of, 'cpu_seconds'):>10.2f}x"
        )
    return lines


def whereabouts(parts_of: dict[str, Any]) -> list[str]:
    """Where the time of one more whole step went. One process has nobody to communicate with."""
    lines = [
        f"{'of one whole step, s':<24}"
        + "".join(f"{part:>12}" for part in (*PARTS, "the rest", "in all"))
    ]
    for path, run in parts_of.items():
        parts = [run["parts"].get(part, 0.0) for part in PARTS]
        lines.append(
            f"{path:<24}"
            + "".join(f"{s:>12.3f}" for s in (*parts, run["seconds"] - sum(parts), run["seconds"]))
        )
    return lines


def remarks(
    settings: StepSettings, job: dict[str, Any], ready: dict[str, Any], runs: dict[str, Any]
) -> list[str]:
    """The same loss, waiting, memory, and what was computed a second beside what the device can."""
    theirs, ours = ready["ordinary"]["losses"], ready["ours"]
    off = {
        name: max(abs(ours[name][key] / loss - 1) for key, loss in theirs.items())
        for name in ("lossless", "losses")
    }
    memory = {path: max(run["memory_gib"] for run in runs["files"][path]) for path in PATHS}
    tflop, limit = flop(job["model"], settings.size) / 1e12, ours["device"]["tflops"]
    speeds = {path: tflop * ours["batch"] / middle(runs["files"][path]) for path in PATHS}
    return [
        (
            f"loss of {len(theirs)} captures, untrained, without dropout:"
            f" {min(theirs.values()):.4f} .. {max(theirs.values()):.4f}; ours differs by at most"
            f" {off['lossless']:.1e} of it with pictures stored raw, {off['losses']:.1e} with those"
            " of the default, JPEG"
        ),
        f"waiting for data: {middle(runs['files']['ours'], 'waited'):.2%} of our step",
        f"memory at most, GiB: {', '.join(f'{path} {gib:.2f}' for path, gib in memory.items())}",
        (
            f"{tflop:.3g} TFLOP an image, counted on the document's model; TFLOP/s:"
            f" {', '.join(f'{path} {speed:.3g} ({speed / limit:.0%})' for path, speed in speeds.items())},"
            f" one large matrix product {limit:.3g}"
        ),
    ]


def bars(device: str, runs: dict[str, Any]) -> list[dict[str, Any]]:
    """What this run should reach on such a device, and whether it did."""
    found = []
    for what, limit in BARS[device].items():
        value = middle(runs["files"]["ours"], "waited") if what == "waiting" else ratio(runs[what])
        text = (
            f"<= {limit:g} of our step waiting for data"
            if what == "waiting"
            else f">= {limit:g} x the ordinary path, {SUPPLIES[what]}"
        )
        found.append(
            {
                "bar": text,
                "found": value,
                "met": value <= limit if what == "waiting" else value >= limit,
            }
        )
    return found


def flop(model: str, size: Size) -> int:
    """Floating-point operations of one image's forward and backward pass, counted without computing
    anything.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForDepthEstimation

    with torch.device("meta"):
        net = AutoModelForDepthEstimation.from_config(AutoConfig.from_pretrained(model))
    net = get_peft_model(
        net,
        LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "query", "key", "value"]),
    )
    with FlopCounterMode(display=False) as counter:
        net(pixel_values=torch.empty(1, 3, *size, device="meta")).predicted_depth.sum().backward()
    return counter.get_total_flops()
