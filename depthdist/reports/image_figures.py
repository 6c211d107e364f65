"""Figures of one predicted image: panels with errors and edges, its relief, a cut through it.

panels(names, image)        # RGB, truth; each prediction, its error, its edges
relief_strip(names, image)  # where an image has most relief
cut_figure(names, image)    # depth along one row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage

from depthdist.evaluation.metrics.edges import jumps_of
from depthdist.evaluation.relief.figure import RANGE_MM, relief_of, relief_panels
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
