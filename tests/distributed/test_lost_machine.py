"""Which machines of a launch have no ssh from here any more, by the processes of pdsh.

The pdsh here is a script that starts processes in place of ssh; tests/test_nodes.py has real ones.
"""

import base64
import json
import os
import signal
import subprocess
import sys

import pytest
from helpers import launchers
from helpers.launchers import write_launchers

from depthdist.distributed.lost_machine import fan_out_of, machines_of

MACHINES = {"node1": [0, 1], "node2": [0], "node3": [0]}
LAUNCH = [
    "--world_info=" + base64.urlsafe_b64encode(json.dumps(MACHINES).encode()).decode(),
    "--node_rank=%n",
    "--master_addr=10.0.0.1",
    "--master_port=29500",
]
PDSH = """
import subprocess, sys, time
for number in sys.argv[1].split(","):
    sleep = [sys.executable, "-c", "import time; time.sleep(100)", f"--node_rank={number}"]
    subprocess.Popen(sleep)
print("started", flush=True)
time.sleep(100)
"""
RANK = """
import time
from depthdist.distributed.lost_machine import LaunchShells
shells = LaunchShells()
shells.find_ended(0)
time.sleep(3.5)
print([host for host, _ in shells.find_ended(0)])
"""


@pytest.fixture
def place(tmp_path):
    """A script called pdsh, a module deepspeed.launcher.launch that runs a rank's script."""
    starts_a_rank = "import subprocess, sys; subprocess.run([sys.executable, 'rank.py'])"
    return write_launchers(
        tmp_path, {launchers.LAUNCH: starts_a_rank, "rank.py": RANK, "pdsh": PDSH}
    )


@pytest.mark.parametrize(
    ("running", "fan_out", "launch", "found"),
    [
        ("0,2", 1024, LAUNCH, ["node2"]),
        ("0,1,2", 1024, LAUNCH, []),
        # it has yet to start the third one
        ("0,1", 2, LAUNCH, []),
        # rank 0 runs, but came by no process of pdsh: by rsh, which is within it
        ("1", 1024, LAUNCH, []),
        # another launch on the same machines
        ("0,2", 1024, [*LAUNCH[:-1], "--master_port=29501"], []),
    ],
)
def test_a_machine_without_ssh_is_found_and_no_other(running, fan_out, launch, found, place):
    words = ["pdsh", running, "-S", "-f", fan_out, "-w", ",".join(MACHINES), *launch]
    pdsh = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=place,
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    try:
        assert pdsh.stdout.readline()
        done = subprocess.run(
            [sys.executable, "-m", "deepspeed.launcher.launch", *LAUNCH],
            cwd=place,
            env={**os.environ, "PYTHONPATH": f"{place}:{os.environ.get('PYTHONPATH', '')}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        os.killpg(pdsh.pid, signal.SIGKILL)
        pdsh.communicate()
    assert done.stdout.strip() == str(found), done


def test_ranks_are_numbered_from_machine_to_machine():
    assert machines_of(["pdsh", *LAUNCH]) == [
        ("node1", [0, 1]),
        ("node2", [2]),
        ("node3", [3]),
    ]


def test_the_last_fan_out_counts():
    words = ["pdsh", "-S", "-f", "1024", "-w", "node1", "-f", "4", *LAUNCH, "train.py", "-f", "7"]
    assert fan_out_of(words) == 4
