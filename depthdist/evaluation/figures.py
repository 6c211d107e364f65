"""Figures of depth in mm: RGB | ground truth | prediction | error, each with its color bar.

Arrays in, a figure out.

    save_figure(figure(rgb, pred_mm, truth_mm, title="a capture"), Path("figure.png"))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from depthdist.geometry.measured import is_measured

NEAR_TO_FAR = matplotlib.colormaps["turbo_r"].with_extremes(bad="0.25")
SIGNED = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.25")


def figure(
    rgb: np.ndarray,
    pred_mm: np.ndarray,
    truth_mm: np.ndarray | None = None,
    title: str = "",
    columns: int = 4,
) -> Figure:
    """Draw RGB | truth | prediction | error, or RGB | prediction where there is no truth.

    rgb       (h, w, 3) uint8
    pred_mm   (H, W) mm
    truth_mm  (H, W) mm, NaN or 0 where nothing was measured (drawn dark grey)
    columns   panels side by side

    Truth and prediction share one color range, from the 1st to the 99th percentile of the truth.
    The error is prediction - truth: red is too far.
    """
    return _draw(_panels(rgb, pred_mm, truth_mm), pred_mm.shape, title, columns)


def fill_figure(
    rgb: np.ndarray, filled_mm: np.ndarray, measured_mm: np.ndarray, title: str = ""
) -> Figure:
    """Draw RGB | measured | filled, depths in one color range, from the filled one's percentiles.

    rgb          (h, w, 3) uint8
    filled_mm    (H, W) mm, NaN where it was refused (drawn dark grey)
    measured_mm  (H, W) mm, NaN or 0 where nothing was measured (drawn dark grey)
    """
    measured = _nan_in_holes(measured_mm)
    low, high = np.nanpercentile(filled_mm, [1, 99]) if np.isfinite(filled_mm).any() else (0, 1)
    depth = {"cmap": NEAR_TO_FAR, "vmin": low, "vmax": max(high, low + 1)}
    share = float(np.isfinite(measured).mean())
    panels = [
        _Panel("RGB", rgb, {}),
        _Panel(f"measured ({share:.0%})", measured, depth),
        _Panel("filled", filled_mm, depth),
    ]
    return _draw(panels, filled_mm.shape, title, 3)


def _draw(panels: list[_Panel], size: tuple[int, ...], title: str, columns: int) -> Figure:
    height, width = size
    aspect = min(height / width, 10)  # of a panel; an image of one column would take all memory
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    fig = Figure(
        figsize=(4.2 * columns, rows * (3.3 * aspect + 0.4) + 0.4), dpi=100, layout="constrained"
    )
    for axes, panel in zip(fig.subplots(rows, columns, squeeze=False).flat, panels):
        drawn = axes.imshow(panel.image, interpolation="antialiased", **panel.colors)
        axes.set_title(panel.title, fontsize=10)
        axes.set_axis_off()
        if panel.colors:
            fig.colorbar(drawn, ax=axes, label="mm", fraction=0.04, pad=0.02, extend="both")
    if title:
        # a file's name is no formula
        fig.suptitle(_printable(title), fontsize=10, parse_math=False)
    return fig


def batch_figure(
    rgbs: Sequence[np.ndarray], truths_mm: Sequence[np.ndarray], titles: Sequence[str]
) -> Figure:
    """Draw RGB | truth of each sample, two samples a row; truths share one color range.

    rgbs       (h, w, 3) uint8 each
    truths_mm  (H, W) mm each, NaN or 0 where nothing was measured (drawn dark grey)
    """
    aspect = min(rgbs[0].shape[0] / rgbs[0].shape[1], 10)
    rows = -(-len(rgbs) // 2)
    fig = Figure(figsize=(14, rows * (3.2 * aspect + 0.4) + 0.2), dpi=100, layout="constrained")
    truths = [_nan_in_holes(truth) for truth in truths_mm]
    measured = np.concatenate([truth[np.isfinite(truth)] for truth in truths])
    low, high = np.percentile(measured, [1, 99]) if len(measured) else (0.0, 1.0)
    colors = {"cmap": NEAR_TO_FAR, "vmin": low, "vmax": max(high, low + 1)}
    all_axes = fig.subplots(rows, 4, squeeze=False)
    for axes in all_axes.flat:
        axes.set_axis_off()
    for (left, right), rgb, truth, title in zip(all_axes.reshape(-1, 2), rgbs, truths, titles):
        left.imshow(rgb, interpolation="antialiased")
        left.set_title(_printable(title), fontsize=9, parse_math=False)
        drawn = right.imshow(truth, interpolation="antialiased", **colors)
    fig.colorbar(drawn, ax=all_axes, label="mm", fraction=0.02, pad=0.01, extend="both")
    return fig


def _nan_in_holes(depth_mm: np.ndarray) -> np.ndarray:
    return np.where(is_measured(depth_mm), depth_mm, np.nan)


def _printable(title: str) -> str:
    return title.encode(errors="replace").decode()


class _Panel(NamedTuple):
    """One image of a figure; `colors` are imshow's color map and range, in mm, {} for RGB."""

    title: str
    image: np.ndarray
    colors: dict[str, Any]


def _panels(rgb: np.ndarray, pred_mm: np.ndarray, truth_mm: np.ndarray | None) -> list[_Panel]:
    """Return the panels of `figure`, from left to right."""
    truth = None if truth_mm is None else _nan_in_holes(truth_mm)
    if truth is not None and not np.isfinite(truth).any():
        truth = None
    low, high = np.nanpercentile(pred_mm if truth is None else truth, [1, 99])
    depth = {"cmap": NEAR_TO_FAR, "vmin": low, "vmax": max(high, low + 1)}
    if truth is None:
        return [_Panel("RGB", rgb, {}), _Panel("prediction", pred_mm, depth)]
    error = pred_mm - truth
    span = max(float(np.nanpercentile(np.abs(error), 95)), 0.1)
    mean = float(np.nanmean(np.abs(error)))
    return [
        _Panel("RGB", rgb, {}),
        _Panel("truth", truth, depth),
        _Panel("prediction", pred_mm, depth),
        _Panel(
            f"prediction - truth (mean size {mean:.1f} mm)",
            error,
            {"cmap": SIGNED, "vmin": -span, "vmax": span},
        ),
    ]


def save_figure(fig: Figure, path: Path) -> None:
    """Write the figure as an image file."""
    fig.savefig(path)


def figure_pixels(fig: Figure) -> np.ndarray:
    """Return the figure as (h, w, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
