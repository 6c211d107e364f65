"""Ranks that make a dataset together, and how all end when one is gone, fails or is stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.captures import ROOT
from helpers.commands import last_line, on_srun, script, until

from depthdist.distributed.cpu_group import KEPT

GONE = "gone without a word: killed, out of memory?"


def sharing(how, bad="1", others="waiting"):
    """Ranks of which `bad` does something at its work, while the others wait for it."""
    import os
    import signal
    import sys
    import time

    from depthdist.core.command import run_command
    from depthdist.core.stop_signals import note_stop_signals
    from depthdist.distributed.cpu_group import CpuGroup

    def main():
        if others == "elsewhere":  # each rank on a machine of its own
            readlink = os.readlink
            os.readlink = lambda path: (
                readlink(path) + (os.environ["RANK"] if path == "/proc/self/ns/pid" else "")
            )
        if how == "silent":
            from depthdist.distributed import failure_watch

            failure_watch.LONGEST_SILENCE_S = 5.0
        if how == "signalled":
            note_stop_signals()
        group = CpuGroup()
        assert group.gather(group.rank) == [0, 1]
        print("at work", flush=True)
        if group.rank == int(bad):
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "silent":
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "error":
                raise ValueError("capture 7 is broken")
            if how == "bug":
                {}["missing"]
            if how == "slow":
                time.sleep(12)
            if how == "signalled":
                time.sleep(3600)
        elif others == "busy":
            time.sleep(3600)
        if how == "problem":
            group.agree("the disk is full" if group.rank == int(bad) else None)
        found = group.gather_on_first(group.scatter(["a", "b"] if group.rank == 0 else None))
        group.leave()
        print(*found, "torch" in sys.modules)

    run_command(main)


def ended(folder, *how, **env):
    """How both ranks ended, and the seconds from the first one's end to the last's."""
    ranks = on_srun(2, script(sharing, folder), *how, **env)
    until(lambda: any(rank.process.poll() is not None for rank in ranks))
    began = time.monotonic()
    return [rank.done() for rank in ranks], time.monotonic() - began


@pytest.mark.parametrize(
    ("bad", "others"), [(0, "waiting"), (1, "waiting"), (1, "busy"), (1, "elsewhere")]
)
def test_a_killed_rank_ends_the_others_in_seconds_and_is_named(bad, others, tmp_path):
    done, seconds = ended(tmp_path, "killed", bad, others)
    assert (done[bad].code, done[1 - bad].code) == (-signal.SIGKILL, 1) and seconds < 60, done
    (line,) = done[1 - bad].err.splitlines()
    assert line.startswith(f"sharing.py: rank {bad} on "), line
    assert line.endswith(f"): {GONE} ({KEPT})"), line


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_gives_no_sign_of_life_ends_the_others_and_is_named(bad, tmp_path):
    ranks = on_srun(2, script(sharing, tmp_path), "silent", bad)
    done = ranks[1 - bad].done()
    assert done.code == 1 and "Traceback" not in done.err, done
    line = last_line(done.err, "sharing.py")
    assert line.startswith(f"sharing.py: rank {bad} on "), line
    assert "): no sign of life for " in line and line.endswith(f" ({KEPT})"), line


@pytest.mark.parametrize(("bad", "others"), [(0, "waiting"), (1, "busy")])
def test_an_error_of_one_rank_ends_all_with_its_line_and_code(bad, others, tmp_path):
    done, seconds = ended(tmp_path, "error", bad, others)
    assert [rank.code for rank in done] == [2, 2] and seconds < 60, done
    who = f"[rank {bad}] " if bad else ""
    assert done[bad].err == f"sharing.py: error: {who}capture 7 is broken\n"
    (line,) = done[1 - bad].err.splitlines()
    assert line.startswith(f"sharing.py: rank {bad} on ") and line.endswith(": capture 7 is broken")


def test_a_bug_on_one_rank_shows_one_traceback(tmp_path):
    done, _ = ended(tmp_path, "bug")
    assert [rank.code for rank in done] == [1, 1]
    assert done[1].err.count("Traceback") == 1 and "Traceback" not in done[0].err, done
    assert done[0].err.endswith("KeyError: 'missing'\n")


def test_what_the_ranks_agree_is_wrong_is_said_once(tmp_path):
    done, _ = ended(tmp_path, "problem")
    assert [rank.code for rank in done] == [2, 2]
    (line,) = (done[0].err + done[1].err).splitlines()
    assert line.startswith("sharing.py: error: ") and line.endswith("rank 1: the disk is full")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("asked", "others"), [(0, "waiting"), (1, "waiting"), (1, "busy")])
def test_a_request_to_stop_that_one_rank_gets_ends_all_and_is_said_once(
    number, asked, others, tmp_path
):
    ranks = on_srun(2, script(sharing, tmp_path), "signalled", 1, others)
    for rank in ranks:
        until(lambda rank=rank: os.fstat(rank.files[0].fileno()).st_size)  # it has said something
    ranks[asked].process.send_signal(number)
    done = [rank.done(100) for rank in ranks]
    assert [rank.code for rank in done] == [75, 75] and done[1].err == "", done
    (line,) = done[0].err.splitlines()
    assert line.startswith(f"sharing.py: stopped by {number.name} "), line
    assert line.removesuffix(")").endswith("; the same command goes on"), line


@pytest.mark.parametrize("bad", [0, 1])
def test_the_slowest_rank_may_take_longer_than_the_timeout(bad, tmp_path):
    done = [
        rank.done()
        for rank in on_srun(2, script(sharing, tmp_path), "slow", bad, DEPTHDIST_TIMEOUT=6)
    ]
    assert [(rank.code, rank.err) for rank in done] == [(0, ""), (0, "")], done
    assert done[0].out == "at work\na b True\n"


def test_one_process_does_not_import_torch():
    code = (
        "import sys\n"
        "from depthdist.distributed.cpu_group import CpuGroup\n"
        "group = CpuGroup()\n"
        "print(group.gather(3), group.scatter([4]), 'torch' in sys.modules)\n"
        "group.leave()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[3] 4 False\n", done
