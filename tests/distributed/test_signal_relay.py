"""Signals to `depthdist train` and its launcher reach its ranks, also while they are started."""

import os
import signal
import subprocess
import sys

import pytest
from helpers.launchers import LAUNCH, write_launchers

RANK = """
import os, time
from pathlib import Path
time.sleep(1)  # as Python itself needs, until the first statement
from depthdist.core.stop_signals import note_stop_signals, stop_signal
note_stop_signals()
from depthdist.distributed.launcher_watch import watch_launchers
watch_launchers()
Path("notes").touch()
until = time.monotonic() + 60
while not stop_signal() and time.monotonic() < until:
    time.sleep(0.05)
time.sleep(0.5)  # it saves
print("rank", stop_signal(), flush=True)
os._exit(75)
"""
STARTS_A_RANK = """
import subprocess, sys, time
time.sleep(1)
sys.exit(subprocess.call([sys.executable, "rank.py"]))
"""
RUNNER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from depthdist.core.stop_signals import note_stop_signals, stop_signal
from depthdist.distributed.launcher_process import LauncherProcess, adopt_orphans
from depthdist.distributed.signal_relay import SignalRelay
note_stop_signals()
launcher = LauncherProcess()
adopt_orphans()
SignalRelay(launcher).start()
words = ["-m", "deepspeed.launcher.launch", "--world_info=abc"]
launch = launcher.start([sys.executable, *words])
_, when, to, number = sys.argv[1:]
come = {"at once": lambda: True, "rank begins": launcher.ranks, "rank notes": Path("notes").exists}
while not come[when]():
    time.sleep(0.02)
pids = {"runner": os.getpid(), "group": 0, "launch": launch.pid}
os.kill(pids[to], int(number))
print("launch", launch.wait(), "runner", stop_signal(), flush=True)
try:
    launcher.exit_if_killed()
finally:
    print("runner ends", flush=True)
"""


def run(place, when, to, name):
    """How a runner ends that sends a signal to itself, its launcher or its process group."""
    scripts = {LAUNCH: STARTS_A_RANK, "rank.py": RANK, "depthdist": RUNNER}
    write_launchers(place, scripts)
    path = f"{place}:{os.environ.get('PYTHONPATH', '')}"
    number = str(int(signal.Signals[name]))
    return subprocess.run(
        [sys.executable, "depthdist", "train", when, to, number],
        cwd=place,
        env={**os.environ, "PYTHONPATH": path, "CROSS_RANK": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )


@pytest.mark.parametrize("to", ["runner", "group", "launch"])
@pytest.mark.parametrize(
    ("name", "shown"), [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGINT", "Ctrl-C")]
)
def test_a_signal_before_the_ranks_note_signals_waits_for_them(name, shown, to, tmp_path):
    done = run(tmp_path, "at once", to, name)
    said = [f"rank {shown}", f"launch 75 runner {shown}", "runner ends"]
    assert (done.returncode, done.stdout.splitlines()) == (0, said), done


@pytest.mark.parametrize("when", ["rank begins", "rank notes"])
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", 137), ("SIGSEGV", 139)])
def test_ranks_of_a_killed_launcher_save_before_the_command_ends(when, name, code, tmp_path):
    done = run(tmp_path, when, "launch", name)
    said = [f"launch {128 - code} runner ", "rank the end of its launcher", "runner ends"]
    assert (done.returncode, done.stdout.splitlines()) == (code, said), done
    assert done.stderr == (
        f"depthdist: error: the launcher process (deepspeed.launcher.launch) was killed by {name};"
        " its ranks save and end, and the same command goes on\n"
    )
