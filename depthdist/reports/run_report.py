"""The report of a run, or of several runs side by side: one HTML file.

    depthdist report run runs/mine [runs/other ...]

Numbers come from RUN/metrics.jsonl and RUN/evaluation.json; the images are predicted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from depthdist.evaluation.comparison import compare_runs
from depthdist.evaluation.metrics.grooves import summarize_grooves
from depthdist.evaluation.tables import GROOVE_FOOTNOTE
from depthdist.reports.evaluated_run import EvaluatedRun, read_evaluated_run
from depthdist.reports.holes_blocks import holes_blocks
from depthdist.reports.html_page import Block, Grid, Paragraph, Preformatted, Section, render_page
from depthdist.reports.relief_blocks import relief_blocks
from depthdist.reports.run_figures import curve_figures, groove_figure
from depthdist.reports.run_images import image_blocks
from depthdist.reports.run_tables import (
    groove_table,
    measured_grooves,
    provenance_table,
    range_blocks,
    reliability_table,
    result_blocks,
    structure_blocks,
)
from depthdist.runs.run_folder import label_runs


def build_run_report(folders: Sequence[Path], num_images: int = 3) -> str:
    """Return the page's HTML.

    raises ValueError: a run is missing or not evaluated, or the runs cannot be compared
    """
    runs = [read_evaluated_run(folder, name) for folder, name in zip(folders, label_runs(folders))]
    comparisons = _comparisons(runs)
    sections = [Section("Result", result_blocks(runs))]
    if comparisons:
        sections.append(Section("Comparison", comparisons))
    sections.append(Section("Near and far", range_blocks(runs)))
    if any(summarize_grooves(measured_grooves(run, run.row))["grooves"] for run in runs):
        sections.append(Section("Grooves", _groove_blocks(runs)))
    relief = relief_blocks(runs)
    if relief:
        sections.append(Section("Relief", relief))
    holes = holes_blocks(runs)
    if holes:
        sections.append(Section("Holes", holes))
    sections += [
        Section("Edges and surfaces", structure_blocks(runs)),
        Section("Images", image_blocks(runs, num_images)),
        Section("Curves", [Grid(curve_figures(runs))]),
        Section("Reliability", [reliability_table(runs)]),
        Section("How it was made", [provenance_table(runs)]),
    ]
    title = f"Depth: {', '.join(run.name for run in runs)}"
    return render_page(title, sections, _subtitle(runs[0]))


def _subtitle(run: EvaluatedRun) -> str:
    """Return what the run was evaluated on."""
    evaluation = run.evaluation
    derived = run.run.record["derived"]
    num_images = len(evaluation["images"][run.row]["keys"])
    return (
        f"{evaluation['split']} split of {evaluation['data']}, {num_images} images; truth"
        f" {derived['truth_size']}, pictures {derived['picture_size']}"
    )


def _comparisons(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """Return the first run compared with each of the others."""
    first, *others = runs
    return [
        Preformatted(compare_runs(first.evaluation, run.evaluation, [first.name, run.name]))
        for run in others
    ]


def _groove_blocks(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """Return how well the runs measure the depth of grooves."""
    limit_mm = runs[0].evaluation["settings"]["tread_limit"]
    return [
        Paragraph(
            f"Depth below the ribs beside it, along the normal, in mm; worn is below {limit_mm:g}"
            " mm in truth. Truth is measured in the same way as the prediction."
        ),
        groove_table(runs, limit_mm),
        *(Paragraph(note, "soft") for note in GROOVE_FOOTNOTE.splitlines()),
        Grid([groove_figure(runs, limit_mm)], max_width="34rem"),
    ]
