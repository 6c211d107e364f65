"""The part of a run's report that says whether the relief it draws is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthdist.evaluation.relief.study import read_relief
from depthdist.evaluation.relief.tables import (
    FOOTNOTE,
    HALF_HEADER,
    HEADER,
    describe_relief,
    goal_lines,
    half_lines,
    relief_lines,
)
from depthdist.reports.evaluated_run import EvaluatedRun
from depthdist.reports.html_page import Block, Paragraph, Preformatted, Table
from depthdist.reports.study_blocks import study_blocks


def relief_blocks(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """Return what depthdist relief found of each run that it has measured; [] where of none.

    raises ValueError where its file is damaged
    """
    return study_blocks(runs, "relief", read_relief, _blocks_of, FOOTNOTE)


def _blocks_of(content: dict[str, Any]) -> list[Block]:
    captures = content["captures"]
    text = f"{captures['images']} rendered captures, whose exact depth is known"
    if captures["trained_on"]:
        text += f"; the run learned from {captures['trained_on']}"
    blocks: list[Block] = [
        Paragraph(f"{text} (seed {captures['settings'].get('seed')})."),
        Table(HEADER, relief_lines(content["rows"])),
        *(Paragraph(line) for line in describe_relief(content)),
    ]
    if content["half"]:
        blocks += [
            Paragraph("The same scenes with shallower grooves, those measured in both."),
            Table(HALF_HEADER, half_lines(content["half"]["rows"])),
        ]
    if content["goals"]:
        blocks.append(Preformatted("\n".join(goal_lines(content["goals"]))))
    return blocks
