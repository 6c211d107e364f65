"""Evaluate a run as the command does."""

import json

from helpers.commands import command


def evaluate(run, *words):
    """The rows of evaluation.json after the command, and what it printed."""
    done = command("launch/evaluate.py", "--run", run, "--workers", 1, *words)
    assert done.code == 0, done
    return json.loads((run / "evaluation.json").read_text())["rows"], done.out
