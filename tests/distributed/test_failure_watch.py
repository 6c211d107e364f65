"""How a run ends on all ranks when one of them fails, hangs, is stopped, or is gone."""

import signal
import time

import pytest
from helpers.commands import last_line, on_srun, script, until


def failing(how, bad="1", others="waiting"):
    """Rank `bad` fails at step 5 while the others wait for it, maybe on another machine, or are
    busy for an hour, as in an exchange that never ends."""
    import os
    import signal
    import time

    from depthdist.core.command import run_command
    from depthdist.distributed import failure_watch, process_group
    from depthdist.distributed.process_group import start, stop, sum_over_ranks

    def main():
        if others == "elsewhere":
            readlink = os.readlink
            os.readlink = lambda path: (
                readlink(path) + (os.environ["RANK"] if path == "/proc/self/ns/pid" else "")
            )
        if how == "stopped":
            failure_watch.LONGEST_SILENCE_S = 5.0
        world = start()
        for step in range(10):
            if step > 5 and others == "silent":
                process_group.dist.all_reduce = lambda values: time.sleep(3600)
            sum_over_ranks([1.0])
            if step == 5 and (world.rank == int(bad) or how == "all"):
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "bug":
                    {}["missing"]
                if how == "hanging":
                    time.sleep(3600)
                if how == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                raise ValueError("shard 7 is broken")
            if step == 5 and others == "busy":
                time.sleep(3600)
        stop()

    run_command(main)


def failed(folder, *how, **env):
    """How both ranks ended, and the seconds from the first one's end to the last's."""
    ranks = on_srun(2, script(failing, folder), *how, **env)
    until(lambda: any(rank.process.poll() is not None for rank in ranks))
    began = time.monotonic()
    return [rank.done() for rank in ranks], time.monotonic() - began


@pytest.mark.parametrize(("bad", "others"), [(0, "waiting"), (1, "waiting"), (0, "busy")])
def test_an_error_on_one_rank_ends_all_and_each_says_whose_it_was(bad, others, tmp_path):
    done, seconds = failed(tmp_path, "error", bad, others)
    assert [rank.code for rank in done] == [2, 2] and seconds < 15
    assert done[bad].err == f"failing.py: error: {'[rank 1] ' if bad else ''}shard 7 is broken\n"
    (line,) = done[1 - bad].err.splitlines()
    assert line.startswith(f"failing.py: rank {bad} on ") and line.endswith("): shard 7 is broken")


@pytest.mark.parametrize(("bad", "others"), [(0, "waiting"), (1, "busy"), (1, "elsewhere")])
def test_a_killed_rank_ends_all_and_is_named_by_one_that_is_left(bad, others, tmp_path):
    done, seconds = failed(tmp_path, "killed", bad, others, TORCH_CPP_LOG_LEVEL="ERROR")
    assert (done[bad].code, done[1 - bad].code) == (-signal.SIGKILL, 1) and seconds < 15
    (line,) = done[1 - bad].err.splitlines()
    assert line.startswith(f"failing.py: rank {bad} on ") and line.endswith(
        "gone without a word: killed, out of memory?"
    )


def test_a_bug_on_one_rank_shows_one_traceback(tmp_path):
    done, _ = failed(tmp_path, "bug")
    assert done[1].err.count("Traceback") == 1 and done[1].err.endswith(
        "failing.py: error: [rank 1] KeyError: 'missing'\n"
    )
    assert (
        "Traceback" not in done[0].err
        and done[0].err.endswith("KeyError: 'missing'\n")
        and done[0].err.count("\n") == 1
    )


def test_what_all_ranks_find_wrong_is_said_once(tmp_path):
    done, _ = failed(tmp_path, "all")
    assert [rank.code for rank in done] == [2, 2]
    assert (done[0].err + done[1].err).count("shard 7 is broken") == 1


def test_a_rank_that_hangs_is_waited_for_as_the_environment_says_and_what_for_is_printed(
    tmp_path,
):
    done, _ = failed(tmp_path, "hanging", DEPTHDIST_TIMEOUT=10)
    assert [rank.code for rank in done] == [1, 1]
    assert (
        "waited in vain for the other ranks in run_command > sum_over_ranks: Timed out"
        in done[0].err
        and "DEPTHDIST_TIMEOUT" in done[0].err
    )
    assert "Traceback" not in done[0].err + done[1].err
    assert last_line(done[1].err, "failing.py").startswith("failing.py: rank 0 on ")


def test_a_rank_that_hangs_is_named_where_no_exchange_ever_fails(tmp_path):
    done, _ = failed(tmp_path, "hanging", 1, "silent", DEPTHDIST_TIMEOUT=6)  # as NCCL's never do
    assert [rank.code for rank in done] == [1, 1]
    (line,) = done[0].err.splitlines()
    assert line.startswith("failing.py: rank 1 on ") and "): hangs in " in line, line
    assert line.endswith(
        "rank 0 waited in vain for the other ranks in run_command > sum_over_ranks"
    )


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_gives_no_sign_of_life_ends_all(bad, tmp_path):
    ranks = on_srun(2, script(failing, tmp_path), "stopped", bad)
    done = ranks[1 - bad].done()
    assert done.code == 1 and "Traceback" not in done.err
    assert last_line(done.err, "failing.py").startswith(f"failing.py: rank {bad} on ")
    assert "): no sign of life for " in last_line(done.err, "failing.py")


def leaving():
    """Rank 1 has nothing more to do while rank 0 works on."""
    import time

    from depthdist.distributed.process_group import start, stop

    world = start()
    time.sleep(0 if world.rank else 3)
    print(time.time())
    stop()
    print(time.time())


def test_ranks_leave_together_and_none_is_taken_for_dead(tmp_path):
    done = [rank.done() for rank in on_srun(2, script(leaving, tmp_path))]
    assert [(rank.code, rank.err) for rank in done] == [(0, ""), (0, "")]
    (last_work, _), (first_work, left) = (map(float, rank.out.split()) for rank in done)
    assert first_work + 2 < last_work <= left


def test_ranks_that_do_not_meet_say_where_they_waited(tmp_path):
    groups = [on_srun(2, script(failing, tmp_path), "all", DEPTHDIST_TIMEOUT=3) for _ in range(2)]
    for rank, group in enumerate(groups):
        group[1 - rank].kill()
    for rank, group in enumerate(groups):
        done = group[rank].done()
        assert (
            done.code == 2
            and "error: " in done.err
            and "the ranks cannot meet at 127.0.0.1:" in done.err
            and "Traceback" not in done.err
        ), done
