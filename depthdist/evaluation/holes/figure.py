"""One figure of a study of holes: a capture as it was filled, and how right sigma is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from depthdist.evaluation.figures import NEAR_TO_FAR, SIGNED

ERROR_MM = 200.0  # from blue to red: -200 .. +200 mm


def draw_holes(
    rgb: np.ndarray,
    shown_mm: np.ndarray,
    truth_mm: np.ndarray,
    ways_mm: Mapping[str, np.ndarray],
    sigma_mm: np.ndarray | None,
) -> Figure:
    """Draw RGB | measured | truth | sigma, and below them each way and its error.

    rgb       (H, W, 3) uint8
    shown_mm  (H, W) mm, 0 where nothing was shown
    truth_mm  (H, W) mm, NaN where it is not known
    ways_mm   (H, W) mm by name
    sigma_mm  (H, W) mm, of the completion stage
    """
    known = truth_mm[np.isfinite(truth_mm)]
    low, high = np.percentile(known, [1, 99])
    depth = {"cmap": NEAR_TO_FAR, "vmin": low, "vmax": high}
    top: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("RGB", rgb, {}),
        ("measured, as it was shown", np.where(shown_mm > 0, shown_mm, np.nan), depth),
        ("truth", truth_mm, depth),
    ]
    if sigma_mm is not None:
        top.append(("sigma, mm", sigma_mm, {"cmap": "magma", "vmin": 0, "vmax": ERROR_MM}))
    rows: list[Sequence[tuple[str, np.ndarray, dict[str, Any]]]] = [top]
    error = {"cmap": SIGNED, "vmin": -ERROR_MM, "vmax": ERROR_MM}
    rows.append([(name, filled, depth) for name, filled in ways_mm.items()])
    rows.append(
        [
            (f"{name}: error, mm", np.where(shown_mm > 0, np.nan, filled - truth_mm), error)
            for name, filled in ways_mm.items()
        ]
    )
    columns = max(map(len, rows))
    aspect = rgb.shape[0] / rgb.shape[1]
    fig = Figure(
        figsize=(4.2 * columns, len(rows) * (3.4 * aspect + 0.5)), dpi=100, layout="constrained"
    )
    for line, axes_of_row in zip(rows, fig.subplots(len(rows), columns, squeeze=False)):
        for axes in axes_of_row:
            axes.set_axis_off()
        for axes, (title, image, colors) in zip(axes_of_row, line):
            drawn = axes.imshow(image[::2, ::2], interpolation="antialiased", **colors)
            axes.set_title(title, fontsize=10)
            if colors:
                fig.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, extend="both")
    return fig


def draw_sigma(sigma: Mapping[str, Any], title: str) -> Figure:
    """Draw the reliability of sigma and the sparsification curves of `study.judge_sigma`."""
    fig = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    left, right = fig.subplots(1, 2)
    points = sigma["reliability"]
    x, y = ([one[name] for one in points] for name in ("sigma_mm", "error_mm"))
    top = max([*x, *y, 1.0])
    left.plot([0.1, top], [0.1, top], color="0.7", label="as it should be")
    left.plot(x, y, "o-", label="found")
    left.set(xscale="log", yscale="log", xlabel="sigma, mm", ylabel="68.3 % of errors below, mm")
    left.set_title("reliability", fontsize=10)
    left.legend()
    labels = {"completion": "sigma", "mirror": "mirror image", "best": "the errors themselves"}
    for name, label in labels.items():
        right.plot(sigma["refused"], sigma["curves_mm"][name], label=label)
    right.set(xlabel="share of pixels refused", ylabel="MAE of the rest, mm", ylim=(0, None))
    right.set_title("sparsification", fontsize=10)
    right.legend()
    fig.suptitle(title, fontsize=10)
    return fig
