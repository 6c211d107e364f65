"""A part of a run's report that shows what a study of it found, in a file of the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from depthdist.reports.evaluated_run import EvaluatedRun, is_of_this_model
from depthdist.reports.html_page import Block, Heading, Paragraph


def study_blocks(
    runs: Sequence[EvaluatedRun],
    command: str,
    read: Callable[[Path], dict[str, Any] | None],
    blocks_of: Callable[[dict[str, Any]], Sequence[Block]],
    footnote: str,
) -> list[Block]:
    """Return what a study found of each run that it has measured; [] where of none.

    command    whose study it is: `depthdist COMMAND` writes RUN/COMMAND.json
    read       returns what it found of a run, None where it was not measured
    blocks_of  returns the blocks of what was found
    footnote   lines that explain them, once

    raises ValueError where its file is damaged
    """
    blocks: list[Block] = []
    for run in runs:
        content = read(run.run.folder)
        if content is None:
            continue
        if len(runs) > 1:
            blocks.append(Heading(run.name))
        if is_of_this_model(run, content["model"]):
            blocks += blocks_of(content)
        else:
            text = f"{run.name}: {command}.json is of other weights than the run's now:"
            blocks.append(Paragraph(f"{text} depthdist {command} again.", "warn"))
    if blocks:
        blocks += [Paragraph(line, "soft") for line in footnote.splitlines()]
    return blocks
