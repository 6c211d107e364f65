"""The images of a run's report, predicted again: RGB, ground truth, prediction, error, edges, cut.

# the best, the median and the worst of the first run
blocks = image_blocks([read_evaluated_run(folder, name), ...], num_images=3)
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from depthdist.core.environment import pick_device, silence_libraries
from depthdist.data.batch import Batch
from depthdist.data.dataset import Dataset, DataSettings, open_dataset
from depthdist.data.full_size import FullSizeReader
from depthdist.data.loader import Loader
from depthdist.evaluation.metrics.edges import jumps_of
from depthdist.evaluation.predictors import (
    full_size_images,
    network_predictor,
    refined_predictor,
)
from depthdist.evaluation.relief.figure import RANGE_MM, relief_of, relief_panels
from depthdist.evaluation.settings import EvaluateSettings
from depthdist.geometry.depth_range import denormalize_depth
from depthdist.models.adapter import load_adapter
from depthdist.models.refiner import load_refiner
from depthdist.reports.drawings import (
    INK,
    SERIES,
    add_legend,
    colorize,
    depth_colormap,
    error_colormap,
    jpeg_figure,
    make_stacked_axes,
    svg_figure,
)
from depthdist.reports.evaluated_run import EvaluatedRun
from depthdist.reports.html_page import Block, Drawing, Grid, Heading, Paragraph, Photo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGE_STEP_MM = 4.0  # edges that are drawn: steps beyond the slope
BOTH = (60, 220, 110)  # RGB of an edge
TRUTH_ONLY = (255, 140, 0)
PREDICTION_ONLY = (70, 140, 255)
GREY_SHARE = 0.6  # how bright the image is below the edges
LEAST_RELIEF_MM = 1.0
SHAPE_MM = 12.0  # half the height of a cut's lower axes


class RankedImage(NamedTuple):
    """An image of the evaluation: its rank's name, and its position among the evaluated images."""

    rank: str
    position: int


@dataclass(frozen=True)
class PredictedImage:
    """One image's maps in mm at the size of the ground truth, and what each run predicts there.

    rgb  (h, w, 3) uint8
    truth, mask and each of `predictions`, in the order of `prediction_names`: (H, W); mask is True
    where depth was measured
    groove_label  (H, W) uint16, 0 outside grooves; None where nothing was labeled
    full_rgb      (H, W, 3) uint8; None where the images at full size are not at hand
    """

    rgb: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    groove_label: np.ndarray | None
    predictions: Sequence[np.ndarray]
    full_rgb: np.ndarray | None = None

    @property
    def known_mm(self) -> np.ndarray:
        """The truth, NaN where nothing was measured."""
        return np.where(self.mask, self.truth, np.nan)

    @property
    def relief(self) -> np.ndarray:
        """Where relief can be seen, (H, W) bool: in grooves or, without labels, by the truth."""
        if self.groove_label is not None and self.groove_label.any():
            return self.groove_label > 0
        height_mm = np.abs(relief_of(self.known_mm))
        return (height_mm > LEAST_RELIEF_MM) & (height_mm < RANGE_MM)


class Cut(NamedTuple):
    """A piece of an image row: columns from `first` to before `end`."""

    row: int
    first: int
    end: int


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


# ------------------------------------------------------------------------------------------- panels


def panels(names: Sequence[str], image: PredictedImage) -> list[Photo]:
    """Return RGB and ground truth, then each run's prediction, error and edges.

    names  of the runs, shown where there are several
    """
    truth = image.known_mm
    measured = image.truth[image.mask]
    low, high = np.percentile(measured, (1, 99)) if measured.size else (0.0, 1.0)
    found = [
        jpeg_figure(image.rgb, "RGB, as the network sees it"),
        jpeg_figure(
            colorize(truth, low, high, depth_colormap()),
            f"truth, {low:.0f} mm (red) .. {high:.0f} mm (blue); grey: not measured",
        ),
    ]
    for name, prediction in zip(names, image.predictions):
        title = f"{name}: " if len(names) > 1 else ""
        error = np.where(image.mask, prediction - image.truth, np.nan)
        limit = max(float(np.nanpercentile(np.abs(error), 95)), 0.1)
        found += [
            jpeg_figure(
                colorize(prediction, low, high, depth_colormap()),
                f"{title}prediction, same colours",
            ),
            jpeg_figure(
                colorize(error, -limit, limit, error_colormap()),
                f"{title}error, -{limit:.1f} mm (blue) .. +{limit:.1f} mm (red)",
            ),
            jpeg_figure(
                draw_edges(image.rgb, image.truth, prediction, image.mask),
                f"{title}edges: green in both, orange in truth only, blue in the prediction only",
            ),
        ]
    return found


def draw_edges(
    rgb: np.ndarray, truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Return the image in dark grey at the ground truth's size with both maps' edges on it.

    (H, W, 3) uint8; an edge is drawn three pixels wide
    """
    from PIL import Image

    height, width = truth.shape
    grey = np.asarray(Image.fromarray(rgb).convert("L").resize((width, height)))
    shown = np.repeat((grey * GREY_SHARE).astype(np.uint8)[..., None], 3, axis=2)
    in_truth = ndimage.binary_dilation(_edges(truth, mask))
    in_prediction = ndimage.binary_dilation(_edges(prediction, mask))
    shown[in_truth & ~in_prediction] = TRUTH_ONLY
    shown[in_prediction & ~in_truth] = PREDICTION_ONLY
    shown[in_prediction & in_truth] = BOTH
    return shown


def _edges(depth_mm: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return where a step to the next column or row begins, (H, W) bool."""
    edge = np.zeros(depth_mm.shape, bool)
    for jumps in jumps_of(depth_mm.astype(np.float64), mask):
        where = np.abs(jumps) > EDGE_STEP_MM
        edge[: where.shape[0], : where.shape[1]] |= where
    return edge


# ------------------------------------------------------------------------------------------- relief


def relief_strip(names: Sequence[str], image: PredictedImage) -> list[Block]:
    """Return image, true relief and each prediction's where an image has most relief."""
    assert image.full_rgb is not None
    maps = {"truth": image.known_mm, **dict(zip(names, image.predictions))}
    panels = relief_panels(image.full_rgb, image.relief, maps)
    return [
        Heading("Relief"),
        Paragraph("Depth less its blurred self, in the part with most relief: grooves are bright."),
        Grid([jpeg_figure(panel, caption) for caption, panel in panels.items()]),
    ]


# ---------------------------------------------------------------------------------------------- cut


def cut_figure(names: Sequence[str], image: PredictedImage) -> Drawing:
    """Return depth along one row: through the most grooves, else through the nearest surface."""
    cut = find_cut(image.truth, image.mask, image.groove_label)
    has_grooves = image.groove_label is not None and image.groove_label.any()
    through = (
        ": through the tread that shows most grooves there; below, within 12 mm, whether the"
        " grooves are in the prediction"
    )
    return svg_figure(
        plot_cut(names, image, cut),
        f"Truth and prediction in mm along row {cut.row}, columns {cut.first} to"
        f" {cut.end}{through if has_grooves else ''}. Near is up.",
    )


def plot_cut(names: Sequence[str], image: PredictedImage, cut: Cut) -> Figure:
    """Plot ground truth and predictions along a cut; below, each minus its own running median."""
    fig, (whole, shape) = make_stacked_axes(
        f"Cut along row {cut.row}", "column, pixels", "depth, mm", size=(9.2, 5.0), num_rows=2
    )
    shape.set_title("The same, each less its own running median", fontsize=10, color=INK)
    part = (cut.row, slice(cut.first, cut.end))
    columns = np.arange(cut.first, cut.end)
    lines = [("truth", image.known_mm[part], INK)]
    for name, prediction, color in zip(names, image.predictions, cycle(SERIES)):
        lines.append((name, prediction[part], color))
    for name, depth_mm, color in lines:
        whole.plot(columns, depth_mm, color=color, linewidth=1.2, label=name)
        if np.isfinite(depth_mm).any():
            shape.plot(columns, _minus_running_median(depth_mm), color=color, linewidth=1.2)
    shape.set_ylim(-SHAPE_MM, SHAPE_MM)
    for axes in (whole, shape):
        if image.groove_label is not None:
            axes.fill_between(
                columns,
                0,
                1,
                where=image.groove_label[part] > 0,
                transform=axes.get_xaxis_transform(),
                color=INK,
                alpha=0.1,
                linewidth=0,
                label="grooves",
            )
        axes.invert_yaxis()
    add_legend(whole)
    return fig


def _minus_running_median(depth_mm: np.ndarray) -> np.ndarray:
    """Return depth minus its median over a sixth of the cut; NaN stays NaN."""
    columns = np.arange(len(depth_mm))
    known = np.isfinite(depth_mm)
    filled = np.interp(columns, columns[known], depth_mm[known])
    median = ndimage.median_filter(filled, max(len(columns) // 6, 3))
    return np.where(known, filled - median, np.nan)


def find_cut(truth: np.ndarray, mask: np.ndarray, groove_label: np.ndarray | None) -> Cut:
    """Return a third of the row that crosses the most grooves.

    Without a groove label: of the row with most pixels of the nearest surface, which is the nearest
    fifth of the measured pixels.
    """
    width = max(truth.shape[1] // 3, 2)
    is_labeled = groove_label is not None and bool(groove_label.any())
    wanted = mask
    if groove_label is not None and (mask & (groove_label > 0)).any():
        wanted = mask & (groove_label > 0)
    elif mask.any():
        wanted = mask & (truth < np.percentile(truth[mask], 20))
    num_pixels = wanted.sum(axis=1)
    if is_labeled:
        starts = np.diff(wanted.astype(np.int8), axis=1) == 1
        score = np.count_nonzero(starts, axis=1) * 1000 + num_pixels
    else:
        score = num_pixels * 1000 + num_pixels
    row = int(np.argmax(score))
    in_window = np.convolve(wanted[row], np.ones(width), "valid")
    first = int(np.argmax(in_window))
    return Cut(row, first, first + width)
