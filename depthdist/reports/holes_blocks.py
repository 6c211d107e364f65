"""The part of a run's report that says how well holes are filled, and how right sigma is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthdist.evaluation.holes.figure import draw_sigma
from depthdist.evaluation.holes.study import COMPLETION, read_holes
from depthdist.evaluation.holes.tables import (
    FOOTNOTE,
    HEADS,
    goal_lines,
    parts_table,
    sigma_lines,
    ways_lines,
)
from depthdist.reports.drawings import svg_figure
from depthdist.reports.evaluated_run import EvaluatedRun
from depthdist.reports.html_page import Block, Grid, Paragraph, Preformatted, Table
from depthdist.reports.study_blocks import study_blocks


def holes_blocks(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """Return what depthdist holes found of each run that it has measured; [] where of none.

    raises ValueError where its file is damaged
    """
    return study_blocks(runs, "holes", read_holes, _blocks_of, FOOTNOTE)


def _blocks_of(content: dict[str, Any]) -> list[Block]:
    captures = content["captures"]
    text = f"{captures['images']} captures"
    if captures["trained_on"]:
        text += f"; the run learned from {captures['trained_on']}"
    blocks: list[Block] = [Paragraph(f"{text}.")]
    for kind, by_way in content["rows"].items():
        blocks.append(Table([f"{kind} holes", *HEADS], ways_lines(by_way)))
        blocks.append(Table(*parts_table(by_way)))
        if kind in content["sigma"]:
            sigma = content["sigma"][kind]
            blocks += [Paragraph(f"{COMPLETION}: {line}") for line in sigma_lines(sigma)]
            figure = draw_sigma(sigma, f"{kind} holes")
            blocks.append(Grid([svg_figure(figure, "reliability, sparsification")]))
    if content["goals"]:
        blocks.append(Preformatted("\n".join(goal_lines(content["goals"]))))
    return blocks
