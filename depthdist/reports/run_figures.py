"""Figures of a run's report: curves of what training logged, and a scatter plot of the grooves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from depthdist.reports.drawings import INK, SERIES, add_legend, make_axes, svg_figure
from depthdist.reports.evaluated_run import EvaluatedRun
from depthdist.reports.html_page import Drawing
from depthdist.reports.run_tables import measured_grooves

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Curve(NamedTuple):
    """One figure: the names in metrics.jsonl that it shows against the step, and their unit.

    may_be_log  a logarithmic axis where the values span more than a factor of 20
    """

    title: str
    names: tuple[str, ...]
    unit: str
    may_be_log: bool = False


CURVES = (
    Curve("Loss", ("train/loss", "eval/loss"), "", may_be_log=True),
    Curve("RMSE and MAE", ("eval/rmse_mm", "eval/mae_mm"), "mm", may_be_log=True),
    Curve("AbsRel", ("eval/abs_rel",), "", may_be_log=True),
    Curve("delta1", ("eval/delta1",), "share"),
    Curve("Learning rate", ("train/lr",), ""),
    Curve("Gradient norm", ("train/grad_norm",), "", may_be_log=True),
    Curve("Loss scale", ("train/loss_scale",), ""),
    Curve("Throughput", ("speed/images_per_s",), "images/s"),
    Curve("Waiting for data", ("speed/data_wait_share",), "share of a step"),
)
LOG_FACTOR = 20
FEW_POINTS = 40  # below, each point gets a marker


def curve_figures(runs: Sequence[EvaluatedRun]) -> list[Drawing]:
    """Return the figure of each curve that at least one run has logged."""
    figures = []
    for curve in CURVES:
        fig, axes = make_axes(curve.title, "step", curve.unit)
        for run, color in zip(runs, cycle(SERIES)):
            _plot_run(axes, curve, run, color, is_alone=len(runs) == 1)
        if not axes.lines:
            continue
        values = np.concatenate([line.get_ydata() for line in axes.lines]).astype(float)
        if curve.may_be_log and values.min() > 0 and values.max() > LOG_FACTOR * values.min():
            axes.set_yscale("log")
        add_legend(axes)
        caption = f"{curve.title}: {', '.join(curve.names)}"
        figures.append(svg_figure(fig, caption))
    return figures


def _plot_run(axes: Axes, curve: Curve, run: EvaluatedRun, color: str, is_alone: bool) -> None:
    """Plot one run: colors tell runs apart, dashes a run's lines; of a run alone, colors do."""
    for i, (name, dashes) in enumerate(zip(curve.names, ("-", "--"))):
        logged = [line for line in run.logged if line.get(name) is not None]
        if not logged:
            continue
        words = [] if is_alone else [run.name]
        if len(curve.names) > 1:
            group, _, metric = name.partition("/")
            words.append(group if metric == "loss" else metric)
        axes.plot(
            [line["step"] for line in logged],
            [line[name] for line in logged],
            "-" if is_alone else dashes,
            color=SERIES[i] if is_alone else color,
            linewidth=1.3,
            marker="." if len(logged) < FEW_POINTS else None,
            label=" ".join(words) or None,
        )


def groove_figure(runs: Sequence[EvaluatedRun], limit_mm: float) -> Drawing:
    """Return each groove's depth in the prediction over that in the ground truth."""
    fig, axes = make_axes(
        "Depth of each groove", "in truth, mm", "in the prediction, mm", height=3.6
    )
    for run, color in zip(runs, cycle(SERIES)):
        depths = [groove.depths for groove in measured_grooves(run, run.row)]
        truth, predicted = np.array(depths).reshape(-1, 2).T
        axes.scatter(truth, predicted, s=10, color=color, alpha=0.7, label=run.name, linewidths=0)
    top = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, top], [0, top], color=INK, linewidth=0.8, alpha=0.6)
    axes.axvline(limit_mm, color=INK, linewidth=0.6, linestyle=":")
    axes.axhline(limit_mm, color=INK, linewidth=0.6, linestyle=":")
    add_legend(axes)
    return svg_figure(
        fig,
        "A point a groove; on the line it is right, at 0 it is not seen. Dotted: the tread"
        f" limit, {limit_mm:g} mm.",
    )
