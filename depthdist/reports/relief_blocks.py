"""The part of a run's report that says whether the relief it draws is there."""

from __future__ import annotations

from collections.abc import Sequence

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
from depthdist.reports.evaluated_run import EvaluatedRun, is_of_this_model
from depthdist.reports.html_page import Block, Heading, Paragraph, Preformatted, Table


def relief_blocks(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """Return what depthdist relief found of each run that it has measured; [] where of none.

    raises ValueError where its file is damaged
    """
    blocks: list[Block] = []
    for run in runs:
        content = read_relief(run.run.folder)
        if content is None:
            continue
        if len(runs) > 1:
            blocks.append(Heading(run.name))
        if not is_of_this_model(run, content["model"]):
            blocks.append(
                Paragraph(
                    f"{run.name}: relief.json is of other weights than the run's now:"
                    " depthdist relief again.",
                    "warn",
                )
            )
            continue
        captures = content["captures"]
        blocks += [
            Paragraph(
                f"{captures['images']} rendered captures, whose exact depth is known"
                + (
                    f"; the run learned from {captures['trained_on']}"
                    * bool(captures["trained_on"])
                )
                + f" (seed {captures['settings'].get('seed')})."
            ),
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
    if blocks:
        blocks += [Paragraph(line, "soft") for line in FOOTNOTE.splitlines()]
    return blocks
