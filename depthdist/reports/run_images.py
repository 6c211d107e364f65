"""The images of a run's report, predicted again, with their figures (image_figures.py).

# the best, the median and the worst of the first run
blocks = image_blocks([read_evaluated_run(folder, name), ...], num_images=3)
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from depthdist.core.environment import pick_device, silence_libraries
from depthdist.data.batch import Batch
from depthdist.data.dataset import Dataset, DataSettings, open_dataset
from depthdist.data.full_size import FullSizeReader
from depthdist.data.loader import Loader
from depthdist.evaluation.predictors import (
    full_size_images,
    network_predictor,
    refined_predictor,
)
from depthdist.evaluation.settings import EvaluateSettings
from depthdist.geometry.depth_range import denormalize_depth
from depthdist.models.adapter import load_adapter
from depthdist.models.refiner import load_refiner
from depthdist.reports.evaluated_run import EvaluatedRun
from depthdist.reports.html_page import Block, Grid, Heading, Paragraph
from depthdist.reports.image_figures import (
    EDGE_STEP_MM,
    PredictedImage,
    cut_figure,
    panels,
    relief_strip,
)


class RankedImage(NamedTuple):
    """An image of the evaluation: its rank's name, and its position among the evaluated images."""

    rank: str
    position: int


def image_blocks(runs: Sequence[EvaluatedRun], num_images: int) -> list[Block]:
    """Return the first run's best, median and worst image by RMSE, with each run's prediction.

    raises ValueError: the data is no longer what the first run was evaluated on
    """
    silence_libraries()
    first = runs[0]
    evaluated = first.evaluation["images"][first.row]
    errors = evaluated["values"]["rmse_mm"]
    chosen = rank_images(errors)[:num_images]
    data = open_evaluated(runs)
    names = prediction_names(runs, data)
    blocks: list[Block] = [
        Paragraph(
            f"The best, the median and the worst image of {first.name}, by RMSE. Error is"
            f" prediction - truth: red is too far. Edges are steps of more than {EDGE_STEP_MM:g} mm"
            " beyond the slope."
        )
    ]
    positions = [image.position for image in chosen]
    treads = [position for position in most_grooves(first) if data.full_size]
    images = predict_images(runs, data, [*positions, *treads])
    for (rank, position), image in zip(chosen, images):
        key = evaluated["keys"][position]
        blocks.append(Heading(f"{rank}: {key}, RMSE {errors[position]:.1f} mm"))
        blocks.append(Grid(panels(names, image)))
        blocks.append(Grid([cut_figure(names, image)]))
    if data.full_size and images:
        tread = images[-1] if treads else max(images, key=lambda image: image.relief.sum())
        blocks += relief_strip(names, tread)
    elif any(has_detail_row(run) for run in runs):
        blocks.append(Paragraph(f"Without the detail stage: {data.no_full_size}.", "warn"))
    return blocks


def most_grooves(run: EvaluatedRun) -> list[int]:
    """Return the position of the evaluated image with the most measured grooves, [] without any."""
    keys = [groove["key"] for groove in run.evaluation["grooves"].get(run.row, [])]
    if not keys:
        return []
    return [run.evaluation["images"][run.row]["keys"].index(Counter(keys).most_common(1)[0][0])]


def rank_images(errors: Sequence[float]) -> list[RankedImage]:
    """Return the images with the lowest, the median and the highest error; NaN never counts.

    Without the median where there are only two images; [] where there is none.
    """
    order = [i for i in np.argsort(errors).tolist() if not math.isnan(errors[i])]
    if len(order) > 2:
        return [
            RankedImage("best", order[0]),
            RankedImage("median", order[len(order) // 2]),
            RankedImage("worst", order[-1]),
        ]
    return [RankedImage(rank, i) for rank, i in zip(("best", "worst"), order)]


# --------------------------------------------------------------------------------------- prediction


class EvaluatedData(NamedTuple):
    """The data that the first run was evaluated on.

    full_size     reads its images at the camera's size, where a run needs them and they are at hand
    no_full_size  why not, where a run needs them
    """

    settings: DataSettings
    dataset: Dataset
    full_size: FullSizeReader | None
    no_full_size: str


def open_evaluated(runs: Sequence[EvaluatedRun]) -> EvaluatedData:
    """Open the data of the first run's evaluation; raise ValueError if they have changed."""
    first = runs[0]
    settings = _evaluated_data(first)
    dataset = open_dataset(settings)
    if dataset.sha256 != first.evaluation["data_sha256"]:
        raise ValueError(
            f"{dataset.place}: the data changed since {first.run.folder} was evaluated; `python"
            f" depthdist evaluate --run {first.run.folder}` again"
        )
    if not any(has_detail_row(run) for run in runs):
        return EvaluatedData(settings, dataset, None, "")
    given = first.evaluation["settings"]
    data = tuple(given["data"]) if given["data"] else None
    raw = Path(given["raw"]) if given["raw"] else None
    try:
        images = full_size_images(first.run, dataset, EvaluateSettings(data=data, raw=raw))
    except ValueError as err:
        return EvaluatedData(settings, dataset, None, str(err))
    return EvaluatedData(settings, dataset, images, "")


def has_detail_row(run: EvaluatedRun) -> bool:
    """Return whether the run was evaluated with a detail stage; older evaluations were not."""
    return bool(run.evaluation.get("detail"))


def prediction_names(runs: Sequence[EvaluatedRun], data: EvaluatedData) -> list[str]:
    """Return the names of what predicts: each run, and where it has a detail stage the two."""
    names = []
    for run in runs:
        names.append(run.name)
        if has_detail_row(run) and data.full_size:
            names.append(f"{run.name} + detail")
    return names


def predict_images(
    runs: Sequence[EvaluatedRun], data: EvaluatedData, positions: Sequence[int]
) -> list[PredictedImage]:
    """Read the images at these positions of the first run's evaluation, and predict their depth."""
    first = runs[0]
    split = first.evaluation["split"]
    dataset = data.dataset
    device = pick_device()
    loader = Loader(dataset, data.settings, device=device)
    numbers = sample_numbers(first, dataset, positions)
    batches = [loader.samples(split, [number]).to(device) for number in numbers]
    predictions = _predict(runs, batches, device, data.full_size, split)
    images = []
    for number, batch, predicted in zip(numbers, batches, predictions):
        images.append(
            PredictedImage(
                rgb=batch.rgb[0].cpu().numpy(),
                truth=batch.depth_mm[0].cpu().numpy(),
                mask=batch.mask[0].cpu().numpy(),
                groove_label=dataset.groove_label(split, number),
                predictions=predicted,
                full_rgb=data.full_size.image(split, number) if data.full_size else None,
            )
        )
    return images


def _evaluated_data(run: EvaluatedRun) -> DataSettings:
    """Return the settings of the data that the run was evaluated on."""
    given = run.evaluation["settings"]["data"]
    return replace(run.run.data, data=tuple(given), weights=()) if given else run.run.data


def sample_numbers(run: EvaluatedRun, dataset: Dataset, positions: Sequence[int]) -> list[int]:
    """Return the numbers in their split of the images at these positions of the evaluation."""
    evaluated = run.evaluation["images"][run.row]
    if "samples" in evaluated:
        return [evaluated["samples"][position] for position in positions]
    # older evaluations have only names: search the split for them
    keys = [evaluated["keys"][position] for position in positions]
    split = run.evaluation["split"]
    found: dict[str, int] = {}
    for number in range(dataset.count(split)):
        _, ref = dataset.find(split, number)
        found |= {name: number for name in (ref.stem, ref.key) if name in keys}
    return [found[key] for key in keys]


def _predict(
    runs: Sequence[EvaluatedRun],
    batches: Sequence[Batch],
    device: torch.device,
    full_size: FullSizeReader | None,
    split: str,
) -> list[list[np.ndarray]]:
    """Return for each batch of one image the depth of each of `prediction_names` in mm, (H, W)."""
    predictions: list[list[np.ndarray]] = [[] for _ in batches]
    progress = tqdm(runs, "predicting images", leave=False, disable=not sys.stderr.isatty())
    for run in progress:
        model, record = load_adapter(run.run.folder / "best")
        model.to(device)
        ways = [network_predictor(model)]
        if has_detail_row(run) and full_size:
            refiner = load_refiner("detail", run.run.folder).to(device)
            ways.append(refined_predictor(model, refiner, record.bounds, full_size, split))
        for predict, (batch, predicted) in product(ways, zip(batches, predictions)):
            with torch.no_grad():
                depth_mm = denormalize_depth(predict(batch), record.bounds)
            predicted.append(depth_mm[0].cpu().numpy())
    return predictions
