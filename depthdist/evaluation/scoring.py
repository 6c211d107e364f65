"""Score every image of a split: losses, and metrics in mm at the size of the ground truth.

    rows = {
        "untrained": Row(untrained, RowKind.UNTRAINED),
        "untrained, disparity-aligned": Row(untrained, RowKind.UNTRAINED_ALIGNED, "disparity"),
        "adapter": Row(network_predictor(model), RowKind.ADAPTER),
    }
    batches = loader.evaluate("val", 1, rank, world)
    found = score_rows(
        rows, batches, num_samples=12, bounds=bounds, loss=loss, device=device
    )
    print(scores_table({row: scores.means() for row, scores in found.items()}))

Values are kept for each image; `mean_scores`, whose images several ranks share, keeps their sums
alone. An image is read once, and goes once through each network that has a row. A prediction may
also be scored after an alignment (metrics/alignment.py): the row's kind says so, and it never
counts as the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from depthdist.core.errors import Stopped
from depthdist.core.stop_signals import stop_signal
from depthdist.data.batch import Batch, EncodedBatch
from depthdist.evaluation.exact_sums import MetricSums
from depthdist.evaluation.metrics.alignment import align
from depthdist.evaluation.metrics.grooves import Groove
from depthdist.evaluation.metrics.pixels import binned_metrics, image_metrics
from depthdist.evaluation.predictors import Predictor
from depthdist.evaluation.row_kinds import RowKind
from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_depth
from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import compute_losses


class Row(NamedTuple):
    """What a row of a table scores: whose predictions, and how they are aligned (ALIGNMENTS)."""

    predict: Predictor
    kind: RowKind
    alignment: str = "none"


class RowDetails(NamedTuple):
    """More metrics of one image in one row, and its grooves (truth, prediction)."""

    values: dict[str, float]
    grooves: list[Groove]


ImageDetails = dict[str, RowDetails]  # of one image, by row


class ImageMeasure(Protocol):
    """Measures more of an image, possibly in another process."""

    def __call__(
        self, sample: int, preds_mm: Mapping[str, Tensor], depth_mm: Tensor, mask: Tensor
    ) -> Future[ImageDetails]:
        """Return the details of sample number `sample` of the split.

        preds_mm  predictions (H, W) mm by row;  depth_mm  (H, W) mm;  mask  (H, W) bool
        """


@dataclass(frozen=True)
class ScoredImage:
    """One image: its number in the split, its name, and its values by row and name."""

    sample: int
    key: str
    values: dict[str, dict[str, float]]
    details: ImageDetails = field(default_factory=dict)


PendingImage = tuple[ScoredImage, Future[ImageDetails] | None]  # details may be measured still


@dataclass
class Scores:
    """The values of each image of a split, in the order of the split.

    samples  numbers in the split of the images that could be read;  keys  their names
    values   by name, one for each image; NaN where a metric has no value for it
    damaged  how many images could not be read
    grooves  of each image, depths (truth, prediction); empty where they were not measured
    """

    samples: list[int]
    keys: list[str]
    values: dict[str, list[float]]
    damaged: int = 0
    grooves: list[list[Groove]] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """Return the mean of each name over images with a value; and "images", "damaged"."""
        return {
            "images": len(self.keys),
            "damaged": self.damaged,
            **{name: mean(values) for name, values in self.values.items()},
        }


@dataclass(frozen=True)
class MeanScores:
    """The mean of each name over the images of a split, and how many these are."""

    num_images: int
    num_damaged: int
    of_names: dict[str, float]

    def means(self) -> dict[str, float]:
        """Return the means as `Scores.means` does."""
        return {"images": self.num_images, "damaged": self.num_damaged, **self.of_names}


@dataclass
class RankScores:
    """What a rank tells the others of its images: sums by row, and how many were scored.

    stopped_by  who asked it to stop with images left, "" where it has scored all of its own
    """

    sums: dict[str, MetricSums]
    num_images: int = 0
    num_damaged: int = 0
    stopped_by: str = ""


def mean(values: Sequence[float]) -> float:
    """Return the exactly rounded mean of those that are not NaN; NaN if there is none."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return math.nan
    if not all(map(math.isfinite, known)):
        return math.inf
    return math.fsum(known) / len(known)


def score(
    predict: Predictor,
    batches: Iterable[EncodedBatch | Batch],
    num_samples: int,
    bounds: DepthRange,
    loss: LossSettings,
    device: torch.device,
    gather: Callable[[Any], list[Any]] = lambda own: [own],
    ways: Sequence[str] = ("none",),
    measure: ImageMeasure | None = None,
) -> dict[str, MeanScores]:
    """Return the mean scores of one predictor by alignment, computed as in `mean_scores`."""
    return mean_scores(
        {way: Row(predict, RowKind.ADAPTER, way) for way in ways},
        batches,
        num_samples=num_samples,
        bounds=bounds,
        loss=loss,
        device=device,
        gather=gather,
        measure=measure,
    )


def measure_ranges(
    sample: int, preds_mm: Mapping[str, Tensor], depth_mm: Tensor, mask: Tensor
) -> Future[ImageDetails]:
    """Measure the RMSE per depth range at once, as ImageMeasure describes: "rmse_mm@750-1500"."""
    measured: Future[ImageDetails] = Future()
    measured.set_result(
        {
            row: RowDetails(binned_metrics(pred_mm, depth_mm, mask, names=("rmse_mm",)), [])
            for row, pred_mm in preds_mm.items()
        }
    )
    return measured


def score_rows(
    rows: Mapping[str, Row],
    batches: Iterable[EncodedBatch | Batch],
    *,
    num_samples: int,
    bounds: DepthRange,
    loss: LossSettings,
    device: torch.device,
    measure: ImageMeasure | None = None,
) -> dict[str, Scores]:
    """Return the scores of each row, and raise ValueError if a prediction is not finite.

    Metrics are over all measured pixels: the same ones for every run. Losses are over those within
    `bounds`, as in training, and of the prediction before alignment. Padding has weight 0 and never
    counts.

    num_samples  of the split
    measure  more metrics of an image
    """
    scored: list[PendingImage] = []
    num_damaged = 0
    for of_batch, damaged in score_batches(rows, batches, bounds, loss, device, measure):
        num_damaged += damaged
        scored += of_batch
    images = [
        image if details is None else replace(image, details=details.result())
        for image, details in scored
    ]
    images.sort(key=lambda image: image.sample)
    _check_count(len(images), num_damaged, num_samples)
    return {row: _row_scores(row, images, num_damaged) for row in rows}


def mean_scores(
    rows: Mapping[str, Row],
    batches: Iterable[EncodedBatch | Batch],
    *,
    num_samples: int,
    bounds: DepthRange,
    loss: LossSettings,
    device: torch.device,
    gather: Callable[[Any], list[Any]] = lambda own: [own],
    measure: ImageMeasure | None = None,
) -> dict[str, MeanScores]:
    """Return the mean scores of each row over what all ranks score, computed as in `score_rows`.

    raises Stopped, on every rank, where one was asked to stop and has images left

    num_samples  over all ranks
    batches  of this rank
    gather   returns what every rank has, given what this one has: a few kilobytes, whatever the
             number of images. Means are bit-equal for any number of ranks
    """
    own = RankScores({row: MetricSums() for row in rows})
    for of_batch, damaged in score_batches(
        rows, _until_stopped(batches, own), bounds, loss, device, measure
    ):
        own.num_damaged += damaged
        own.num_images += len(of_batch)
        for image, details in of_batch:
            more = details.result() if details else {}
            for row, sums in own.sums.items():
                sums.add(image.values[row] | (more[row].values if row in more else {}))
    ranks = gather(own)
    for by in [rank.stopped_by for rank in ranks if rank.stopped_by]:
        raise Stopped(by, "while images were scored")
    num_images = sum(rank.num_images for rank in ranks)
    num_damaged = sum(rank.num_damaged for rank in ranks)
    _check_count(num_images, num_damaged, num_samples)
    return {
        row: MeanScores(
            num_images, num_damaged, MetricSums.means([rank.sums[row] for rank in ranks])
        )
        for row in rows
    }


def _until_stopped(
    batches: Iterable[EncodedBatch | Batch], own: RankScores
) -> Iterator[EncodedBatch | Batch]:
    """Yield the batches until this rank is asked to stop, and note by whom."""
    for batch in batches:
        own.stopped_by = stop_signal()
        if own.stopped_by:
            return
        yield batch


@torch.no_grad()
def score_batches(
    rows: Mapping[str, Row],
    batches: Iterable[EncodedBatch | Batch],
    bounds: DepthRange,
    loss: LossSettings,
    device: torch.device,
    measure: ImageMeasure | None,
) -> Iterator[tuple[list[PendingImage], int]]:
    """Yield the images of each batch, and how many of it could not be read."""
    for encoded in batches:
        batch = encoded.to(device)
        yield _score_batch(rows, batch, bounds, loss, measure), _count_damaged(batch)


def _check_count(num_images: int, num_damaged: int, num_samples: int) -> None:
    """Raise ValueError where no image could be read."""
    assert num_images == num_samples - num_damaged, (
        f"evaluation met {num_images} + {num_damaged} samples of {num_samples}"
    )
    if not num_images:
        raise ValueError(
            f"none of the {num_samples} samples could be read; `depthdist shard --verify` lists the"
            " damage"
        )


def _count_damaged(batch: Batch) -> int:
    """Return how many samples of the batch were planned and could not be read."""
    return int(sum(slot.weight for slot in batch.group.slots) - float(batch.weight.sum()))


def _slots_in_use(batch: Batch) -> list[int]:
    """Return the positions in the batch that are not padding."""
    return torch.nonzero(batch.weight).flatten().tolist()


def _score_batch(
    rows: Mapping[str, Row],
    batch: Batch,
    bounds: DepthRange,
    loss: LossSettings,
    measure: ImageMeasure | None,
) -> list[PendingImage]:
    """Return each image of a batch, and its details as soon as they are measured."""
    target, mask = normalize_depth(batch.depth_mm, bounds, batch.mask)
    preds: dict[Predictor, Tensor] = {}  # (B, H, W) normalized
    for row in rows.values():
        if row.predict not in preds:
            preds[row.predict] = _check_finite(row.predict(batch).float(), batch)
    losses = {
        predict: compute_losses(loss, pred, target, mask, bounds) for predict, pred in preds.items()
    }  # (B,) by name
    scored: list[PendingImage] = []
    for i in _slots_in_use(batch):
        sample = batch.samples[i]
        truth = batch.depth_mm[i]
        measured = batch.mask[i]
        has_loss = bool(mask[i].any())
        preds_mm: dict[str, Tensor] = {}
        values: dict[str, dict[str, float]] = {}
        for name, row in rows.items():
            pred_mm = denormalize_depth(preds[row.predict][i], bounds)
            values[name] = {}
            if row.alignment == "none":
                for part, value in losses[row.predict].items():
                    values[name][part] = float(value[i]) if has_loss else math.nan
            else:
                pred_mm = align(row.alignment, pred_mm, truth, measured)
            preds_mm[name] = pred_mm
            values[name] |= image_metrics(pred_mm, truth, measured)
        details = measure(sample, preds_mm, truth, measured) if measure else None
        scored.append((ScoredImage(sample, batch.stems[i], values), details))
    return scored


def _check_finite(pred: Tensor, batch: Batch) -> Tensor:
    """Return `pred`, and raise ValueError with the image's name if it is not finite.

    Infinite inverse depth would otherwise count as a depth of 0 mm.
    """
    for i in _slots_in_use(batch):
        wrong = int((~torch.isfinite(pred[i])).sum())
        if wrong:
            raise ValueError(
                f"{batch.stems[i]}: the prediction is not finite in {wrong} of {pred[i].numel()}"
                " pixels; the weights or the precision are broken"
            )
    return pred


def _row_scores(row: str, images: Sequence[ScoredImage], num_damaged: int) -> Scores:
    """Return the scores of one row, details included."""
    nothing = RowDetails({}, [])
    details = [image.details.get(row, nothing) for image in images]
    values = [image.values[row] | more.values for image, more in zip(images, details)]
    return Scores(
        samples=[image.sample for image in images],
        keys=[image.key for image in images],
        values={name: [of_image[name] for of_image in values] for name in values[0]},
        damaged=num_damaged,
        grooves=[more.grooves for more in details],
    )
