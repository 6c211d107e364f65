"""A run's report, or several runs' side by side: one HTML file with curves, the table, ranges,
grooves, images and cuts through treads.

    python tools/report.py run runs/mine [runs/other ...]

Numbers come from RUN/metrics.jsonl and RUN/evaluation.json (told.py); the images are predicted
again (report_images.py).
"""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from depthdist.evaluation.comparison import compare_runs
from depthdist.evaluation.image_details import all_metrics
from depthdist.evaluation.metrics.grooves import Groove, summarize_grooves
from depthdist.evaluation.metrics.pixels import HEADLINE, PIXEL_METRICS
from depthdist.evaluation.metrics.registry import Metric
from depthdist.evaluation.tables import FOOTNOTE, format_interval, format_value
from depthdist.reports import html_page as html
from depthdist.reports.evaluated_run import EvaluatedRun, read_evaluated_run
from depthdist.reports.html_page import INK, SERIES, axes, drawing, grid, legend, paragraph, table
from depthdist.reports.run_images import images
from depthdist.runs.run_folder import label_runs

CURVES = {  # title -> what of metrics.jsonl, and the unit
    "Loss": (("train/loss", "eval/loss"), ""),
    "RMSE and MAE": (("eval/rmse_mm", "eval/mae_mm"), "mm"),
    "AbsRel": (("eval/abs_rel",), ""),
    "delta1": (("eval/delta1",), "share"),
    "Learning rate": (("train/lr",), ""),
    "Gradient norm": (("train/grad_norm",), ""),
    "Loss scale": (("train/loss_scale",), ""),
    "Throughput": (("speed/images_per_s",), "images/s"),
    "Waiting for data": (("speed/data_wait_share",), "share of a step"),
}
SURFACES = (
    "normal_mean_deg",
    "normal_median_deg",
    "normal_within_11",
    "chamfer_mm",
    "f_score@1mm",
    "f_score@2mm",
    "f_score@5mm",
    "f_score@10mm",
)


def run_report(folders: list[Path], most_images: int = 3) -> str:
    """The page's HTML."""
    runs = [read_evaluated_run(folder, name) for folder, name in zip(folders, label_runs(folders))]
    first = runs[0]
    for other in runs[1:]:
        compare_runs(
            first.evaluation, other.evaluation, [first.name, other.name]
        )  # raises where they cannot be compared
    sections = [
        ("Result", result(runs)),
        *([("Comparison", compared(runs))] if len(runs) > 1 else []),
        ("Near and far", ranges(runs)),
    ]
    if any(summarize_grooves(_grooves(run.evaluation, run.row))["grooves"] for run in runs):
        sections.append(("Grooves", grooves(runs)))
    sections += [
        ("Edges and surfaces", structure(runs)),
        ("Images", images(runs, most_images)),
        ("Curves", curves(runs)),
        ("Reliability", reliability(runs)),
        ("How it was made", provenance(runs)),
    ]
    facts = first.run.record["derived"]
    subtitle = (
        f"{first.evaluation['split']} split of {first.evaluation['data']},"
        f" {len(first.evaluation['images'][first.row]['keys'])} images; truth"
        f" {facts['truth_size']}, pictures {facts['picture_size']}"
    )
    return html.page(f"Depth: {', '.join(run.name for run in runs)}", sections, subtitle)


# ------------------------------------------------------------------------------------------ numbers


def _lines(runs: list[EvaluatedRun]) -> list[tuple[str, EvaluatedRun, str]]:
    """Label, run and row of each line of a table: the fixed rows, each that differs from the others
    once with its runs' names, then each run's own.
    """
    fixed: dict[tuple[int, str, str], list[EvaluatedRun]] = {}
    for run in runs:
        for place, row in enumerate(run.evaluation["rows"]):
            if not row.startswith("adapter"):
                fixed.setdefault((place, row, run.basis(row)), []).append(run)
    lines = [
        (row if len(of) == len(runs) else f"{', '.join(run.name for run in of)}: {row}", of[0], row)
        for (_, row, _), of in sorted(fixed.items(), key=lambda item: item[0][0])
    ]
    return lines + [
        (f"{run.name}: {row}", run, row)
        for run in runs
        for row in run.evaluation["rows"]
        if row.startswith("adapter")
    ]


def _rows(runs: list[EvaluatedRun]) -> list[tuple[str, dict[str, float], dict[str, Any]]]:
    """Label, means, intervals."""
    return [
        (label, run.evaluation["rows"][row], run.evaluation["intervals"][row])
        for label, run, row in _lines(runs)
    ]


def _metric_table(
    rows: list[tuple[str, dict[str, float], dict[str, Any]]], names: list[str], down: bool = False
) -> str:
    """A line a row, a column a metric (down: the other way), intervals below.

    The best that no truth helped is marked.
    """
    best = set()
    for j, name in enumerate(names):
        better = _about(name).better
        key = {"higher": lambda v: -v, "zero": abs}.get(better, lambda v: v)
        fair = [
            (i, key(means.get(name, math.nan)))
            for i, (row, means, _) in enumerate(rows)
            if not row.endswith("-aligned")
        ]
        fair = [(i, v) for i, v in fair if not math.isnan(v)]
        if len({v for _, v in fair}) > 1:
            best |= {(i, j) for i, v in fair if v == min(v for _, v in fair)}
    cells = [
        [
            f"{format_value(n, means.get(n, math.nan))}\n{format_interval(n, intervals.get(n))}"
            for n in names
        ]
        for _, means, intervals in rows
    ]
    heads = [n if not _about(n).unit or "mm" in n else f"{n} ({_about(n).unit})" for n in names]
    if down:
        lines = [
            [f"{head}\n{_wanted(n)}", *(row[j] for row in cells)]
            for j, (n, head) in enumerate(zip(names, heads))
        ]
        return table(["", *(row for row, _, _ in rows)], lines, {(j, i + 1) for i, j in best})
    return table(
        ["", *heads],
        [[row, *line] for (row, _, _), line in zip(rows, cells)],
        {(i, j + 1) for i, j in best},
    )


def _about(name: str) -> Metric:
    """What a number is; of the ranges whichever there are, and of losses."""
    return (
        all_metrics().get(name)
        or PIXEL_METRICS.get(name.partition("@")[0])
        or Metric(name, "", "lower", "")
    )


def _wanted(name: str) -> str:
    return {"higher": "higher is better", "zero": "0 is best"}.get(
        _about(name).better, "lower is better"
    )


def result(runs: list[EvaluatedRun]) -> str:
    return _metric_table(_rows(runs), ["loss", *HEADLINE, "silog_kitti", "rmse_log"]) + "".join(
        paragraph(line, "soft")
        for line in [
            *FOOTNOTE.splitlines(),
            (
                "Small: 95 % interval of the mean, bootstrap over images. Images of one scene are"
                " not independent: the true one is wider."
            ),
        ]
    )


def compared(runs: list[EvaluatedRun]) -> str:
    parts = []
    for other in runs[1:]:
        parts.append(
            "<div"
            f' class="wide"><pre>{html.escape(compare_runs(runs[0].evaluation, other.evaluation, [runs[0].name, other.name]))}</pre></div>'
        )
    return "".join(parts)


def ranges(runs: list[EvaluatedRun]) -> str:
    names = [
        n for n in runs[0].evaluation["rows"][runs[0].row] if n.startswith(("rmse_mm@", "abs_rel@"))
    ]
    return paragraph(
        "Error by the distance of the truth, mm. A range that holds no measured pixel of an image"
        " is left out of that image."
    ) + _metric_table(_rows(runs), names, down=True)


def _grooves(evaluation: dict[str, Any], row: str) -> list[Groove]:
    return [
        Groove(g["id"], g["width_px"], g["patches"], tuple(g["depths"]))
        for g in evaluation["grooves"].get(row, [])
    ]


def grooves(runs: list[EvaluatedRun]) -> str:
    limit = runs[0].evaluation["settings"]["tread_limit"]
    lines, figures = [], []
    fig, ax = axes("Depth of each groove", "in truth, mm", "in the prediction, mm", 3.6)
    for label, run, row in _lines(runs):
        if found := _grooves(run.evaluation, row):
            v = summarize_grooves(found, limit)
            lines.append(
                [
                    label,
                    f"{v['grooves']}",
                    *(f"{v[n]:.2f}" for n in ("bias_mm", "mae_mm", "limit95_mm")),
                    f"{v['found']:.0%}",
                    *(
                        f"{v[n]}"
                        for n in ("worn_as_worn", "worn_as_good", "good_as_good", "good_as_worn")
                    ),
                ]
            )
    for run, color in zip(runs, cycle(SERIES)):
        g, p = (
            np.array([groove.depths for groove in _grooves(run.evaluation, run.row)])
            .reshape(-1, 2)
            .T
        )
        ax.scatter(g, p, s=10, color=color, alpha=0.7, label=run.name, linewidths=0)
    top = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([0, top], [0, top], color=INK, linewidth=0.8, alpha=0.6)
    ax.axvline(limit, color=INK, linewidth=0.6, linestyle=":")
    ax.axhline(limit, color=INK, linewidth=0.6, linestyle=":")
    legend(ax)
    figures.append(
        drawing(
            fig,
            "A point a groove; on the line it is right, at 0 it is not seen. Dotted: the tread"
            f" limit, {limit:g} mm.",
        )
    )
    head = [
        "",
        "grooves",
        "bias mm",
        "MAE mm",
        "95 % below mm",
        "found",
        "worn as worn",
        "worn as good",
        "good as good",
        "good as worn",
    ]
    words = paragraph(
        f"Depth below the ribs beside it, along the normal, in mm; worn is below {limit:g} mm in"
        " truth. Truth is measured in the same way as the prediction."
    )
    return words + table(head, lines) + grid(figures, widest="34rem")


def structure(runs: list[EvaluatedRun]) -> str:
    rows = [
        (row, means, intervals)
        for row, means, intervals in _rows(runs)
        if not math.isnan(means.get("depth_pro_f1", math.nan))
    ]
    if not rows:
        return paragraph("Not measured: the evaluation was run with --no-details.")
    names = list(runs[0].evaluation["rows"][runs[0].row])
    edges = [
        n
        for n in names
        if n.startswith(("edge_f1@", "dbe_")) or n in ("depth_pro_f1", "moge_f1_r1")
    ]
    return (
        paragraph(
            "Edges: share of steps between neighbouring pixels that are in both maps (F1), by"
            " height in mm; Depth Pro's and MoGe's scores look for ratios of 5 % and more."
        )
        + _metric_table(rows, edges, down=True)
        + paragraph("Surfaces: angle between normals; points: distances between the two clouds.")
        + _metric_table(rows, [n for n in SURFACES if n in names], down=True)
    )


def curves(runs: list[EvaluatedRun]) -> str:
    figures = []
    for title, (names, unit) in CURVES.items():
        fig, ax = axes(title, "step", unit)
        for run, color in zip(runs, cycle(SERIES)):
            for name, style in zip(names, ("-", "--")):
                points = [
                    (line["step"], line[name]) for line in run.lines if line.get(name) is not None
                ]
                if points:
                    label = (
                        " ".join(
                            [
                                *([run.name] if len(runs) > 1 else []),
                                *(
                                    [name.split("/")[0] if "loss" in name else name.split("/")[1]]
                                    if len(names) > 1
                                    else []
                                ),
                            ]
                        )
                        or None
                    )
                    plain = len(names) == 1 or name.startswith("train/")
                    ax.plot(
                        *zip(*points),
                        style if len(runs) > 1 else "-",
                        color=color if len(runs) > 1 or plain else SERIES[names.index(name)],
                        linewidth=1.3,
                        marker="." if len(points) < 40 else None,
                        label=label,
                    )
        if not ax.lines:
            continue
        values = np.concatenate([line.get_ydata() for line in ax.lines]).astype(float)
        if (
            title in ("Loss", "Gradient norm", "RMSE and MAE", "AbsRel")
            and values.min() > 0
            and values.max() > 20 * values.min()
        ):
            ax.set_yscale("log")
        legend(ax)
        figures.append(drawing(fig, f"{title}: {', '.join(names)}"))
    return grid(figures)


def reliability(runs: list[EvaluatedRun]) -> str:
    lines = []
    for run in runs:
        skipped = max((line.get("train/skipped_steps") or 0 for line in run.lines), default=0)
        precision = [
            line["eval/precision_mm"]
            for line in run.lines
            if line.get("eval/precision_mm") is not None
        ]
        damage = run.run.folder / "quarantine.jsonl"
        damaged = len({line for line in damage.read_text().splitlines()}) if damage.exists() else 0
        starts = run.run.record.get("starts", [])
        again = ", ".join(f"step {start['step']}" for start in starts[1:])
        lines.append(
            [
                run.name,
                f"{skipped:g}",
                f"{damaged}",
                f"{len(starts)}{f' (again at {again})' if again else ''}",
                f"{max(precision):.2f} mm" if precision else "not needed",
                "; ".join(run.run.record.get("remarks", [])) or "none",
            ]
        )
    return table(
        [
            "",
            "skipped steps (FP16 overflow)",
            "damaged samples",
            "starts",
            "largest difference to FP32",
            "remarks",
        ],
        lines,
        words=True,
    )


def provenance(runs: list[EvaluatedRun]) -> str:
    lines = []
    for name, value in (
        ("folder", lambda run: str(run.run.folder)),
        (
            "adapter",
            lambda run: (
                f"epoch {run.evaluation['adapter']['epoch']}, step"
                f" {run.evaluation['adapter']['step']},"
                f" {run.run.record['derived']['trained_parameters']:,} parameters"
            ),
        ),
        ("model", lambda run: run.run.record["derived"]["model"]),
        ("data sha256", lambda run: run.evaluation["data_sha256"][:16]),
        (
            "trained on",
            lambda run: (
                f"{run.run.record['derived']['train_samples']} samples,"
                f" {run.run.record['derived']['near_mm']:.1f} .."
                f" {run.run.record['derived']['far_mm']:.1f} mm"
            ),
        ),
        (
            "recipe",
            lambda run: ", ".join(
                f"{n} {run.run.settings.get(n)}"
                for n in ("recipe", "epochs", "lr", "loss", "lora", "decoder", "calibrate", "seed")
            ),
        ),
        (
            "global batch",
            lambda run: (
                f"{run.run.record['derived']['global_batch']},"
                f" {run.run.record['derived']['precision']}"
            ),
        ),
        (
            "device",
            lambda run: f"{run.run.record.get('device')}; evaluated on {run.evaluation['device']}",
        ),
        (
            "git",
            lambda run: f"{run.run.record.get('git')}; evaluated with {run.evaluation.get('git')}",
        ),
        (
            "versions",
            lambda run: ", ".join(
                f"{n} {v}" for n, v in run.run.record.get("versions", {}).items()
            ),
        ),
    ):
        lines.append([name, *(value(run) for run in runs)])
    return table(["", *(run.name for run in runs)], lines, words=True)
