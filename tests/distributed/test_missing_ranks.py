"""Ranks that wait for others say for which, and why so many are expected."""

import os
import subprocess
import sys

import pytest
from helpers.captures import ROOT
from helpers.commands import free_port
from torch.distributed import HashStore

from depthdist.distributed.missing_ranks import _missing

CODE = """
from depthdist.distributed import missing_ranks
missing_ranks.TELL_AFTER_S = {after}
from depthdist.distributed.cpu_group import CpuGroup
CpuGroup()
"""


@pytest.fixture
def start():
    """Starts rank `number` of three, which meet at one port; ends all afterwards."""
    port, started = str(free_port()), []

    def start(number, after, local_rank=None):
        local = number if local_rank is None else local_rank
        env = {"RANK": str(number), "WORLD_SIZE": "3", "LOCAL_RANK": str(local)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "3"}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", CODE.format(after=after)],
                cwd=ROOT,
                env={**os.environ, **env, **meeting},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def first_line(process):
    return next(line for line in process.stderr if "waits" in line)


def test_rank_0_names_those_that_have_not_come(start):
    line = first_line(start(0, after=0.5))
    assert "for 2 of 3 ranks: 1, 2; 3 are expected as WORLD_SIZE is 3" in line


def test_a_rank_that_has_come_is_not_named(monkeypatch):
    for name, value in {"MASTER_ADDR": "a", "MASTER_PORT": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    store = HashStore()
    store.set("1", "its host")
    assert "for 1 of 3 ranks: 2;" in _missing(store, rank=0, size=3)


def test_without_rank_0_the_first_of_another_machine_says_so(start):
    line = first_line(start(1, after=0.5, local_rank=0))
    assert "[rank 1] waits for rank 0 at 127.0.0.1:" in line
