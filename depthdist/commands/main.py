"""The command `depthdist`: its first word chooses one of the commands below."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import Any, NamedTuple, NoReturn

from depthdist import __version__
from depthdist.core.stop_signals import note_stop_signals


class Command(NamedTuple):
    """A module that has the command's `main`, and what the command does."""

    module: str
    summary: str


COMMANDS = {
    "train": Command("depthdist.commands.train", "teach a model your camera, on all GPUs"),
    "detail": Command("depthdist.commands.detail", "grooves and contours, on a finished run"),
    "completion": Command(
        "depthdist.commands.completion", "fill what the camera missed, on a finished run"
    ),
    "shard": Command("depthdist.shards.command", "make a dataset of captures, or verify one"),
    "evaluate": Command("depthdist.evaluation.command", "errors of a run in mm, or of two"),
    "predict": Command("depthdist.inference.predict_command", "depth in mm for images"),
    "serve": Command("depthdist.inference.serve_command", "a page that shows and measures depth"),
    "export": Command("depthdist.inference.export_command", "a model for others: HF, peft, ONNX"),
    "report": Command("depthdist.reports.command", "a page about runs, or about data"),
    "study": Command("depthdist.commands.study", "several trainings with one thing changed"),
    "relief": Command("depthdist.commands.relief", "whether a run's relief is true, by goals"),
    "holes": Command("depthdist.commands.holes", "how well holes are filled, and how sure it is"),
    "demo": Command("depthdist.commands.demo", "all of it once, on built-in captures"),
}
STOPPABLE = ("train", "detail", "completion")  # asked to stop, they save and end
EXAMPLES = """\
  depthdist train data/mine --run runs/mine
  depthdist predict photo.png --run runs/mine --out predictions"""


def help_text() -> str:
    """Return what `depthdist --help` prints."""
    lines = [f"  {word:<12}{command.summary}" for word, command in COMMANDS.items()]
    return "\n".join(
        [
            "Depth in millimetres from your own camera's captures.",
            "",
            "usage: depthdist COMMAND [settings]",
            "",
            *lines,
            "",
            EXAMPLES,
            "",
            "`depthdist COMMAND --help` lists the settings of a command.",
        ]
    )


def main(argv: list[str] | None = None) -> Any:
    """Run the command that the first word names, or print what there is."""
    from depthdist.core.completion import is_completing
    from depthdist.core.words import run_word

    argv = sys.argv[1:] if argv is None else argv
    if not argv and not is_completing():
        argv = ["--help"]
    if argv[:1] in (["--version"], ["-V"]):
        print(f"depthdist {__version__}")
        return None
    commands = {word: partial(run, word) for word in COMMANDS}
    return run_word(commands, argv, "command", help_text())


def run(word: str, argv: list[str]) -> Any:
    """Import a command and run it under the name `depthdist WORD`; nothing else is imported."""
    sys.argv = [f"depthdist {word}", *argv]
    return importlib.import_module(COMMANDS[word].module).main(argv)


def entry() -> NoReturn:
    """Run the command `depthdist` in this process, and end it."""
    if sys.argv[1:2] and sys.argv[1] in STOPPABLE:
        note_stop_signals()  # before the rest is imported: a signal must not end it unsaid
    from depthdist.core.command import run_command
    from depthdist.core.completion import is_completing, typed_words

    sys.argv[0] = "depthdist"
    if is_completing():
        sys.argv[1:] = typed_words()
    run_command(main)
