"""Figures of a report: matplotlib axes as SVG, images as JPEG, maps as colors."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from depthdist.reports.html_page import Drawing, Photo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK = "#010203"  # in drawings: replaced by the reader's text color
SERIES = (  # readable on white and on near-black
    "#2a78c8",
    "#d1690e",
    "#2c9a57",
    "#b3418f",
    "#8a6d1d",
    "#5b5fc7",
)
MAX_PHOTO_WIDTH = 960  # pixels
FIGURE_WIDTH = 4.6  # inches: a grid cell


def make_axes(
    title: str, xlabel: str = "", ylabel: str = "", height: float = 2.9
) -> tuple[Figure, Axes]:
    """Return a figure as wide as a grid cell, and its axes; `height` is in inches."""
    fig, (axes,) = make_stacked_axes(title, xlabel, ylabel, (FIGURE_WIDTH, height), num_rows=1)
    return fig, axes


def make_stacked_axes(
    title: str, xlabel: str, ylabel: str, size: tuple[float, float], num_rows: int
) -> tuple[Figure, list[Axes]]:
    """Return a figure, and its axes one above the other that share their x axis.

    size  width, height in inches

    The title stands above the first one, `xlabel` below the last one.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=size, layout="constrained")
    rows = list(fig.subplots(num_rows, 1, sharex=True, squeeze=False)[:, 0])
    for axes in rows:
        axes.set_ylabel(ylabel, fontsize=9, color=INK)
        axes.tick_params(colors=INK, labelsize=8)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set(color=INK, alpha=0.4)
    rows[0].set_title(title, fontsize=10, color=INK)
    rows[-1].set_xlabel(xlabel, fontsize=9, color=INK)
    return fig, rows


def add_legend(axes: Axes) -> None:
    """Add a legend if more than one thing has a label."""
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)


def svg_figure(fig: Figure, caption: str) -> Drawing:
    """Return a matplotlib figure as SVG in which INK is the reader's text color.

    The same figure and caption give the same text.
    """
    import matplotlib
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    for axis in (axis for axes in fig.axes for axis in (axes.xaxis, axes.yaxis)):
        if axis.get_scale() == "log":  # its labels would be formulas
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    for text in fig.findobj(Text):
        text.set_parse_math(False)  # a run may be called $x$
    out = io.StringIO()
    no_metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        fig.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    svg = out.getvalue().partition("<svg")[2].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    tag, end, content = svg.partition(">")
    tag = re.sub(r' (width|height)="[^"]*"', "", tag)  # the page decides
    return Drawing(tag + end + content, caption)


def jpeg_figure(image: np.ndarray, caption: str) -> Photo:
    """Return an image, (H, W, 3) uint8, as a JPEG that is at most MAX_PHOTO_WIDTH wide."""
    from PIL import Image

    shown = Image.fromarray(image)
    if shown.width > MAX_PHOTO_WIDTH:
        height = round(shown.height * MAX_PHOTO_WIDTH / shown.width)
        shown = shown.resize((MAX_PHOTO_WIDTH, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=88)
    return Photo(base64.b64encode(out.getvalue()).decode(), shown.width, shown.height, caption)


def depth_colormap() -> Colormap:
    """Return the colors of depth: red is near, blue is far, grey is invalid."""
    from depthdist.evaluation.figures import NEAR_TO_FAR

    return NEAR_TO_FAR


def error_colormap() -> Colormap:
    """Return the colors of signed errors: red is positive, blue is negative, grey is invalid."""
    from depthdist.evaluation.figures import SIGNED

    return SIGNED


def colorize(values: np.ndarray, low: float, high: float, colormap: Colormap) -> np.ndarray:
    """Return a map, (H, W) with NaN or a mask where it is invalid, as (H, W, 3) uint8.

    `low` gets the first color of the colormap and `high` the last one.
    """
    shown = np.ma.masked_invalid((values - low) / max(high - low, 1e-9))
    return np.asarray(colormap(shown)[..., :3] * 255).astype(np.uint8)
