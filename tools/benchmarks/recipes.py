"""Recipes side by side on one dataset: how far each comes in the same number of steps, and how many it needs to get there."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {  # what each adds to --recipe document
    "document": "",
    "document, calibrated": "--calibrate",
    "lr x 10": "--lr 5e-4",
    "lr x 10, calibrated": "--lr 5e-4 --calibrate",
    "lr x 10, calibrated, all linear layers": "--lr 5e-4 --calibrate --lora linear",
    "lr x 10, calibrated, decoder convolutions too": "--lr 5e-4 --calibrate --lora conv",
    "lr x 10, calibrated, decoder trained": "--lr 5e-4 --calibrate --decoder trained",
    "near": "--recipe near",
}


@dataclass(frozen=True)
class RecipesSettings:
    """Recipes"""

    data: str
    "Folder of shards."
    model: str
    "A whole DA-V2, as launch/train.py takes it; or the folder of a run whose decoder was trained: it is turned into one first."
    epochs: int = 15
    "Of each run."
    out: Path = Path("data/bench/recipes")
    "Folder for the runs; what is finished there is not run again."
    deepspeed: Path = Path("ds_configs/fp32.json")
    "Precision and batch."
    ranks: int = 1
    "Processes of each run."


def recipes(settings: RecipesSettings) -> int:
    """Train each variant, print the table."""
    model = relative(Path(settings.model), settings.out / "base") if (Path(settings.model) / "best").is_dir() else settings.model
    rows = {}
    for i, (name, words) in enumerate(VARIANTS.items()):
        run = settings.out / f"{i}-{name.replace(', ', '_').replace(' ', '-')}"
        typed = ["--deepspeed", settings.deepspeed, "--data", settings.data, "--model", model, "--epochs", settings.epochs, "--run", run, "--pictures", 0]
        subprocess.run([Path(sys.executable).with_name("deepspeed"), "--num_accelerators", str(settings.ranks), "launch/train.py", *map(str, typed), *shlex.split(words)], check=True, cwd=ROOT)
        rows[name] = read(run)
    print_table(rows)
    return 0


def relative(run: Path, out: Path) -> Path:
    """A run's best model as a DA-V2 folder of the pretrained kind: relative depth of 0..10 behind a ReLU, nothing left to load.

    Its sigmoid's input is what the last convolution gives: one scale and shift of it is kept, so that what the decoder learned
    stays in it, and its range is far from the targets, as that of the published models is.
    """
    import torch

    from depthdist.checkpoint import load_adapter

    if not (out / "config.json").exists():
        model, _ = load_adapter(run / "best")
        net = model.net.merge_and_unload()
        last = net.head.conv3
        with torch.no_grad():  # logits of -4 .. 0 become 0 .. 10
            last.weight.mul_(2.5)
            last.bias.mul_(2.5).add_(10.0)
        net.config.depth_estimation_type, net.config.max_depth = "relative", 1
        net.save_pretrained(out)
    return out


def read(run: Path) -> dict[str, Any]:
    """Its evaluations by step, its best adapter's scores, and what it trained."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    facts = json.loads((run / "run.json").read_text())["derived"]
    return {
        "trained": facts["trained_parameters"],
        "mae": [(line["step"], line["eval/mae_mm"]) for line in lines if "eval/mae_mm" in line],
        "best": next(line for line in lines if "best/loss" in line),
    }


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Scores at the end, and steps until the mean error is what the first row ends at."""
    goal = min(mae for _, mae in next(iter(rows.values()))["mae"])
    width = max(map(len, rows))
    print(f"{'':<{width}}{'trained':>12}{'MAE start':>11}{'AbsRel':>9}{'delta1':>9}{'RMSE mm':>9}{'MAE mm':>9}{'steps to':>10} MAE <= {goal:.1f} mm")
    for name, row in rows.items():
        best, steps = row["best"], next((step for step, mae in row["mae"] if mae <= goal), None)
        print(
            f"{name:<{width}}{row['trained']:>12,}{row['mae'][0][1]:>11.1f}{best['best/abs_rel']:>9.4f}{best['best/delta1']:>9.4f}"
            f"{best['best/rmse_mm']:>9.1f}{best['best/mae_mm']:>9.1f}{steps if steps is not None else 'never':>10}"
        )
