"""Requests to save and stop are noted; a second one ends the process."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.captures import ROOT
from helpers.commands import STOP_SIGNALS, signals_as_before

from depthdist.core import stop_signals
from depthdist.core.errors import Stopped
from depthdist.core.stop_signals import (
    end_on_sigterm,
    ignore_stop_signals,
    leave_if_stopped,
    note_stop,
    note_stop_signals,
    stop_signal,
)

SAID = {"SIGTERM": "SIGTERM", "SIGUSR1": "SIGUSR1", "SIGINT": "Ctrl-C"}


@pytest.fixture(autouse=True)
def as_before():
    with signals_as_before():
        yield
        ignore_stop_signals()


@pytest.mark.parametrize("name", SAID)
def test_the_first_signal_is_noted_and_does_nothing(name):
    note_stop_signals()
    assert stop_signal() == ""
    signal.raise_signal(getattr(signal, name))
    signal.raise_signal(signal.SIGUSR1)
    assert stop_signal() == SAID[name]


def test_a_request_that_is_no_signal_counts_alike():
    note_stop_signals()
    note_stop("the end of its launcher")
    signal.raise_signal(signal.SIGTERM)
    assert stop_signal() == "the end of its launcher"
    with pytest.raises(Stopped, match=r"^stopped by the end of its launcher at step 3$"):
        leave_if_stopped("at step 3")


def test_without_a_request_nothing_is_left():
    note_stop_signals()
    leave_if_stopped("at step 3")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_the_process_once_repetitions_of_the_first_are_over(name, monkeypatch):
    ended = []
    number = getattr(signal, name)
    signal.signal(number, lambda number, frame: ended.append(number))
    note_stop_signals()
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert ended == [], "a launcher passes on what its ranks have got already"
    monkeypatch.setitem(stop_signals.REPEATED_SIGNAL_S, name, 0)
    signal.raise_signal(number)
    assert ended == [number]


def test_what_ends_the_process_on_a_second_sigterm_can_be_chosen_and_returns(monkeypatch):
    ended = []
    monkeypatch.setitem(stop_signals.REPEATED_SIGNAL_S, "SIGTERM", 0)
    note_stop_signals()
    before = end_on_sigterm(lambda number, frame: ended.append("chosen"))
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.01)
    signal.raise_signal(signal.SIGTERM)
    assert ended == ["chosen"]
    note_stop_signals()
    assert end_on_sigterm(before) is not before


def test_where_none_is_noted_the_first_sigterm_ends_the_process():
    ended = []
    before = end_on_sigterm(lambda number, frame: ended.append(number))
    signal.raise_signal(signal.SIGTERM)
    assert ended == [signal.SIGTERM]
    assert callable(end_on_sigterm(before))


def test_after_the_last_line_signals_do_nothing_and_the_request_is_forgotten():
    note_stop_signals()
    signal.raise_signal(signal.SIGUSR1)
    ignore_stop_signals()
    for number in STOP_SIGNALS:
        signal.raise_signal(number)
    assert stop_signal() == ""


def test_a_background_job_goes_on_ignoring_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    note_stop_signals()
    signal.raise_signal(signal.SIGINT)
    assert stop_signal() == ""


@pytest.mark.parametrize("words", [["launch/train.py"], ["-m", "depthdist", "train"]])
def test_a_command_notes_signals_before_it_imports_what_takes_long(words):
    """The command stops at its first heavy import, sends itself every signal, and says so."""
    stops = (
        "import os, runpy, signal, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('depthdist.core.command', 'depthdist.core.environment', 'torch'):\n"
        "            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):\n"
        "                os.kill(os.getpid(), number)\n"
        "            from depthdist.core.stop_signals import stop_signal\n"
        "            print(name, stop_signal(), flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "sys.argv = sys.argv[1:]\n"
        "if sys.argv[0] == '-m':\n"
        "    runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
        "else:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", stops, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "depthdist.core.command SIGTERM\n"), done


def test_a_signal_that_comes_while_a_done_command_ends_does_not_change_its_code():
    """Python itself would give SIGUSR1 back its deadly meaning while it ends."""
    ends = (
        "import atexit, os, signal\n"
        "from depthdist.core.stop_signals import note_stop_signals\n"
        "note_stop_signals()\n"
        "from depthdist.core.command import run_command\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid()):\n"
        "        kill(me, 10)\n"
        "import builtins\n"
        "builtins.late = Late()\n"
        "run_command(lambda: None)\n"
    )
    assert signal.SIGUSR1 == 10
    done = subprocess.run([sys.executable, "-c", ends], cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0
