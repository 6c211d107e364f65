"""Every image of a split, scored: losses and metrics in mm at the truth's own size, kept for each
image, then their means.

    rows = {"untrained": Row(untrained), "untrained, disparity-aligned": Row(untrained,
    "disparity"), "adapter": Row(network(model))} found = score_rows(rows, loader.evaluate("val", 1,
    rank, world), 12, bounds, loss, device) print(table({row: scores.means() for row, scores in
    found.items()}))

Each image is read once, and put once through each network that has a row. A prediction may also be
scored as some alignment leaves it (align.py): the row says so, and never counts as the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from depthdist.data.batch import Batch
from depthdist.evaluation.metrics.alignment import align
from depthdist.evaluation.metrics.grooves import Groove
from depthdist.evaluation.metrics.pixels import image_metrics
from depthdist.evaluation.predictors import Predictor
from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_depth
from depthdist.losses import LossSettings, compute_losses

ImageDetails = dict[str, tuple[dict[str, float], list[Groove]]]  # more of an image, by row
ImageMeasure = Callable[[int, Mapping[str, Tensor], Tensor, Tensor], "Future[ImageDetails]"]


class Row(NamedTuple):
    """What a row of a table is of: a prediction, and how it is aligned to each image's truth
    (align.WAYS).
    """

    predict: Predictor
    way: str = "none"


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
        return {
            "images": len(self.keys),
            "damaged": self.damaged,
            **{name: mean(values) for name, values in self.values.items()},
        }


def mean(values: Sequence[float]) -> float:
    """Of those that are not NaN, without rounding on the way; NaN where there is none."""
    known = [v for v in values if not math.isnan(v)]
    return (
        math.fsum(known) / len(known)
        if known and all(map(math.isfinite, known))
        else math.inf
        if known
        else math.nan
    )


def score(
    predict: Predictor,
    batches: Iterable[Batch],
    num_samples: int,
    bounds: DepthRange,
    loss: LossSettings,
    device: torch.device,
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    ways: Sequence[str] = ("none",),
) -> dict[str, Scores]:
    """One prediction's scores by alignment, as `score_rows` has them."""
    return score_rows(
        {way: Row(predict, way) for way in ways}, batches, num_samples, bounds, loss, device, gather
    )


@torch.no_grad()
def score_rows(
    rows: Mapping[str, Row],
    batches: Iterable[Batch],
    num_samples: int,
    bounds: DepthRange,
    loss: LossSettings,
    device: torch.device,
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    look: ImageMeasure | None = None,
) -> dict[str, Scores]:
    """Scores by row.

    Padding has weight 0 and never counts; losses are those of the prediction as it is.

    Metrics are over all measured pixels: the same ones for every run. Losses are over those within
    `bounds`, as in training. raises ValueError, which names the image, where a prediction is no
    number
    gather  what every rank has, from what this one has: the means are of all images in their order,
            so no number of ranks changes a bit
    look    more metrics of an image: of its number in the split, prediction by row and truth (H, W)
            mm, and mask
    """
    mine, lost = [], 0
    for batch in (b.to(device) for b in batches):
        target, mask = normalize_depth(batch.depth_mm, bounds, batch.mask)
        preds = {
            predict: _finite(predict(batch).float(), batch)
            for predict in dict.fromkeys(row.predict for row in rows.values())
        }
        parts = {
            predict: compute_losses(loss, pred, target, mask, bounds)
            for predict, pred in preds.items()
        }
        lost += int(sum(slot.weight for slot in batch.group.slots) - float(batch.weight.sum()))
        for i in torch.nonzero(batch.weight).flatten().tolist():
            truth, known, inside, maps, values = (
                batch.depth_mm[i],
                batch.mask[i],
                bool(mask[i].any()),
                {},
                {},
            )
            for name, (predict, way) in rows.items():
                pred_mm = denormalize_depth(preds[predict][i], bounds)
                maps[name] = pred_mm if way == "none" else align(way, pred_mm, truth, known)
                losses = (
                    {
                        part: float(value[i]) if inside else math.nan
                        for part, value in parts[predict].items()
                    }
                    if way == "none"
                    else {}
                )
                values[name] = {**losses, **image_metrics(maps[name], truth, known)}
            mine.append(
                (
                    batch.samples[i],
                    batch.keys[i],
                    values,
                    look(batch.samples[i], maps, truth, known) if look else None,
                )
            )
    mine = [
        (sample, key, values, more.result() if more else {}) for sample, key, values, more in mine
    ]
    everybody = gather((mine, lost))
    lost, found = (
        sum(lost for _, lost in everybody),
        sorted((one for all_of_it, _ in everybody for one in all_of_it), key=lambda one: one[0]),
    )
    assert len(found) == num_samples - lost, (
        f"evaluation met {len(found)} + {lost} samples of {num_samples}"
    )
    if not found:
        raise ValueError(
            f"none of the {num_samples} samples could be read; `tools/shard.py --verify` lists the"
            " damage"
        )
    return {row: _together(row, found, lost) for row in rows}


def _finite(pred: Tensor, batch: Batch) -> Tensor:
    """`pred`.

    ValueError names the image where it is no number: infinite inverse depth would pass for a depth
    of 0 mm.
    """
    for i in torch.nonzero(batch.weight).flatten().tolist():
        if wrong := int((~torch.isfinite(pred[i])).sum()):
            raise ValueError(
                f"{batch.keys[i]}: the prediction is not finite in {wrong} of {pred[i].numel()}"
                " pixels; the weights or the precision are broken"
            )
    return pred


def _together(
    row: str, found: list[tuple[int, str, dict[str, dict[str, float]], ImageDetails]], damaged: int
) -> Scores:
    """A row's scores, of (number in the split, key, values by row, more by row) of each image."""
    nothing: tuple[dict[str, float], list[Groove]] = ({}, [])
    more = [of_image.get(row, nothing) for *_, of_image in found]
    values = [
        {**of_image[row], **details} for (_, _, of_image, _), (details, _) in zip(found, more)
    ]
    return Scores(
        [key for _, key, _, _ in found],
        {name: [of_image[name] for of_image in values] for name in values[0]},
        damaged,
        [grooves for _, grooves in more],
    )


# ------------------------------------------------------------------------------------------- tables
