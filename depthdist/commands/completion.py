"""`depthdist completion`: train the completion stage on a run whose adapter is finished."""

from __future__ import annotations

from depthdist.commands.detail import train_stage
from depthdist.training.completion.settings import CompletionSettings

HELP = """Train the completion stage of a run: a network that fills what the camera missed, and says
how sure each pixel is. It learns on holes that are punched into what the camera measured.

  depthdist completion runs/mine
  depthdist predict captures --run runs/mine --fill --refuse 20

The same as `depthdist train` with the run's own settings and --completion. Stopped at any time, the
same command goes on. predict --fill and --save sigma use the stage from then on."""


def main(argv: list[str] | None = None) -> None:
    """Start the training of the run again, with the completion stage."""
    train_stage("completion", HELP, CompletionSettings, argv)
