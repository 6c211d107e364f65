"""How well a run fills the holes of measured depth, and how sure it is, on held-out captures.

    python -m depthdist.synthetic data/held_out --pairs 12 --seed 202
    depthdist holes --run runs/mine --captures data/held_out
    depthdist holes --run runs/mine --captures my/captures    # of any camera: punched holes alone

RUN/holes.json gets all figures, RUN/holes.png and RUN/holes_sigma.png show them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from depthdist.core.command_line import parse
from depthdist.core.imports import importing
from depthdist.core.settings import range_problems
from depthdist.runs.run_folder import open_run


@dataclass(frozen=True)
class HolesSettings:
    """Holes."""

    run: Path | None = None
    "Folder of the run."
    captures: Path | None = None
    """Captures that the run has not learned from. Of those that `python -m depthdist.synthetic`
    wrote, the camera's own holes are measured too, against exact depth."""
    out: Path | None = None
    "File for all figures; the images are beside it. Default: holes.json in the run's folder."
    seed: int = 0
    "Of the holes that are punched."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one line each."""
        found = []
        if self.run is None:
            found.append("--run is missing: the folder of the run")
        if self.captures is None:
            found.append("--captures is missing: a folder of captures")
        elif not self.captures.is_dir():
            found.append(f"--captures {self.captures}: no such folder")
        if self.out is not None and (self.out.suffix != ".json" or not self.out.parent.is_dir()):
            found.append(f"--out {self.out}: expected a file NAME.json in a folder that exists")
        return found + range_problems(self, ("seed", 0 <= self.seed < 2**63, "0 .. 2**63 - 1"))


def main(argv: list[str] | None = None) -> None:
    """Measure how a run fills; what takes seconds to import is imported after the settings."""
    (settings,) = parse(
        "How well a run fills the holes of measured depth, and how sure it is.",
        HolesSettings,
        argv=argv,
        first=("run", "captures", "out"),
    )
    run = open_run(settings.run)
    with importing():
        from depthdist.commands.holes_study import study_holes

    study_holes(run, settings)
