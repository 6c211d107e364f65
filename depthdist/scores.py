"""Every image of a split, scored: losses and metrics in mm at the truth's own size, kept for each image, then their means.

    found = score(network(model), loader.evaluate("val", 1, rank, world), 12, bounds, loss, device)["none"]
    print(table({"adapter": found}))

A prediction may also be scored as some alignment leaves it (align.py): the row says so, and never counts as the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from depthdist.align import aligned
from depthdist.depth import Bounds, depth_from_target, inverse_target
from depthdist.grooves import Groove
from depthdist.losses import LossSettings, compute
from depthdist.metrics import HEADLINE, METRICS, image_metrics
from depthdist.network import DepthModel
from depthdist.stream import Batch

UNTRAINED = "untrained"  # the model's row before training
FOOTNOTE = """means over images, in mm at the truth's own size (bicubic); * best of those that no truth helped
disparity-aligned: scale and shift of 1/depth fitted to each image's truth: what the model's shapes are worth, not its millimetres"""
Predictor = Callable[[Batch], Tensor]  # normalised inverse depth (B, H, W) at the truth's size
Look = Callable[[int, Tensor, Tensor, Tensor], "Future[tuple[dict[str, float], list[Groove]]]"]


@dataclass
class Scores:
    """What each image of a split got, in the order of the split.

    keys     of the images that could be read;  damaged  how many could not
    values   by name, one for each image; NaN where a metric says nothing of it
    grooves  of each image, depths in truth and prediction, where somebody looked
    """

    keys: list[str]
    values: dict[str, list[float]]
    damaged: int = 0
    grooves: list[list[Groove]] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Of each name over the images that it says something of; and "images", "damaged"."""
        return {"images": len(self.keys), "damaged": self.damaged, **{name: mean(values) for name, values in self.values.items()}}


def mean(values: Sequence[float]) -> float:
    """Of those that are not NaN, without rounding on the way; NaN where there is none."""
    known = [v for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known and all(map(math.isfinite, known)) else math.inf if known else math.nan


def network(model: DepthModel) -> Predictor:
    """Predictions of a model, brought to the truth's size."""
    return lambda batch: model.upsampled(model(batch.rgb), batch.depth_mm.shape[-2:])


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
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    ways: Sequence[str] = ("none",),
    look: Look | None = None,
) -> dict[str, Scores]:
    """Scores by alignment. Padding has weight 0 and never counts; losses are those of the prediction as it is.

    Metrics are over all measured pixels: the same ones for every run. Losses are over those within `bounds`, as in training.
    raises ValueError, which names the image, where a prediction is no number
    gather  what every rank has, from what this one has: the means are of all images in their order, so no number of ranks changes a bit
    look    more metrics of an image: of its number in the split, prediction, truth (H, W) mm, and mask
    """
    mine, lost = [], 0
    for batch in (b.to(device) for b in batches):
        target, mask = inverse_target(batch.depth_mm, bounds, batch.mask)
        pred = predict(batch).float()
        parts = compute(loss, pred, target, mask, bounds)
        pred_mm = depth_from_target(pred, bounds)
        lost += int(sum(slot.weight for slot in batch.group.slots) - float(batch.weight.sum()))
        for i in torch.nonzero(batch.weight).flatten().tolist():
            truth, known = batch.depth_mm[i], batch.mask[i]
            if not torch.isfinite(pred[i]).all():  # infinite inverse depth would pass for a depth of 0 mm
                raise ValueError(f"{batch.keys[i]}: the prediction is not finite in {int((~torch.isfinite(pred[i])).sum())} of {known.numel()} pixels; the weights or the precision are broken")
            for way in ways:
                here = pred_mm[i] if way == "none" else aligned(way, pred_mm[i], truth, known)
                inside = bool(mask[i].any())
                losses = {name: float(part[i]) if inside else math.nan for name, part in parts.items()} if way == "none" else {}
                more = look(batch.samples[i], here, truth, known) if look else None
                mine.append((batch.samples[i], way, batch.keys[i], {**losses, **image_metrics(here, truth, known)}, more))
    mine = [(*one, {**values, **more.result()[0]}, more.result()[1]) if more else (*one, values, []) for *one, values, more in mine]
    everybody = gather((mine, lost))
    lost, found = sum(lost for _, lost in everybody), sorted((one for all_of_it, _ in everybody for one in all_of_it), key=lambda one: one[0])
    assert len(found) == (num_samples - lost) * len(ways), f"evaluation met {len(found) / len(ways):g} + {lost} samples of {num_samples}"
    if not found:
        raise ValueError(f"none of the {num_samples} samples could be read; `tools/shard.py --verify` lists the damage")
    return {way: _together([one for one in found if one[1] == way], lost) for way in ways}


def _together(found: list[tuple], damaged: int) -> Scores:
    keys, values, grooves = ([one[i] for one in found] for i in (2, 3, 4))
    return Scores(keys, {name: [of_image[name] for of_image in values] for name in values[0]}, damaged, grooves)


# ------------------------------------------------------------------------------------------------------- tables


def table(rows: dict[str, dict[str, float]], intervals: dict[str, dict[str, tuple[float, float]]] | None = None) -> str:
    """The rows side by side; the best of each metric is marked with *, among those that were not aligned to the truth.

    intervals  of the means, by row and name: shown below each row
    """
    names = ["loss", *HEADLINE]
    fair = [values for row, values in rows.items() if not row.endswith("-aligned")]
    best = {n: (min if n == "loss" or METRICS[n].better == "lower" else max)([r[n] for r in fair if not math.isnan(r[n])] or [math.nan]) for n in names}
    width, wide = max(len(name) for name in rows), 18 if intervals else 12
    lines = [f"{'':{width}}  images" + "".join(f"{n + ' ':>{wide}}" for n in names)]
    for row, values in rows.items():
        cells = "".join(f"{cell(n, values.get(n, math.nan)) + ('*' if not row.endswith('-aligned') and values[n] == best[n] else ' '):>{wide}}" for n in names)
        lost = f"  ({int(values['damaged'])} damaged samples left out)" if values.get("damaged") else ""
        lines.append(f"{row:{width}}  {int(values['images']):>6}{cells}{lost}")
        if known := (intervals or {}).get(row):
            lines.append(f"{'':{width}}  {'':>6}" + "".join(f"{span(n, known.get(n)) + ' ':>{wide}}" for n in names))
    return "\n".join(lines)


def cell(name: str, value: float) -> str:
    """A value as a table shows it, "-" where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if "mm" in name.partition("@")[0] or name.endswith(("_deg", "_px")) else f"{value:.4f}"


def span(name: str, interval: tuple[float, float] | None) -> str:
    if not interval or math.isnan(interval[0]):
        return ""
    return f"{cell(name, interval[0])}..{cell(name, interval[1])}"
