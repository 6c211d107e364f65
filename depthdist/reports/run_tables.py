"""Tables of a run's report: metrics with their intervals, grooves, reliability and provenance.

Each function takes the runs in the order of the page and returns blocks of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from depthdist.evaluation.image_details import all_metrics
from depthdist.evaluation.metrics.grooves import Groove, summarize_grooves, summarize_mean_depth
from depthdist.evaluation.metrics.pixels import HEADLINE, PIXEL_METRICS
from depthdist.evaluation.metrics.registry import Metric
from depthdist.evaluation.row_kinds import row_kinds
from depthdist.evaluation.seen import describe_seen
from depthdist.evaluation.tables import (
    FOOTNOTE,
    SAYS_MEAN,
    format_interval,
    format_value,
    groove_cells,
)
from depthdist.evaluation.verdict import verdict
from depthdist.reports.evaluated_run import EvaluatedRun
from depthdist.reports.html_page import Block, Cell, Paragraph, Table

SURFACE_COLUMNS = (
    "normal_mean_deg",
    "normal_median_deg",
    "normal_within_11",
    "chamfer_mm",
    "f_score@1mm",
    "f_score@2mm",
    "f_score@5mm",
    "f_score@10mm",
)
RECIPE_SETTINGS = ("recipe", "epochs", "lr", "loss", "lora", "decoder", "calibrate", "seed")


@dataclass(frozen=True)
class ReportRow:
    """A row of an evaluation with its label on the page."""

    label: str
    run: EvaluatedRun
    row: str

    @property
    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the images."""
        means: dict[str, float] = self.run.evaluation["rows"][self.row]
        return means

    @property
    def intervals(self) -> dict[str, Any]:
        """Return the 95 % interval of each mean."""
        intervals: dict[str, Any] = self.run.evaluation["intervals"][self.row]
        return intervals

    @property
    def is_aligned(self) -> bool:
        """Return whether ground truth was used to scale the prediction."""
        return row_kinds(self.run.evaluation)[self.row].is_aligned


def report_rows(runs: Sequence[EvaluatedRun]) -> list[ReportRow]:
    """Return the rows without training, then each run's own.

    A row without training is listed once for all runs that share it, with their names if it is not
    shared by all.
    """
    shared: dict[tuple[int, str, str], list[EvaluatedRun]] = {}
    adapters: list[ReportRow] = []
    for run in runs:
        for place, (row, kind) in enumerate(row_kinds(run.evaluation).items()):
            if kind.is_adapter:
                adapters.append(ReportRow(f"{run.name}: {row}", run, row))
            else:
                shared.setdefault((place, row, run.row_settings(row)), []).append(run)
    untrained = []
    for (_, row, _), owners in sorted(shared.items(), key=lambda item: item[0][0]):
        names = ", ".join(run.name for run in owners)
        label = row if len(owners) == len(runs) else f"{names}: {row}"
        untrained.append(ReportRow(label, owners[0], row))
    return untrained + adapters


# ------------------------------------------------------------------------------------------ metrics


def result_blocks(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """Return the headline metrics of every row."""
    notes = [
        *FOOTNOTE.splitlines(),
        "Small: 95 % interval of the mean, bootstrap over images. Images of one scene are not"
        " independent: the true one is wider.",
    ]
    for run in runs:
        note = describe_seen(run.evaluation)
        if note:
            notes.append(f"{run.name}: {note}" if len(runs) > 1 else note)
    names = ["loss", *HEADLINE, "silog_kitti", "rmse_log"]
    warnings = []
    for run in runs:
        text = verdict(run.run, run.evaluation)
        if text:
            warnings.append(Paragraph(f"{run.name}: {text}.", "warn"))
    table = metric_table(report_rows(runs), names)
    return [table, *warnings, *(Paragraph(note, "soft") for note in notes)]


def range_blocks(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """Return the errors by the distance of the ground truth."""
    names = _metric_names(runs[0])
    return [
        Paragraph(
            "Error by the distance of the truth, mm. A range that holds no measured pixel of an"
            " image is left out of that image."
        ),
        metric_table(
            report_rows(runs),
            [name for name in names if name.startswith(("rmse_mm@", "abs_rel@"))],
            transposed=True,
        ),
    ]


def structure_blocks(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """Return the metrics of edges and surfaces of the rows that have them."""
    rows = [
        row for row in report_rows(runs) if not math.isnan(row.means.get("depth_pro_f1", math.nan))
    ]
    if not rows:
        return [Paragraph("Not measured: the evaluation was run with --no-details.")]
    names = _metric_names(runs[0])
    edges = [
        name
        for name in names
        if name.startswith(("edge_f1@", "dbe_")) or name in ("depth_pro_f1", "moge_f1_r1")
    ]
    return [
        Paragraph(
            "Edges: share of steps between neighbouring pixels that are in both maps (F1), by"
            " height in mm; Depth Pro's and MoGe's scores look for ratios of 5 % and more."
        ),
        metric_table(rows, edges, transposed=True),
        Paragraph("Surfaces: angle between normals; points: distances between the two clouds."),
        metric_table(rows, [name for name in SURFACE_COLUMNS if name in names], transposed=True),
    ]


def _metric_names(run: EvaluatedRun) -> list[str]:
    """Return the names of the metrics of the run's own row."""
    return list(run.evaluation["rows"][run.row])


def metric_table(
    rows: Sequence[ReportRow], names: Sequence[str], transposed: bool = False
) -> Table:
    """Return a table with a column for each metric, or with a column for each row if transposed.

    Intervals stand below the means. The best value is marked, aligned rows left out.
    """
    cells = [_metric_cells(name, rows) for name in names]  # by metric
    if transposed:
        header = ["", *(row.label for row in rows)]
        lines = [
            [Cell(_with_unit(name), _direction(name)), *of_metric]
            for name, of_metric in zip(names, cells)
        ]
        return Table(header, lines)
    header = ["", *(_with_unit(name) for name in names)]
    return Table(header, [[row.label, *of_row] for row, of_row in zip(rows, zip(*cells))])


def _metric_cells(name: str, rows: Sequence[ReportRow]) -> list[Cell]:
    """Return one metric of each row."""
    best = best_rows(name, rows)
    cells = []
    for i, row in enumerate(rows):
        value = format_value(name, row.means.get(name, math.nan))
        cells.append(Cell(value, format_interval(name, row.intervals.get(name)), i in best))
    return cells


def best_rows(name: str, rows: Sequence[ReportRow]) -> set[int]:
    """Return which rows have the best value of a metric; none if all values are equal.

    Aligned rows do not compete.
    """
    costs = {}
    for i, row in enumerate(rows):
        value = row.means.get(name, math.nan)
        if not row.is_aligned and not math.isnan(value):
            costs[i] = _cost(_metric(name), value)
    if len(set(costs.values())) < 2:
        return set()
    lowest = min(costs.values())
    return {i for i, cost in costs.items() if cost == lowest}


def _cost(metric: Metric, value: float) -> float:
    """Return a number that is lower the better the value is."""
    if metric.better == "higher":
        return -value
    return abs(value) if metric.better == "zero" else value


def _metric(name: str) -> Metric:
    """Return the metric of that name; of a depth range that is not built in, that of all depths."""
    return (
        all_metrics().get(name)
        or PIXEL_METRICS.get(name.partition("@")[0])
        or Metric(name, "", "lower", "")  # a loss
    )


def _with_unit(name: str) -> str:
    """Return the metric's name with its unit, unless the name contains it."""
    unit = _metric(name).unit
    return f"{name} ({unit})" if unit and "mm" not in name else name


def _direction(name: str) -> str:
    directions = {"higher": "higher is better", "zero": "0 is best"}
    return directions.get(_metric(name).better, "lower is better")


# ------------------------------------------------------------------------------------------ grooves


def measured_grooves(run: EvaluatedRun, row: str) -> list[Groove]:
    """Return the grooves that a row of the evaluation measured."""
    return [
        Groove(groove["id"], groove["width_px"], groove["patches"], tuple(groove["depths"]))
        for groove in run.evaluation["grooves"].get(row, [])
    ]


def groove_table(runs: Sequence[EvaluatedRun], limit_mm: float) -> Table:
    """Return how well each row measures grooves, and its decisions at the tread limit."""
    lines = []
    for row in report_rows(runs):
        grooves = measured_grooves(row.run, row.row)
        if grooves:
            lines.append([row.label, *groove_cells(summarize_grooves(grooves, limit_mm))])
    for run in runs:
        known = summarize_mean_depth(_grooves_by_image(run), limit_mm)
        if known["grooves"]:
            label = f"{run.name}: {SAYS_MEAN}" if len(runs) > 1 else SAYS_MEAN
            lines.append([label, *groove_cells(known)])
    header = ["", "grooves", "bias mm", "MAE mm", "95 % below mm", "found", "slope", "r"]
    header += ["worn as worn", "worn as good", "good as good", "good as worn", "balanced"]
    return Table(header, lines)


def _grooves_by_image(run: EvaluatedRun) -> dict[str, list[Groove]]:
    """Return the grooves of the run's own row by the name of their image."""
    by_image: dict[str, list[Groove]] = {}
    names = [groove["key"] for groove in run.evaluation["grooves"].get(run.row, [])]
    for name, groove in zip(names, measured_grooves(run, run.row)):
        by_image.setdefault(name, []).append(groove)
    return by_image


# --------------------------------------------------------------------------- the run's own records


def reliability_table(runs: Sequence[EvaluatedRun]) -> Table:
    """Return what went wrong during training: skipped steps, damaged samples, restarts, remarks."""
    header = [
        "",
        "skipped steps (FP16 overflow)",
        "damaged samples",
        "starts",
        "largest difference to FP32",
        "remarks",
    ]
    return Table(header, [_reliability(run) for run in runs], words=True)


def _reliability(run: EvaluatedRun) -> list[str]:
    record = run.run.record
    skipped = max((line.get("train/skipped_steps") or 0 for line in run.logged), default=0)
    differences = [line.get("eval/precision_mm") for line in run.logged]
    known = [difference for difference in differences if difference is not None]
    damage = run.run.folder / "quarantine.jsonl"
    num_damaged = (
        len(set(damage.read_text(encoding="utf-8").splitlines())) if damage.exists() else 0
    )
    starts = record.get("starts", [])
    restarts = ", ".join(f"step {start['step']}" for start in starts[1:])
    return [
        run.name,
        f"{skipped:g}",
        f"{num_damaged}",
        f"{len(starts)}{f' (again at {restarts})' if restarts else ''}",
        f"{max(known):.2f} mm" if known else "not needed",
        "; ".join(record.get("remarks", [])) or "none",
    ]


def provenance_table(runs: Sequence[EvaluatedRun]) -> Table:
    """Return from what each run was made: folders, data, settings, device and versions."""
    lines: list[tuple[str, Callable[[EvaluatedRun], str]]] = [
        ("folder", lambda run: str(run.run.folder)),
        ("adapter", _adapter),
        ("detail stage", _detail),
        ("model", lambda run: str(run.run.record["derived"]["model"])),
        ("data sha256", lambda run: str(run.evaluation["data_sha256"][:16])),
        ("trained on", _training_data),
        ("recipe", _recipe),
        ("global batch", _global_batch),
        ("device", lambda run: _trained_and_evaluated(run, "device", "on")),
        ("git", lambda run: _trained_and_evaluated(run, "git", "with")),
        ("versions", _versions),
    ]
    rows = [[name, *(describe(run) for run in runs)] for name, describe in lines]
    return Table(["", *(run.name for run in runs)], rows, words=True)


def _adapter(run: EvaluatedRun) -> str:
    adapter = run.evaluation["adapter"]
    num_parameters = run.run.record["derived"]["trained_parameters"]
    return f"epoch {adapter['epoch']}, step {adapter['step']}, {num_parameters:,} parameters"


def _detail(run: EvaluatedRun) -> str:
    detail = run.evaluation.get("detail")
    if not detail:
        return "none"
    height, width = detail["camera"]
    return f"step {detail['step']}, on images of {height}x{width}"


def _training_data(run: EvaluatedRun) -> str:
    derived = run.run.record["derived"]
    near_mm = derived["near_mm"]
    return f"{derived['train_samples']} samples, {near_mm:.1f} .. {derived['far_mm']:.1f} mm"


def _recipe(run: EvaluatedRun) -> str:
    return ", ".join(f"{name} {run.run.settings.get(name)}" for name in RECIPE_SETTINGS)


def _global_batch(run: EvaluatedRun) -> str:
    derived = run.run.record["derived"]
    return f"{derived['global_batch']}, {derived['precision']}"


def _trained_and_evaluated(run: EvaluatedRun, name: str, preposition: str) -> str:
    return f"{run.run.record.get(name)}; evaluated {preposition} {run.evaluation.get(name)}"


def _versions(run: EvaluatedRun) -> str:
    versions = run.run.record.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items())
