"""Make the built-in foundation: a small DA-V2 of relative depth, pretrained from nothing on
built-in scenes. One command.

    # as the one in depthdist/models/foundation was made; its card says how long
    python tools/foundation.py OUT --ranks 2

    OUT/start            the network before: random weights, always the same
    OUT/small/rooms      many scenes at half the size (tools/make_rooms.py): rooms, things, tires;
                         not one crate
    OUT/small/data       their shards
    OUT/small/run        launch/train.py --lora none --relative: the whole network learns
    OUT/full/...         the same at full size, on fewer scenes of another seed, from the best of
                         OUT/small/run
    OUT/foundation       what `--model built-in` is: config.json, model.safetensors in half
                         precision, the processor, a card (README.md)

What is finished is not done again: a run that was stopped goes on. `cp OUT/foundation/*
depthdist/models/foundation/` puts it in place.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Dinov2Config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from depthdist.core.command import run_command
from depthdist.core.environment import silence_libraries
from depthdist.core.settings import Size, parse, positional
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.adapter import load_adapter, save_full_model
from depthdist.models.base_model import IMAGENET, new_depth_anything
from depthdist.models.depth_model import DepthModel
from tools.steps import do, launcher

LOW, HIGH = (
    0.5,
    10.0,
)  # what 0.1 % and 99.9 % of the output is brought to: about what the published models give
LAYERS, HEADS, HIDDEN, MLP, NECK, FUSION, HEAD = 12, 2, 128, 2, [24, 48, 64, 64], 24, 16
BATCH = 16
DEEPSPEED = {
    "train_batch_size": BATCH,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 0},
    "optimizer": {
        "type": "AdamW",
        "params": {"betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0, "torch_adam": True},
    },
}


@dataclass(frozen=True)
class Foundation:
    """Foundation"""

    out: Path = positional()
    "Folder for all of it."
    size: Size = Size(224, 364)
    "Height and width of the pictures at full size; half of that must be a multiple of 14."
    small_scenes: int = 12000
    "How many scenes to learn from at half the size, 2 % of them for validation."
    small_epochs: int = 10
    "Times that each of those is seen."
    small_lr: float = 6e-4
    "Highest learning rate there."
    scenes: int = 1200
    "How many scenes to learn from at full size, 2 % of them for validation."
    epochs: int = 6
    "Times that each of those is seen."
    lr: float = 4e-4
    "Highest learning rate there."
    warmup: int = 200
    "Optimizer steps in which the learning rate rises to its highest, at either size."
    ranks: int = 1
    "Processes on a CPU, GPUs where there are some; 1: the launcher takes all GPUs."
    seed: int = 0
    "Of start and order; scenes at half the size have this seed, those at full size the next."

    def problems(self) -> list[str]:
        least = {
            "small_scenes": 50,
            "small_epochs": 1,
            "scenes": 50,
            "epochs": 1,
            "ranks": 1,
            "warmup": 0,
            "seed": 0,
        }
        found = [
            f"--{n.replace('_', '-')} is {getattr(self, n)}: expected >= {low}"
            for n, low in least.items()
            if getattr(self, n) < low
        ]
        if self.size.height % (2 * PATCH_SIZE) or self.size.width % (2 * PATCH_SIZE):
            found.append(f"--size is {self.size}: expected multiples of {2 * PATCH_SIZE}")
        steps = min(
            self.small_epochs * (self.small_scenes * 49 // 50 // BATCH),
            self.epochs * (self.scenes * 49 // 50 // BATCH),
        )
        if not found and self.warmup >= steps:
            found.append(
                f"--warmup is {self.warmup}: expected fewer than the {steps} optimizer steps that"
                " the shorter stage has"
            )
        return found


def main(argv: list[str] | None = None) -> None:
    """Every step that is not done yet."""
    silence_libraries()
    (s,) = parse(__doc__.splitlines()[0], Foundation, argv=argv)
    out = s.out.resolve()
    if not (out / "start/config.json").exists():
        save_full_model(start(s.seed), {}, None, out / "start")
    (out / "deepspeed.json").write_text(json.dumps(DEEPSPEED, indent=1))
    half = Size(s.size.height // 2, s.size.width // 2)
    pretrain(
        out,
        out / "small",
        out / "start",
        half,
        s.small_scenes,
        s.seed,
        s.small_epochs,
        s.small_lr,
        s,
    )
    pretrain(
        out, out / "full", out / "small/run/best", s.size, s.scenes, s.seed + 1, s.epochs, s.lr, s
    )
    do("launch/evaluate.py", "--run", out / "full/run", "--align", "disparity", "--no-details")
    finish(out)
    print(f"the foundation is in {out / 'foundation'}")


def pretrain(
    out: Path,
    stage: Path,
    base: Path,
    size: Size,
    scenes: int,
    scene_seed: int,
    epochs: int,
    lr: float,
    s: Foundation,
) -> None:
    """Scenes, their shards, and a run on them that begins with `base`, all in the folder `stage`."""
    render = Size(3 * size.height // 2, 3 * size.width // 2)
    do(
        "tools/make_rooms.py",
        stage / "rooms",
        "--scenes",
        scenes,
        "--size",
        render,
        "--seed",
        scene_seed,
    )
    do(
        "tools/shard.py",
        stage / "rooms",
        stage / "data",
        "--size",
        size,
        "--depth-size",
        "train",
        "--split",
        "random",
        "--val",
        0.02,
        "--far",
        30000,
        "--max-rejects",
        scenes // 100,
    )
    learn = [
        "--data",
        stage / "data",
        "--model",
        base,
        "--lora",
        "none",
        "--relative",
        "--loss",
        "l1=1,multiscale=2",
        "--epochs",
        epochs,
        "--lr",
        lr,
        "--warmup",
        s.warmup,
    ]
    learn += [
        "--flip",
        0.5,
        "--exposure",
        0.5,
        "--colour",
        0.1,
        "--noise",
        3,
        "--seed",
        s.seed,
        "--micro-batch",
        8,
        "--watch-every",
        0,
        "--log-every",
        20,
        "--run",
        stage / "run",
    ]
    do(*launcher(s.ranks), "launch/train.py", "--deepspeed", out / "deepspeed.json", *learn)


def start(seed: int) -> DepthModel:
    """The network before pretraining: DA-V2's architecture, narrow, its random weights, a ReLU at
    its end as the published ones have.
    """
    every = LAYERS // 4
    backbone = Dinov2Config(
        image_size=224,
        patch_size=PATCH_SIZE,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        mlp_ratio=MLP,
        out_indices=[every, 2 * every, 3 * every, LAYERS],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    net = new_depth_anything(backbone, NECK, FUSION, HEAD)
    net.config.depth_estimation_type = "relative"
    draw = torch.Generator().manual_seed(seed)
    for name, weights in net.backbone.named_parameters():
        if name.endswith("lambda1"):  # what each half of a layer is multiplied by
            nn.init.constant_(weights, 0.3)
        elif ".layer." in name and weights.dim() == 2:
            nn.init.trunc_normal_(weights, std=0.02, generator=draw)
    nn.init.normal_(
        net.head.conv3.weight, std=0.5, generator=draw
    )  # with 2.0 what is before it dies within 100 steps
    nn.init.constant_(net.head.conv3.bias, 5.0)  # amid 0 .. 10, far from where a ReLU dies
    return DepthModel(net, "start", False, IMAGENET)


@torch.no_grad()
def finish(out: Path) -> None:
    """Bring the output into 0..10, which changes nothing else, and write it with its card."""
    model, record = load_adapter(out / "full/run/best")
    settings = DataSettings(data=(str(out / "full/data"),))
    loader = Loader(open_dataset(settings), settings, AugmentSettings())
    seen = torch.cat(
        [model.raw(batch.to("cpu").rgb).flatten() for batch in loader.evaluate("val", 8, 0, 1)]
    )
    low, high = (
        float(seen.kthvalue(max(1, round(share * len(seen)))).values) for share in (0.001, 0.999)
    )
    if not high > low:
        raise ValueError(
            f"{out}/full/run: the network gives {low:.4g} everywhere: it died in training; begin"
            " anew with a smaller --small-lr and --lr"
        )
    scale = (HIGH - LOW) / (high - low)
    model.rescale(scale, LOW - scale * low)
    save_full_model(model, {}, record, out / "foundation", torch.float16)
    (out / "foundation/depthdist.json").unlink()  # millimetres are not in it
    (out / "foundation/README.md").write_text(card(out))


def card(out: Path) -> str:
    """The model's card: what it is, how it was made, on what, for how long, its scores."""
    made, hours, facts = [], 0.0, {}
    for stage in ("small", "full"):
        run = json.loads((out / stage / "run/run.json").read_text())
        rooms = json.loads((out / stage / "rooms/rooms.json").read_text())
        facts, settings = run["derived"], run["settings"]
        lines = [
            json.loads(line)
            for line in (out / stage / "run/metrics.jsonl").read_text().splitlines()
        ]
        hours += at_work([line["time"] for line in lines], run["starts"]) / 3600
        made.append(
            f"| {facts['picture_size']} | `--scenes {rooms['scenes']} --size {rooms['size']} --seed"
            f" {rooms['seed']}` | {facts['train_samples']} + {facts['val_samples']} |"
            f" {facts['steps']} of {facts['global_batch']}, {settings['epochs']} epochs |"
            f" {settings['lr']:g} |"
        )
    rows = json.loads((out / "full/run/evaluation.json").read_text())["rows"]
    told = {
        name: row
        for name, row in rows.items()
        if name.startswith("constant") or (name.startswith("adapter") and name.endswith("aligned"))
    }
    scores = "\n".join(
        f"| {name.replace('adapter', 'this model')} | {row['abs_rel']:.3f} | {row['delta1']:.3f} |"
        for name, row in told.items()
    )
    lines = "\n".join(made)
    return f"""---
license: apache-2.0
pipeline_tag: depth-estimation
---
# The built-in foundation of depthdist

Relative inverse depth from one picture: a Depth Anything V2 in its own architecture, {facts["all_parameters"]:,} parameters, {LAYERS} layers of
{HIDDEN} channels, weights in half precision. It is to DA-V2-Small what a scale model is: for machines that cannot reach the model hub,
and for tests. Output about 0..10, larger is nearer, right up to scale and shift.

Made by `python tools/foundation.py OUT --ranks {facts["world_size"]}`, from random weights; no other model's weights or output went in. Rendered scenes (rooms
with boxes, balls, cylinders, tires; `tools/make_rooms.py`), none of which shows a crate of tires:

| pictures | scenes | training + validation | steps | highest learning rate |
|---|---|---|---|---|
{lines}

Losses `{settings["loss"]}` on 1/depth, each picture's brought to one range (`--relative`), {facts["precision"]}, seed {settings["seed"]}. The two runs took
{hours:.1f} h on {facts["world_size"]} ranks ({run["device"]}), evaluations included.

Scores on the {facts["val_samples"]} validation scenes of the last line (scale and shift of 1/depth fitted to each picture: it knows no millimetres):

| | AbsRel | delta1 |
|---|---|---|
{scores}

It has seen renderings only: on photographs it is far worse than the published models. Use those where you can.
"""


def at_work(times: list[float], starts: list[dict[str, Any]]) -> float:
    """Seconds from the first of a run's `times` to the last, without those before a later start of
    it.
    """
    begun = [
        datetime.strptime(start["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp() for start in starts
    ]
    return sum(
        after - before
        for before, after in zip(times, times[1:])
        if not any(before < start <= after for start in begun)
    )


if __name__ == "__main__":
    run_command(main)
