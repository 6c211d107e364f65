"""Whether the relief that a run draws is there: goals on captures whose exact depth is known.

    python -m depthdist.synthetic data/held_out --pairs 12 --seed 202
    depthdist relief --run runs/mine --captures data/held_out
    # the same scenes with grooves half as deep: what share of the relief follows depth
    python -m depthdist.synthetic data/half --pairs 12 --seed 202 --groove-depth 0.5
    depthdist relief --run runs/mine --captures data/held_out --half data/half

RUN/relief.json gets all figures, RUN/relief.png shows the capture with the most grooves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from depthdist.core.command_line import parse
from depthdist.core.imports import importing
from depthdist.core.settings import range_problems
from depthdist.evaluation.metrics.registry import TREAD_LIMIT_MM
from depthdist.runs.run_folder import open_run


@dataclass(frozen=True)
class ReliefSettings:
    """Relief."""

    run: Path | None = None
    "Folder of the run."
    captures: Path | None = None
    """Captures of `python -m depthdist.synthetic` with their truth, of another seed than those of
    the training."""
    half: Path | None = None
    "The same scenes rendered with --groove-depth 0.5: what share of the relief follows depth."
    out: Path | None = None
    "File for all figures; the image is beside it. Default: relief.json in the run's folder."
    refine: Literal["guided", "tiles", "detail"] = "detail"
    "What is measured beside plain, and judged by the goals: detail, guided or tiles."
    tread_limit: float = TREAD_LIMIT_MM
    "Smallest groove depth that still counts as good, mm."
    workers: int = 0
    "Processes that measure. 0: one a core."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one line each."""
        found = []
        if self.run is None:
            found.append("--run is missing: the folder of the run")
        if self.captures is None:
            found.append(
                "--captures is missing: a folder that `python -m depthdist.synthetic` wrote"
            )
        found += [
            f"{flag} {folder}: no such folder"
            for flag, folder in (("--captures", self.captures), ("--half", self.half))
            if folder is not None and not folder.is_dir()
        ]
        if self.out is not None and (self.out.suffix != ".json" or not self.out.parent.is_dir()):
            found.append(f"--out {self.out}: expected a file NAME.json in a folder that exists")
        return found + range_problems(
            self,
            ("tread_limit", 0 < self.tread_limit < float("inf"), "> 0 mm"),
            ("workers", self.workers >= 0, ">= 0"),
        )


def main(argv: list[str] | None = None) -> None:
    """Measure the relief of a run; what takes seconds to import is imported after the settings."""
    (settings,) = parse(
        "Whether the relief that a run draws is there: grooves, painted treads, edges, goals.",
        ReliefSettings,
        argv=argv,
        first=("run", "captures", "half", "refine", "out"),
    )
    run = open_run(settings.run)
    with importing():
        from depthdist.commands.relief_study import study_relief

    study_relief(run, settings)
