"""The images of a run's report, or of several runs': picture, truth, prediction, error, edges, and
a cut through the treads.

    # the best, the median and the worst of the first run
    html = images([told(folder, name), ...], most=3)

They are predicted again.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import cycle

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from depthdist.core.environment import pick_device, silence_libraries
from depthdist.data.dataset import Dataset, open_dataset
from depthdist.data.loader import Loader
from depthdist.evaluation.figures import NEAR_TO_FAR, SIGNED
from depthdist.evaluation.metrics.edges import jumps_of
from depthdist.evaluation.predictors import network_predictor
from depthdist.geometry.depth_range import denormalize_depth
from depthdist.models.adapter import load_adapter
from depthdist.reports import html_page as html
from depthdist.reports.evaluated_run import EvaluatedRun
from depthdist.reports.html_page import (
    INK,
    SERIES,
    axes,
    drawing,
    grid,
    image_tag,
    legend,
    paragraph,
)
from depthdist.shards.decoding import decode_label

STEP_MM = 4.0  # edges that are drawn


def images(runs: list[EvaluatedRun], most: int) -> str:
    """The best, median and worst of the first run, by RMSE."""
    silence_libraries()
    first, parts = runs[0], []
    keys, errors = (
        first.evaluation["images"][first.row]["keys"],
        first.evaluation["images"][first.row]["values"]["rmse_mm"],
    )
    order = [i for i in np.argsort(errors).tolist() if not math.isnan(errors[i])]
    chosen = (
        dict(zip(("best", "median", "worst"), (order[0], order[len(order) // 2], order[-1])))
        if len(order) > 2
        else dict(zip(("best", "worst"), order))
    )
    given, split = first.evaluation["settings"]["data"], first.evaluation["split"]
    data = replace(first.run.data, data=tuple(given), weights=()) if given else first.run.data
    dataset, device = open_dataset(data), pick_device()
    if dataset.sha256 != first.evaluation["data_sha256"]:
        raise ValueError(
            f"{dataset.place}: the data changed since {first.run.folder} was evaluated; `python"
            f" launch/evaluate.py --run {first.run.folder}` again"
        )
    loader = Loader(dataset, data, device=device)
    numbers = {keys[i]: i for i in list(chosen.values())[:most]}
    place = {}
    for number in range(dataset.count(split)):
        ref = dataset.find(split, number)[1]
        place |= {key: number for key in (ref.stem, ref.key) if key in numbers}
    predicted: dict[str, list[np.ndarray]] = {key: [] for key in numbers}
    for run in tqdm(runs, "predicting images", leave=False, disable=not sys.stderr.isatty()):
        model, record = load_adapter(run.run.folder / "best")
        model.to(device)
        for key in numbers:
            batch = loader.samples(split, [place[key]]).to(device)
            with torch.no_grad():
                predicted[key].append(
                    denormalize_depth(network_predictor(model)(batch), record.bounds)[0]
                    .cpu()
                    .numpy()
                )
    for word, i in list(chosen.items())[:most]:
        key = keys[i]
        batch = loader.samples(split, [place[key]]).to("cpu")
        parts.append(f"<h3>{html.escape(word)}: {html.escape(key)}, RMSE {errors[i]:.1f} mm</h3>")
        parts.append(
            one_image(
                runs,
                dataset,
                place[key],
                batch.rgb[0].numpy(),
                batch.depth_mm[0].numpy(),
                batch.mask[0].numpy(),
                predicted[key],
            )
        )
    return paragraph(
        f"The best, the median and the worst image of {first.name}, by RMSE. Error is prediction -"
        f" truth: red is too far. Edges are steps of more than {STEP_MM:g} mm beyond the slope."
    ) + "".join(parts)


def one_image(
    runs: list[EvaluatedRun],
    dataset: Dataset,
    number: int,
    rgb: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray,
    predictions: list[np.ndarray],
) -> str:
    known = truth[mask]
    low, high = np.percentile(known, (1, 99)) if known.size else (0.0, 1.0)
    panels = [
        image_tag(rgb, "RGB, as the network sees it"),
        image_tag(
            _colors(np.where(mask, truth, np.nan), low, high),
            f"truth, {low:.0f} mm (red) .. {high:.0f} mm (blue); grey: not measured",
        ),
    ]
    for run, pred in zip(runs, predictions):
        off = np.where(mask, pred - truth, np.nan)
        limit = max(float(np.nanpercentile(np.abs(off), 95)), 0.1)
        title = f"{run.name}: " if len(runs) > 1 else ""
        panels.append(image_tag(_colors(pred, low, high), f"{title}prediction, same colours"))
        panels.append(
            image_tag(
                _colors(off, -limit, limit, SIGNED),
                f"{title}error, -{limit:.1f} mm (blue) .. +{limit:.1f} mm (red)",
            )
        )
        panels.append(
            image_tag(
                overlay(rgb, truth, pred, mask),
                f"{title}edges: green in both, orange in truth only, blue in the prediction only",
            )
        )
    meta = dataset.meta(run.evaluation["split"], number)
    label = decode_label(meta["grooves"]) if "grooves" in meta else None
    return grid(panels) + "<br>" + grid([cut(runs, truth, mask, predictions, label)])


def _colors(image: np.ndarray, low: float, high: float, colormap=NEAR_TO_FAR) -> np.ndarray:
    """(H, W) mm as (H, W, 3) uint8; NaN is grey."""
    shown = np.ma.masked_invalid((image - low) / max(high - low, 1e-9))
    return (colormap(shown)[..., :3] * 255).astype(np.uint8)


def overlay(rgb: np.ndarray, truth: np.ndarray, pred: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture in grey at the truth's size with both maps' edges on it."""
    grey = np.asarray(Image.fromarray(rgb).convert("L").resize(truth.shape[::-1]))
    shown = np.repeat((grey * 0.6).astype(np.uint8)[..., None], 3, axis=2)
    lines = []
    for z_mm in (pred, truth):
        edge = np.zeros(truth.shape, bool)
        for jumps in jumps_of(z_mm.astype(np.float64), mask):
            where = np.abs(jumps) > STEP_MM
            edge[: where.shape[0], : where.shape[1]] |= where
        lines.append(edge)
    p, g = (ndimage.binary_dilation(edge) for edge in lines)
    for where, color in (
        (g & ~p, (255, 140, 0)),
        (p & ~g, (70, 140, 255)),
        (p & g, (60, 220, 110)),
    ):
        shown[where] = color
    return shown


def cut(
    runs: list[EvaluatedRun],
    truth: np.ndarray,
    mask: np.ndarray,
    predictions: list[np.ndarray],
    label: np.ndarray | None,
) -> str:
    """Truth and predictions along one row: through the most grooves where they are known, else
    through the nearest surface.
    """
    row, first, last = cut_place(truth, mask, label)
    columns = np.arange(first, last)
    fig, (whole, shape) = axes(f"Cut along row {row}", "column, pixels", "depth, mm", 5.0, rows=2)
    fig.set_size_inches(9.2, 5.0)
    shape.set_title("The same, each less its own running median", fontsize=10, color=INK)
    lines = [
        ("truth", np.where(mask[row], truth[row], np.nan)[first:last], INK),
        *(
            (run.name, pred[row, first:last], color)
            for run, pred, color in zip(runs, predictions, cycle(SERIES))
        ),
    ]
    for name, z, color in lines:
        known = np.isfinite(z)
        whole.plot(columns, z, color=color, linewidth=1.2, label=name)
        if known.any():
            filled = np.interp(columns, columns[known], z[known])
            shape.plot(
                columns,
                np.where(
                    known, filled - ndimage.median_filter(filled, max(len(columns) // 6, 3)), np.nan
                ),
                color=color,
                linewidth=1.2,
            )
    shape.set_ylim(-12, 12)
    for ax in (whole, shape):
        if label is not None:
            ax.fill_between(
                columns,
                0,
                1,
                where=label[row, first:last] > 0,
                transform=ax.get_xaxis_transform(),
                color=INK,
                alpha=0.1,
                linewidth=0,
                label="grooves",
            )
        ax.invert_yaxis()
    legend(whole)
    through = (
        ": through the tread that shows most grooves there; below, within 12 mm, whether the"
        " grooves are in the prediction"
        if label is not None and label.any()
        else ""
    )
    return drawing(
        fig,
        f"Truth and prediction in mm along row {row}, columns {first} to {last}{through}. Near"
        " is up.",
    )


def cut_place(
    truth: np.ndarray, mask: np.ndarray, label: np.ndarray | None
) -> tuple[int, int, int]:
    """Row, first and last column of the cut: a third of the picture wide."""
    width = max(truth.shape[1] // 3, 2)
    wanted = (
        mask & (label > 0)
        if label is not None and (mask & (label > 0)).any()
        else mask & (truth < np.percentile(truth[mask], 20))
        if mask.any()
        else mask
    )
    starts = (
        np.count_nonzero(np.diff(wanted.astype(np.int8), axis=1) == 1, axis=1)
        if label is not None and label.any()
        else wanted.sum(axis=1)
    )
    row = int(np.argmax(starts * 1000 + wanted.sum(axis=1)))
    hits = np.convolve(wanted[row], np.ones(width), "valid")
    first = int(np.argmax(hits))
    return row, first, first + width
