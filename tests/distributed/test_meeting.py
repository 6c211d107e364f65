"""Before the ranks have met: who is missing is said, and an error of one rank ends all."""

import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from helpers.captures import ROOT
from helpers.commands import free_port, on_srun, script

from depthdist.distributed import meeting, network_interface

WAITS = """
from depthdist.distributed import meeting
meeting.TELL_AFTER_S = {after}
from depthdist.distributed.cpu_group import CpuGroup
CpuGroup()
"""


@pytest.fixture
def start():
    """Starts rank `number` of three, which meet at one port; ends all afterwards."""
    port, started = str(free_port()), []

    def start(number, after=0.5, local_rank=None, code=WAITS, local_size=3):
        local = number if local_rank is None else local_rank
        env = {"RANK": str(number), "WORLD_SIZE": "3", "LOCAL_RANK": str(local)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        meeting["LOCAL_WORLD_SIZE"] = str(local_size)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code.format(after=after)],
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
    first = start(0, after=8)
    start(1)
    line = first_line(first)
    assert "for 1 of 3 ranks: 2; 3 are expected as WORLD_SIZE is 3" in line


def test_without_rank_0_the_first_of_another_machine_says_so(start):
    line = first_line(start(1, local_rank=0))
    assert "[rank 1] waits for rank 0 at 127.0.0.1:" in line


def early(how, bad="1"):
    """Rank `bad` fails before it has met the others."""
    import os
    import signal
    import sys
    import time

    from depthdist.core.command import run_command
    from depthdist.distributed.early_failure import expect_ranks
    from depthdist.distributed.process_group import start

    sys.argv[0] = "early.py"

    def main():
        expect_ranks()
        if os.environ["RANK"] == bad:
            if how == "bug":
                {}["missing"]
            if how == "killed":
                from depthdist.distributed import meeting

                meeting.Meeting._look = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            elif how == "late":
                time.sleep(3)
            if how != "killed":
                raise ValueError("no shards here")
        elif how == "late":
            time.sleep(6)
        start()

    run_command(main)


def ended(folder, ranks, *how, **env):
    """How the ranks ended, and the seconds from the first one's end to the last's."""
    began = [rank for rank in on_srun(ranks, script(early, folder), *how, **env)]
    while all(rank.process.poll() is None for rank in began):
        time.sleep(0.05)
    since = time.monotonic()
    return [rank.done(100) for rank in began], time.monotonic() - since


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_of_one_rank_before_the_meeting_ends_all(bad, tmp_path):
    done, seconds = ended(tmp_path, 3, "error", bad)
    assert [rank.code for rank in done] == [2, 2, 2] and seconds < 50, done
    who = f"[rank {bad}] " if bad else ""
    assert done[bad].err == f"early.py: error: {who}no shards here\n"
    others = "".join(rank.err for rank in done if rank is not done[bad])
    wanted = f"early.py: rank {bad} on {socket.gethostname()}: no shards here\n" if bad else ""
    assert others == wanted


def test_a_rank_that_is_killed_before_the_meeting_is_noticed_on_its_machine(tmp_path):
    done, seconds = ended(tmp_path, 3, "killed", 1)
    assert [done[0].code, done[2].code] == [1, 1] and seconds < 50, done
    (line,) = done[0].err.splitlines()
    assert line.startswith("early.py: rank 1"), line
    assert line.endswith(": gone without a word: killed, out of memory?"), line


def test_ranks_that_start_after_the_error_hear_of_it(tmp_path):
    done, _ = ended(tmp_path, 2, "late", 0)
    assert [rank.code for rank in done] == [2, 2], done
    assert (done[0].err + done[1].err).count("no shards here") == 1


def test_a_port_where_something_else_listens_is_said(start, monkeypatch):
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        foreign.listen(50)
        port = str(foreign.getsockname()[1])
        env = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(meeting, "ANSWER_S", 0.5)
        with pytest.raises(RuntimeError, match="something else listens there"):
            meeting.Meeting(100).wait()


@pytest.mark.parametrize(
    ("own", "others", "given", "name", "said"),
    [
        ("127.0.0.1", [], "", None, ""),
        ("127.0.0.1", ["127.0.0.1"], "", None, ""),
        ("10.0.0.7", ["10.0.0.8"], "", "ib0", "network      ib0 (10.0.0.7) reaches"),
        ("127.0.1.1", ["10.0.0.8"], "", "eth0", "network      eth0 (10.0.0.9) reaches"),
        ("10.0.0.7", ["10.0.0.8"], "eth5", "eth5", "network      eth5, as GLOO_SOCKET_IFNAME says"),
    ],
)
def test_gloo_binds_to_the_interface_that_reaches_other_machines(
    own, others, given, name, said, monkeypatch
):
    names = {"lo": "127.0.0.1", "ib0": "10.0.0.7", "eth0": "10.0.0.9"}
    known = {name: [SimpleNamespace(address=address)] for name, address in names.items()}
    monkeypatch.setattr(network_interface.psutil, "net_if_addrs", lambda: known)
    monkeypatch.setattr(network_interface, "address_towards", lambda host: "10.0.0.9")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", given)  # what is set in the test goes after it
    if not given:
        del os.environ["GLOO_SOCKET_IFNAME"]
    line = network_interface.choose_interface(own, others)
    assert line.startswith(said) and bool(line) == bool(said)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == name
