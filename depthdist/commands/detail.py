"""`depthdist detail`: train the detail stage on a run whose adapter is finished."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from depthdist.commands import train
from depthdist.commands.subcommands import flags
from depthdist.commands.train import LaunchSettings
from depthdist.core.command_line import parse
from depthdist.runs.run_folder import RUN_FILE, open_run
from depthdist.training.detail.settings import DetailSettings
from depthdist.training.stage_settings import StageSettings

HELP = """Train the detail stage of a run: a small network that adds grooves and contours from the
image at its full size to what the adapter predicts.

  depthdist detail runs/mine
  depthdist detail runs/mine --gpus 4 --detail-steps 20000

The same as `depthdist train` with the run's own settings and --detail. Stopped at any time, the
same command goes on. predict, evaluate, serve and export use the stage from then on."""


@dataclass(frozen=True)
class RunSettings:
    """Run."""

    run: Path | None = None
    "Folder of the run."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        return ["RUN is missing: the folder of the run"] if self.run is None else []


def main(argv: list[str] | None = None) -> None:
    """Start the training of the run again, with the detail stage."""
    train_stage("detail", HELP, DetailSettings, argv)


def train_stage(name: str, text: str, settings: type, argv: list[str] | None) -> None:
    """Start the training of a run again, with one of its second stages.

    name      of the stage, and of the flag that asks for it
    text      what --help begins with
    settings  of the stage
    """
    chosen, launch, stage, shared = parse(
        text,
        RunSettings,
        LaunchSettings,
        settings,
        StageSettings,
        argv=argv,
        bare="run",
        first=("run",),
    )
    folder = open_run(chosen.run).folder
    changed = {
        field.name: getattr(group, field.name)
        for group in (launch, stage, shared)
        for field in fields(group)
        if getattr(group, field.name) != field.default
    }
    words = flags(**{"config": folder / RUN_FILE, "run": folder, **changed, name: True})
    train.main([str(word) for word in words])
