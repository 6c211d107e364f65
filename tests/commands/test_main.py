"""The command `depthdist` as a person types it in bash: what it lists, answers and completes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.captures import ROOT, write_raw
from helpers.commands import command
from helpers.runs import train, train_words

from depthdist import __version__
from depthdist.commands.main import COMMANDS

COMPLETE = """
eval "$(register-python-argcomplete depthdist)"
COMP_LINE=$1 COMP_POINT=${#1}
_python_argcomplete depthdist 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """The environment of a shell in which `depthdist` is this package's."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "depthdist").write_text(f'#!/bin/sh\nexec {sys.executable} -m depthdist "$@"\n')
    (folder / "depthdist").chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def typed(shell, line):
    return subprocess.run(["bash", "-c", line], env=shell, capture_output=True, text=True)


def test_the_word_alone_lists_every_command_with_what_it_does(shell):
    done = typed(shell, "depthdist")
    assert (done.returncode, done.stderr) == (0, ""), done
    for word, known in COMMANDS.items():
        assert f"  {word:<12}{known.summary}\n" in done.stdout


def test_the_version_is_one_line(shell):
    assert typed(shell, "depthdist --version").stdout == f"depthdist {__version__}\n"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (
            "tarin data",
            "depthdist: error: 'tarin' is not a command; expected one of train, detail,",
        ),
        ("report rnu", "depthdist report: error: 'rnu' is not a report; expected one of run, data"),
        ("train --gpu 2", "depthdist train: error: unknown setting --gpu; did you mean --gpus"),
        ("train --gpus 0", "depthdist train: error: --gpus is 0: expected >= 1"),
        ("train a --data b", "depthdist train: error: --data and a are both given: give one"),
        ("detail", "depthdist detail: error: RUN is missing: the folder of the run"),
        ("completion", "depthdist completion: error: RUN is missing: the folder of the run"),
        (
            "detail --detail-folds 1 a",
            "depthdist detail: error: --detail-folds is 1: expected 0, or",
        ),
        ("demo --pairs 0", "depthdist demo: error: --pairs is 0: expected >= 1"),
    ],
)
def test_a_wrong_word_is_one_line_with_what_was_meant(shell, line, answer):
    done = typed(shell, f"cd / && depthdist {line}")
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.splitlines()[0].startswith(answer), done


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("depthdist e", ["evaluate", "export"]),
        ("depthdist report ", ["run", "data"]),
        ("depthdist train data/mine --ep", ["--epochs"]),
        ("depthdist train --recipe ", ["standard", "document", "near"]),
        ("depthdist report data --im", ["--images"]),
    ],
)
def test_bash_completes_commands_flags_and_values(shell, line, offered):
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", line], env=shell, capture_output=True, text=True
    )
    found = [word.strip() for word in done.stdout.splitlines()]
    assert set(offered) <= set(found) and (done.returncode, done.stderr) == (0, ""), done
    assert len(found) == len(offered) or line.endswith(" "), "nothing else begins so"


def dry_runs(data, run, *words):
    """What each of the commands that train prints of the same settings."""
    _, *known = train_words(data, run, ROOT / "ds_configs/fp32.json")
    commands = (["launch/train.py"], ["depthdist/__main__.py", "train"])
    done = [command(*one, *known, *words, "--dry-run") for one in commands]
    assert [(one.code, one.err) for one in done] == [(0, "")] * 2, done
    return [one.out for one in done]


def test_both_commands_that_train_take_a_folder_of_captures_alike(tmp_path):
    raw = write_raw(tmp_path / "RAW", 6)
    script, word = dry_runs(raw, tmp_path / "run", "--cache", tmp_path / "cache", "--size", "28x42")
    assert script == word and f"{raw} would be sharded in" in word


def test_both_commands_that_train_go_on_with_the_recipe_of_the_run(data, tmp_path):
    run = tmp_path / "run"
    assert train(data, run, "--recipe", "document", "--epochs", 1).code == 0
    script, word = dry_runs(data, run, "--epochs", 2)
    assert script == word and "setting      calibrate = False" in word
