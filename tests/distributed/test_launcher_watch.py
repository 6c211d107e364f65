"""A rank whose launcher is gone is asked to stop; one that nobody launched is left alone.

The launchers here are scripts with the names of the real ones, which start in no time.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers.launchers import LAUNCH, write_launchers

from depthdist.distributed.launcher_watch import is_launcher, program_of

RANK = """
import time
from depthdist.core.stop_signals import note_stop_signals, stop_signal
note_stop_signals()
from depthdist.distributed.launcher_watch import watch_launchers
watch_launchers()
print("at work", flush=True)
until = time.monotonic() + {seconds}
while not stop_signal() and time.monotonic() < until:
    time.sleep(0.05)
print(stop_signal() or "nobody", flush=True)
"""
STARTS_A_RANK = """
import os, subprocess, sys, time
time.sleep(float(os.environ.get("BEGINS_AFTER", 0)))
subprocess.Popen([sys.executable, sys.argv[-1]])
time.sleep(600)
"""
STARTS_THE_LAUNCH = """
import subprocess, sys, time
words = ["-m", "deepspeed.launcher.launch", "--world_info=abc", *sys.argv[1:]]
print("launch", subprocess.Popen([sys.executable, *words]).pid, flush=True)
time.sleep(600)
"""
STARTS_PDSH = """
import subprocess, sys, time
from pathlib import Path
pdsh = Path(sys.argv[0]).with_name("pdsh")
subprocess.Popen([sys.executable, pdsh, "-w", "node1", "--world_info=abc", "launch.py"])
time.sleep(600)
"""


@pytest.fixture
def place(tmp_path):
    """Scripts called torchrun, deepspeed, pdsh and over_ssh, a module deepspeed.launcher.launch."""
    scripts = {
        LAUNCH: STARTS_A_RANK,
        "torchrun": STARTS_A_RANK,
        "bin/deepspeed": STARTS_THE_LAUNCH,
        "over_ssh/deepspeed": STARTS_PDSH,
        "over_ssh/pdsh": "import time; time.sleep(600)",
        "rank.py": RANK.format(seconds=60),
        "short_rank.py": RANK.format(seconds=4),
    }
    return write_launchers(tmp_path, scripts)


@pytest.fixture
def start(place):
    """Start Python with these words in a session of its own; all of it ends with the test."""
    started = []

    def start(*words, **env):
        path = f"{place}:{os.environ.get('PYTHONPATH', '')}"
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=place,
            env={**os.environ, "PYTHONPATH": path, **env},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def said(process):
    return process.stdout.readline().strip()


def test_a_rank_is_asked_to_stop_when_torchrun_is_gone(place, start):
    launcher = start("torchrun", "rank.py")
    assert said(launcher) == "at work"
    launcher.kill()
    assert said(launcher) == "the end of its launcher"


@pytest.mark.parametrize("which", ["runner", "launch"])
def test_a_rank_is_asked_to_stop_when_deepspeed_or_what_it_started_is_gone(which, place, start):
    runner = start("bin/deepspeed", "rank.py")
    launch = int(said(runner).split()[1])
    assert said(runner) == "at work"
    os.kill(runner.pid if which == "runner" else launch, signal.SIGKILL)
    assert said(runner) == "the end of its launcher"


def test_a_rank_begins_with_a_request_when_deepspeed_was_gone_before_it_began(place, start):
    runner = start("bin/deepspeed", "rank.py", BEGINS_AFTER="1")
    said(runner)
    runner.kill()
    assert [said(runner), said(runner)] == ["at work", "the end of its launcher"]


@pytest.mark.parametrize("which", ["deepspeed", "pdsh"])
def test_a_rank_that_was_started_over_ssh_sees_what_reaches_its_machine_from_here(
    which, place, start
):
    here = start("over_ssh/deepspeed")
    until = time.monotonic() + 60
    while not (children := psutil.Process(here.pid).children()):
        assert time.monotonic() < until
        time.sleep(0.02)
    (pdsh,) = children
    over_there = start("-m", "deepspeed.launcher.launch", "--world_info=abc", "rank.py")
    assert said(over_there) == "at work"
    (psutil.Process(here.pid) if which == "deepspeed" else pdsh).kill()
    assert said(over_there) == "the end of its launcher"


def test_a_rank_that_a_shell_started_is_left_alone_when_the_shell_is_gone(place, start):
    starts = f"import subprocess; subprocess.Popen([{sys.executable!r}, 'short_rank.py'])"
    shell = start("-c", starts, RANK="0")
    shell.wait()
    assert [said(shell), said(shell)] == ["at work", "nobody"]


@pytest.mark.parametrize(
    ("words", "name", "others"),
    [
        ("python -u -m deepspeed.launcher.launch --a", "deepspeed.launcher.launch", ["--a"]),
        ("/usr/bin/python3.11 -X dev /opt/bin/deepspeed --a b", "deepspeed", ["--a", "b"]),
        ("/opt/bin/torchrun --a", "torchrun", ["--a"]),
        ("python", "", []),
        ("", "", []),
    ],
)
def test_the_program_of_a_command_line_is_found_behind_python(words, name, others):
    found, rest = program_of(words.split())
    assert (found, list(rest)) == (name, others)


@pytest.mark.parametrize(
    ("words", "yes"),
    [
        ("python -m depthdist train data", True),
        ("/opt/bin/depthdist completion runs/mine", True),
        ("python /opt/bin/depthdist study", False),
        ("python -m torch.distributed.run launch/train.py", True),
        ("bash run.sh deepspeed", False),
        ("vim deepspeed", False),
        ("slurmstepd: [12.0]", False),
    ],
)
def test_what_only_names_a_launcher_is_none(words, yes):
    assert is_launcher(words.split()) is yes
