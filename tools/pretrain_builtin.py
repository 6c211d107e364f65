"""Pretrain the built-in model, a small relative-depth DA-V2, on rendered scenes.

    # as the one in depthdist/models/foundation was made; its card says how long this takes
    python tools/pretrain_builtin.py OUT --ranks 2

    OUT/start            the network before training: random weights, always the same
    OUT/small/rooms      many scenes at half the size (tools/make_rooms.py): rooms, objects, tires;
                         no crate
    OUT/small/data       their shards
    OUT/small/run        launch/train.py --lora none --relative: all weights are trained
    OUT/full/...         the same at full size, on fewer scenes of another seed, starting from the
                         best epoch of OUT/small/run
    OUT/foundation       what `--model built-in` loads: config.json, model.safetensors in half
                         precision, the processor, a card (README.md)

Finished steps are not repeated: the same command continues after a stop.
`cp OUT/foundation/* depthdist/models/foundation/` puts the model in place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdist.commands.subcommands import flags, run_python, run_shown
from depthdist.core.command import run_command
from depthdist.core.command_line import parse
from depthdist.core.settings import Size, positional
from depthdist.evaluation.row_kinds import RowKind, row_kinds

if TYPE_CHECKING:
    from depthdist.models.depth_model import DepthModel

# the range that 0.1 % and 99.9 % of the output are scaled to, about that of the published models
OUTPUT_LOW = 0.5
OUTPUT_HIGH = 10.0
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
FULL_SIZE = Size(224, 364)


@dataclass(frozen=True)
class PretrainSettings:
    """Pretraining."""

    out: Path = positional()
    "Folder for everything that is made."
    size: Size = FULL_SIZE
    "Height and width of the images at full size; half of that must be a multiple of 14."
    small_scenes: int = 12000
    "Number of scenes at half the size, 2 % of them for validation."
    small_epochs: int = 10
    "Epochs over the scenes at half the size."
    small_lr: float = 6e-4
    "Highest learning rate at half the size."
    scenes: int = 1200
    "Number of scenes at full size, 2 % of them for validation."
    epochs: int = 6
    "Epochs over the scenes at full size."
    lr: float = 4e-4
    "Highest learning rate at full size."
    warmup: int = 200
    "Optimizer steps in which the learning rate rises to its highest, at either size."
    ranks: int = 1
    "Processes on a CPU, GPUs where there are some; 1: the launcher takes all GPUs."
    seed: int = 0
    """Of the random weights and the sample order; scenes at half the size have this seed, those
    at full size the next."""

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        from depthdist.geometry.patches import PATCH_SIZE

        lowest = {
            "small_scenes": 50,
            "small_epochs": 1,
            "scenes": 50,
            "epochs": 1,
            "ranks": 1,
            "warmup": 0,
            "seed": 0,
        }
        found = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}: expected >= {low}"
            for name, low in lowest.items()
            if getattr(self, name) < low
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


@dataclass(frozen=True)
class Stage:
    """One of the two trainings: its folder, what it starts from, its scenes and its schedule."""

    folder: Path
    base: Path
    size: Size
    num_scenes: int
    scene_seed: int
    epochs: int
    lr: float


def main(argv: list[str] | None = None) -> None:
    """Run every step that is not done yet."""
    (settings,) = parse(__doc__.splitlines()[0], PretrainSettings, argv=argv)
    from depthdist.core.environment import silence_libraries
    from depthdist.models.adapter import save_full_model
    from depthdist.models.builtin_start import initial_model

    silence_libraries()
    out = settings.out.resolve()
    if not (out / "start/config.json").exists():
        save_full_model(initial_model(settings.seed), {}, None, out / "start")
    (out / "deepspeed.json").write_text(json.dumps(DEEPSPEED, indent=1), encoding="utf-8")
    small = Stage(
        folder=out / "small",
        base=out / "start",
        size=Size(settings.size.height // 2, settings.size.width // 2),
        num_scenes=settings.small_scenes,
        scene_seed=settings.seed,
        epochs=settings.small_epochs,
        lr=settings.small_lr,
    )
    full = Stage(
        folder=out / "full",
        base=small.folder / "run/best",
        size=settings.size,
        num_scenes=settings.scenes,
        scene_seed=settings.seed + 1,
        epochs=settings.epochs,
        lr=settings.lr,
    )
    pretrain(small, out / "deepspeed.json", settings)
    pretrain(full, out / "deepspeed.json", settings)
    evaluation = flags(run=full.folder / "run", align="disparity", details=False)
    run_shown("evaluate", *evaluation)
    export_model(out)
    print(f"the built-in model is in {out / 'foundation'}")


def pretrain(stage: Stage, deepspeed: Path, settings: PretrainSettings) -> None:
    """Make the stage's scenes and their shards, and train on them, in the stage's folder."""
    rooms = stage.folder / "rooms"
    data = stage.folder / "data"
    render_size = Size(3 * stage.size.height // 2, 3 * stage.size.width // 2)
    scenes = flags(scenes=stage.num_scenes, size=render_size, seed=stage.scene_seed)
    run_python(Path(__file__).with_name("make_rooms.py"), rooms, *scenes)
    shards = flags(
        size=stage.size,
        depth_size="train",
        split="random",
        val=0.02,
        far=30000,
        max_rejects=stage.num_scenes // 100,
    )
    run_shown("shard", rooms, data, *shards)
    training = flags(
        deepspeed=deepspeed,
        model=stage.base,
        lora="none",
        relative=True,
        loss="l1=1,multiscale=2",
        epochs=stage.epochs,
        lr=stage.lr,
        warmup=settings.warmup,
        flip=0.5,
        exposure=0.5,
        colour=0.1,
        noise=3,
        seed=settings.seed,
        micro_batch=8,
        watch_every=0,
        log_every=20,
        run=stage.folder / "run",
    )
    ranks = flags(gpus=settings.ranks) if settings.ranks > 1 else []
    run_shown("train", data, *ranks, *training)


def export_model(out: Path) -> None:
    """Write OUT/foundation: the trained model, its output scaled to 0..10, and its card.

    Raise ValueError if the network gives the same value everywhere.
    """
    import torch

    from depthdist.models.adapter import load_adapter, save_full_model

    model, record = load_adapter(out / "full/run/best")
    low, high = output_range(model, out / "full/data")
    if not high > low:
        raise ValueError(
            f"{out}/full/run: the network gives {low:.4g} everywhere: it died in training; start"
            " again with a smaller --small-lr and --lr"
        )
    scale = (OUTPUT_HIGH - OUTPUT_LOW) / (high - low)
    with torch.no_grad():
        model.rescale(scale, OUTPUT_LOW - scale * low)
    save_full_model(model, {}, record, out / "foundation", torch.float16)
    (out / "foundation/depthdist.json").unlink()  # it describes millimetres, which the model lacks
    (out / "foundation/README.md").write_text(model_card(out), encoding="utf-8")


def output_range(model: DepthModel, data: Path) -> tuple[float, float]:
    """Return the 0.1 % and 99.9 % quantiles of the model's output on the validation split."""
    import torch

    from depthdist.data.augmentation import AugmentSettings
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.loader import Loader

    settings = DataSettings(data=(str(data),))
    loader = Loader(open_dataset(settings), settings, AugmentSettings())
    cpu = torch.device("cpu")
    with torch.no_grad():
        batches = loader.evaluate("val", 8, 0, 1)
        output = torch.cat([model.raw(batch.to(cpu).rgb).flatten() for batch in batches])
    low = output.kthvalue(max(1, round(0.001 * len(output)))).values
    high = output.kthvalue(max(1, round(0.999 * len(output)))).values
    return float(low), float(high)


def model_card(out: Path) -> str:
    """Return the model's card: what it is, how it was made, on what, for how long, its scores."""
    from depthdist.models.builtin_start import HIDDEN_SIZE, NUM_LAYERS

    hours = 0.0
    stages = []
    for stage in ("small", "full"):
        run = json.loads((out / stage / "run/run.json").read_text(encoding="utf-8"))
        rooms = json.loads((out / stage / "rooms/rooms.json").read_text(encoding="utf-8"))
        log = (out / stage / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        hours += training_seconds([json.loads(line)["time"] for line in log], run["starts"]) / 3600
        derived = run["derived"]
        settings = run["settings"]
        stages.append(
            f"| {derived['picture_size']} | `--scenes {rooms['scenes']} --size {rooms['size']}"
            f" --seed {rooms['seed']}` | {derived['train_samples']} + {derived['val_samples']} |"
            f" {derived['steps']} of {derived['global_batch']}, {settings['epochs']} epochs |"
            f" {settings['lr']:g} |"
        )
    stage_rows = "\n".join(stages)
    return f"""---
license: apache-2.0
pipeline_tag: depth-estimation
---
# The built-in foundation of depthdist

Relative inverse depth from one picture: a Depth Anything V2 in its own architecture,
{derived["all_parameters"]:,} parameters, {NUM_LAYERS} layers of {HIDDEN_SIZE} channels, weights in
half precision. It is to DA-V2-Small what a scale model is: for machines that cannot reach the model
hub, and for tests. Output about 0..10, larger is nearer, right up to scale and shift.

Made by `python tools/pretrain_builtin.py OUT --ranks {derived["world_size"]}`, from random weights;
no other model's weights or output went in. Rendered scenes (rooms with boxes, balls, cylinders,
tires; `tools/make_rooms.py`), none of which shows a crate of tires:

| pictures | scenes | training + validation | steps | highest learning rate |
|---|---|---|---|---|
{stage_rows}

Losses `{settings["loss"]}` on 1/depth, each picture's brought to one range (`--relative`),
{derived["precision"]}, seed {settings["seed"]}. The two runs took {hours:.1f} h on
{derived["world_size"]} ranks ({run["device"]}), evaluations included.

Scores on the {derived["val_samples"]} validation scenes of the last line (scale and shift of
1/depth fitted to each picture: it knows no millimetres):

| | AbsRel | delta1 |
|---|---|---|
{score_rows(out / "full/run/evaluation.json")}

It has seen renderings only: on photographs it is far worse than the published models. Use those
where you can.
"""


def score_rows(evaluation: Path) -> str:
    """Return the card's lines of scores: a constant, and the model aligned to each image."""
    lines = []
    content = json.loads(evaluation.read_text(encoding="utf-8"))
    for name, kind in row_kinds(content).items():
        if kind in (RowKind.CONSTANT, RowKind.ADAPTER_ALIGNED):
            row = content["rows"][name]
            label = name.replace("adapter", "this model")
            lines.append(f"| {label} | {row['abs_rel']:.3f} | {row['delta1']:.3f} |")
    return "\n".join(lines)


def training_seconds(times: list[float], starts: list[dict[str, Any]]) -> float:
    """Return the seconds from the first of a run's log `times` to the last.

    Gaps that contain a restart are left out; `starts` are those of run.json.
    """
    started = [
        datetime.strptime(start["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp() for start in starts
    ]
    return sum(
        after - before
        for before, after in pairwise(times)
        if not any(before < start <= after for start in started)
    )


if __name__ == "__main__":
    run_command(main)
