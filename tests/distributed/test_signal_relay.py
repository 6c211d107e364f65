"""Signals to `depthdist train` reach its ranks, also while they are being started."""

import os
import subprocess
import sys

import pytest

RANK = """
import time
time.sleep(1)  # as Python itself needs, until the first statement
from depthdist.core.stop_signals import note_stop_signals, stop_signal
note_stop_signals()
until = time.monotonic() + 60
while not stop_signal() and time.monotonic() < until:
    time.sleep(0.05)
print("rank", stop_signal(), flush=True)
"""
LAUNCH = """
import subprocess, sys, time
time.sleep(1)
sys.exit(subprocess.call([sys.executable, "rank.py"]))
"""
RUNNER = """
import os, signal, subprocess, sys
from depthdist.core.stop_signals import note_stop_signals, stop_signal
from depthdist.distributed.signal_relay import SignalRelay
note_stop_signals()
SignalRelay().start()
words = ["-m", "deepspeed.launcher.launch", "--world_info=abc"]
launch = subprocess.Popen([sys.executable, *words])
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
print("launch", launch.wait(), "runner", stop_signal())
"""


@pytest.mark.parametrize(
    ("name", "shown"), [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGINT", "Ctrl-C")]
)
def test_a_signal_before_the_ranks_note_signals_waits_for_them(name, shown, tmp_path):
    (tmp_path / "deepspeed/launcher").mkdir(parents=True)
    files = {
        "deepspeed/__init__.py": "",
        "deepspeed/launcher/__init__.py": "",
        "deepspeed/launcher/launch.py": LAUNCH,
        "rank.py": RANK,
        "runner.py": RUNNER,
    }
    for path, text in files.items():
        (tmp_path / path).write_text(text)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "runner.py", name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == [f"rank {shown}", f"launch 0 runner {shown}"], done
