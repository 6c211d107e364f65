"""How good a run is, in mm: the adapter, the model before training, and a constant depth, on every validation sample once.

    python launch/evaluate.py --run runs/NAME

    row                   images      loss   abs_rel    delta1   rmse_mm    mae_mm
    constant 1542 mm          12  ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from depthdist import config
from depthdist.checkpoint import load_adapter, loaded
from depthdist.dataset import open_dataset
from depthdist.depth import Bounds, depth_from_target, inverse_target, upsample
from depthdist.losses import LossSettings, compute
from depthdist.metrics import METRICS, image_metrics
from depthdist.model import pick_device, quiet
from depthdist.runs import open_run
from depthdist.stream import Batch, Loader
from depthdist.tracker import write_json

Predictor = Callable[[Batch], Tensor]  # normalised inverse depth (B, H, W) at the truth's size


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluation"""

    run: Path
    "Folder of the run."
    data: tuple[str, ...] | None = None
    "Folder of shards, or its URL. Default: the run's own."
    split: str = "val"
    "Which part of the data: val or train."
    micro_batch: int = 1
    "Samples at a time."

    def problems(self) -> list[str]:
        return [] if self.micro_batch >= 1 else [f"--micro-batch is {self.micro_batch}: expected >= 1"]


def network(model: Callable[[Tensor], Tensor]) -> Predictor:
    """Predictions of a model, brought to the truth's size."""
    return lambda batch: upsample(model(batch.rgb), batch.depth_mm.shape[-2:])


def constant(depth_mm: float, bounds: Bounds) -> Predictor:
    """The same depth everywhere: the row that every other must beat."""
    value = float(inverse_target(torch.tensor([[depth_mm]]), bounds)[0])
    return lambda batch: torch.full_like(batch.depth_mm, value)


@torch.no_grad()
def score(
    predict: Predictor,
    batches: Iterable[Batch],
    num_samples: int,
    bounds: Bounds,
    loss: LossSettings,
    device: torch.device,
    reduce: Callable[[list[float]], list[float]] = list,
) -> dict[str, float]:
    """Mean over images of the losses and metrics; "images" counts them, "damaged" those that could not be read.

    Padding has weight 0 and never counts.
    reduce  adds numbers up over ranks; the sums are float64, and every sample must have been met once
    """
    sums: dict[str, float] = {}
    seen = measured = lost = 0
    for batch in (b.to(device) for b in batches):
        target, mask = inverse_target(batch.depth_mm, bounds, batch.mask)
        pred = predict(batch).float()
        parts = compute(loss, pred, target, mask, bounds)
        pred_mm = depth_from_target(pred, bounds)
        lost += sum(slot.weight for slot in batch.group.slots) - float(batch.weight.sum())
        for i in torch.nonzero(batch.weight).flatten().tolist():
            values = {name: float(part[i]) for name, part in parts.items()}
            in_mm = image_metrics(pred_mm[i], batch.depth_mm[i], mask[i])
            seen, measured = seen + 1, measured + (in_mm is not None)
            for name, value in {**values, **(in_mm or dict.fromkeys(METRICS, 0.0))}.items():
                sums[name] = sums.get(name, 0.0) + value
    names = [*loss.weights(), "loss", *METRICS]
    seen, measured, lost, *totals = reduce([seen, measured, lost, *(sums.get(name, 0.0) for name in names)])
    assert seen + lost == num_samples, f"evaluation met {seen} + {lost} samples of {num_samples}"
    if not seen:
        raise ValueError(f"none of the {num_samples} samples could be read; `tools/shard.py --verify` lists the damage")
    means = {name: total / max(measured if name in METRICS else seen, 1) for name, total in zip(names, totals)}
    return {"images": seen, "damaged": lost, **means}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows side by side; the best of each metric is marked with *."""
    names = ["loss", *METRICS]
    best = {n: (min if n == "loss" or METRICS[n].better == "lower" else max)(r[n] for r in rows.values()) for n in names}
    width = max(len(name) for name in rows)
    lines = [f"{'':{width}}  images" + "".join(f"{n:>12}" for n in names)]
    for row, values in rows.items():
        cells = "".join(f"{_cell(n, values[n]) + ('*' if values[n] == best[n] else ' '):>12}" for n in names)
        lost = f"  ({int(values['damaged'])} damaged samples left out)" if values.get("damaged") else ""
        lines.append(f"{row:{width}}  {int(values['images']):>6}{cells}{lost}")
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    return f"{value:.2f}" if name in METRICS and METRICS[name].unit == "mm" else f"{value:.4f}"


def evaluate_run(settings: EvaluateSettings) -> dict[str, dict[str, float]]:
    """The rows of a run's table by name; printed, and written to RUN/evaluation.json."""
    quiet()
    run = open_run(settings.run)
    data = replace(run.data, data=settings.data, weights=()) if settings.data else run.data
    dataset = open_dataset(data)
    num = dataset.count(settings.split)
    model, record = load_adapter(run.folder / "best")
    print(loaded(model, record))
    if dataset.size != record.size:
        raise ValueError(f"{dataset.place}: pictures are {dataset.size}, the run saw {config.Size(*record.size)}: shard again with --size {config.Size(*record.size)}")
    device = pick_device()
    model.to(device)
    rows, loader = {}, Loader(dataset, data, device=device)
    mean_mm = dataset.stats("train")["mean_mm"]

    def add(row: str, predict: Predictor) -> None:
        batches = loader.evaluate(settings.split, settings.micro_batch, rank=0, world=1)
        shown = tqdm(batches, desc=row, total=-(-num // settings.micro_batch), unit="batch", leave=False, disable=not sys.stderr.isatty())
        rows[row] = score(predict, shown, num, record.bounds, run.loss, device)

    add(f"constant {mean_mm:.0f} mm", constant(mean_mm, record.bounds))
    with model.net.disable_adapter():
        add("before training", network(model))
    add(f"adapter, epoch {record.epoch}", network(model))
    print(table(rows))
    print("\nmeans over images, in mm at the truth's own size, no alignment; * best")
    write_json(run.folder / "evaluation.json", {"data": dataset.place, "data_sha256": dataset.sha256, "split": settings.split, "rows": rows})
    return rows


def main(argv: list[str] | None = None) -> None:
    (settings,) = config.parse("Score a run: AbsRel, delta1, RMSE and MAE in mm, against the untrained model and a constant.", EvaluateSettings, argv=argv)
    evaluate_run(settings)
    print(f"written to {settings.run}/evaluation.json")
