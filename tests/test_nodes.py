"""Several machines for real, with addresses, host names, process ids and disks of their own: over
ssh and under SLURM.

They are namespaces on this machine (helpers/nodes.py), so this needs root and Debian's packages;
.ci/run installs them. The other tests have several machines on one loopback."""

import contextlib
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
from helpers import nodes as made_nodes
from helpers import slurm as made_slurm
from helpers.captures import ROOT, write_raw
from helpers.commands import LAUNCHER, Typed, on_srun
from helpers.nodes import Machines, OnMachine, all_said, machines, wait_until
from helpers.run_ends import numbers, same
from helpers.runs import (
    deepspeed_json,
    largest_difference,
    log,
    make_shards,
    saved_state,
    saved_weights,
    train_words,
)
from helpers.slurm import Slurm

BEGIN_S = 240.0  # until ranks are at work, on a machine that is busy with other tests
END_S = 50.0  # for what takes 15 s; what is forgotten stays for minutes
TIMEOUT = 20  # DEPTHDIST_TIMEOUT, where a test waits for it
WEIGHTS = "best/adapter_model.safetensors"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Three machines."""
    with machines(3, tmp_path_factory.mktemp("nodes") / "machines") as made:
        yield made


@pytest.fixture(autouse=True)
def only_this_test_works(nodes):
    nodes.as_before()
    yield
    nodes.end_work()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of 7 training samples and 2 for validation."""
    return make_shards(tmp_path_factory.mktemp("shards"), 9)


@pytest.fixture(scope="module")
def words(shards, tmp_path_factory):
    """Training with 12 steps in 6 epochs, all saved; 1, 2 or 3 ranks can do it. Without --run."""
    batch6 = tmp_path_factory.mktemp("json") / "batch6.json"
    words = train_words(shards, Path(), deepspeed_json(batch6, train_batch_size=6))
    where = words.index("--run")
    return [*words[:where], *words[where + 2 :], "--epochs", 6, "--save-every", 1]


@pytest.fixture(scope="module")
def endless(words, tmp_path_factory):
    """Training of 4 steps an epoch, after which it saves; it does not end by itself."""
    batch2 = tmp_path_factory.mktemp("json") / "batch2.json"
    deepspeed_json(batch2, train_batch_size=2)
    config = words.index("--deepspeed") + 1
    return [*words[:config], batch2, *words[config + 1 : -2], "--epochs", 10000]


@pytest.fixture(scope="module")
def reference(words, tmp_path_factory):
    """The run folder of two ranks on one machine, which is this one."""
    run = tmp_path_factory.mktemp("reference") / "run"
    done = [rank.done() for rank in on_srun(2, *words, "--run", run)]
    assert [rank.code for rank in done] == [0, 0], "\n".join(map(all_said, done))
    return run


def launched(nodes: Machines, which: tuple[int, ...], *words, **env) -> OnMachine:
    """`deepspeed --hostfile` on the first machine, with one rank on each of these."""
    return nodes[1].typed(
        *[LAUNCHER, "--hostfile", nodes.hostfile(*which), *words],
        DS_ENV_FILE=nodes.variables(**env),
    )


def ended(typed: OnMachine, nodes: Machines, seconds: float, what: str, script: str = "train.py"):
    """How a command ended, once no rank of any machine is left either; both within that time."""

    def ranks():
        return [rank for machine in nodes.all if machine.init for rank in machine.ranks(script)]

    def left() -> str:
        over = "has ended" if typed.is_over() else "has not ended"
        where = [f"{rank.pid}: {' '.join(rank.cmdline()[:4])}" for rank in ranks()]
        return f"{seconds:g} s after {what} the command {over}, ranks left: {where}\n{typed.said()}"

    wait_until(lambda: typed.is_over() and not ranks(), seconds, left)
    return typed.done()


def finished(typed: OnMachine):
    """What a command said, which must end well."""
    wait_until(typed.is_over, BEGIN_S, lambda: f"it does not end\n{typed.said()}")
    done = typed.done()
    assert done.code == 0, all_said(done)
    return done


def states(run: Path) -> list[int]:
    """The steps that a run has saved."""
    return sorted(
        int(path.name[5:11]) for path in run.glob("last/step-*") if path.suffix in ("", ".2", ".3")
    )


def at_work(typed: OnMachine, run: Path) -> None:
    """Wait until two steps are saved."""

    def has_begun():
        assert not typed.is_over(), f"it has ended\n{all_said(typed.done())}"
        return max(states(run), default=0) >= 2

    wait_until(has_begun, BEGIN_S, lambda: f"it does not begin\n{typed.said()}")


def equal_to(run: Path, whole: Path, metrics: float = 0) -> None:
    """Fail unless two runs are equal, bit for bit.

    metrics  how far these may differ, relatively: on another number of ranks their sums may end in
             other digits
    """
    assert same(saved_state(run), saved_state(whole)), "weights or optimizer differ"
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes(), "best/ differs"
    mine, expected = numbers(run), numbers(whole)
    assert len(mine) == len(expected)
    for line, right in zip(mine, expected):
        assert line == pytest.approx(right, rel=metrics, abs=0, nan_ok=True)


def last_line(text: str, script: str = "train.py") -> str:
    """The last line of ours that is there, without the machine that pdsh puts before it."""
    lines = [line.partition(f"{script}: ")[2] for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")


# --------------------------------------------------------------------------------------- over ssh


@pytest.fixture(scope="module")
def over_ssh(nodes, words, tmp_path_factory):
    """A run on two machines whose /etc/hosts is as Debian's installer writes it: its folder, what
    was said, and the bytes that came in on the second network."""
    run = tmp_path_factory.mktemp("over_ssh") / "run"
    nodes.as_before()
    for number in (1, 2):
        nodes[number].write_hosts(like_debian=True)
    before = nodes[1].received("eth1")
    done = finished(launched(nodes, (1, 2), *words, "--run", run, DEPTHDIST_TIMEOUT=120))
    return run, done.out + done.err, nodes[1].received("eth1") - before


def test_two_machines_over_ssh_learn_what_two_ranks_of_one_do(over_ssh, reference):
    run, said, _ = over_ssh
    assert "node1: " in said and "node2: " in said, said
    equal_to(run, reference)


def test_ranks_meet_where_a_name_is_loopback_and_say_on_which_network(over_ssh):
    _, said, on_the_second = over_ssh
    assert "eth0" in said, said
    assert on_the_second < 100_000


@pytest.fixture(scope="module")
def on_private_disks(nodes, words, reference, tmp_path_factory):
    """A run of three machines with a run folder each: that of the second has an older best/ of that
    name, the third has none. Returns the first one's, and what came in on the second network, which
    the environment asks for."""
    folder = tmp_path_factory.mktemp("on_private_disks")
    older = folder / "older"
    shutil.copytree(reference / "best", older)
    spoil(older / Path(WEIGHTS).name)
    private = nodes.private / "run"
    nodes.as_before()
    nodes[2].run("mkdir", private)
    nodes[2].run("cp", "-r", older, private / "best")
    before = nodes[1].received("eth1")
    env = {"GLOO_SOCKET_IFNAME": "eth1", "DEPTHDIST_TIMEOUT": 120}
    finished(launched(nodes, (1, 2, 3), *words, "--run", private, **env))
    nodes[1].run("cp", "-r", private, folder / "run")
    return folder / "run", nodes[1].received("eth1") - before


def spoil(weights: Path) -> None:
    """Make it another adapter."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    save_file({name: -3 * tensor for name, tensor in tensors.items()}, weights)


def test_machines_need_not_share_the_run_folder_and_an_older_best_is_not_taken(
    on_private_disks, reference
):
    run, _ = on_private_disks
    # DeepSpeed clips by the mean of all ranks' norms: of three equal ones it ends in other bits
    assert largest_difference(saved_weights(run), saved_weights(reference)) < 1e-6
    mine, expected = log(run, of="best/loss"), log(reference, of="best/loss")
    assert len(mine) == len(expected) == 1
    table = {name: score for name, score in expected[0].items() if name.startswith("best/")}
    assert {name: mine[0][name] for name in table} == pytest.approx(table, rel=1e-5)


def test_the_network_that_somebody_chose_is_taken(on_private_disks):
    _, on_the_second = on_private_disks
    assert on_the_second > 1_000_000


def test_an_error_on_one_machine_before_they_meet_ends_all_of_them(nodes, shards, words, tmp_path):
    private = nodes.private / "data"
    nodes[1].run("cp", "-r", shards, private)
    begin = [private if word == shards else word for word in words]
    typed = launched(nodes, (1, 2), *begin, "--run", tmp_path / "run")
    wait_until(lambda: "error: " in typed.said() or typed.is_over(), BEGIN_S, typed.said)
    # its second half may be cut where it is repeated
    first = typed.said().partition("error: [rank 1] ")[2].partition(";")[0]
    done = ended(typed, nodes, END_S, "the first error")
    assert done.code == 2, all_said(done)
    told = last_line(done.err + done.out)  # by the other machine, shortened to one line
    assert str(private) in first and first[:200] in told, all_said(done)


def test_a_machine_that_ssh_does_not_reach_ends_the_others_and_is_named(nodes, words, tmp_path):
    with nodes[3].refusing_ssh():
        typed = launched(nodes, (1, 2, 3), *words, "--run", tmp_path / "run")
        wait_until(lambda: nodes[1].ranks() and nodes[2].ranks(), BEGIN_S, typed.said)
        done = ended(typed, nodes, 2 * END_S, "two of three machines had begun")
    assert done.code, all_said(done)  # of pdsh, whose ssh has one of its own
    line = last_line(done.err + done.out)
    assert line.startswith("rank 2 on node3: ") and "`ssh node3 true`" in line, all_said(done)
    assert "Connection refused" in done.err + done.out, all_said(done)


def test_rank_0s_machine_that_ssh_does_not_reach_ends_the_others_too(nodes, words, tmp_path):
    how = ["--no_ssh_check", "--master_addr", "10.77.0.2", "--hostfile", nodes.hostfile(2, 1)]
    with nodes[2].refusing_ssh():
        typed = nodes[1].typed(
            *[LAUNCHER, *how, *words, "--run", tmp_path / "run"], DS_ENV_FILE=nodes.variables()
        )
        wait_until(nodes[1].ranks, BEGIN_S, typed.said)
        done = ended(typed, nodes, 2 * END_S, "one of two machines had begun")
    assert done.code, all_said(done)
    line = last_line(done.err + done.out)
    assert line.startswith("rank 0 on node2: ") and "`ssh node2 true`" in line, all_said(done)


def test_depthdist_train_tries_ssh_to_all_machines_before_it_starts_one(nodes, words, tmp_path):
    hosts = nodes.hostfile(1, 2, 3)
    train = [sys.executable, "-m", "depthdist", "train", *words[1:], "--run", tmp_path / "run"]
    with nodes[3].refusing_ssh():
        typed = nodes[1].typed(*train, "--hostfile", hosts)
        done = ended(typed, nodes, BEGIN_S, "the command was typed")
    (line,) = done.errors
    assert line.startswith("--hostfile: ssh does not reach 1 of 3 machines: node3 ("), line
    assert "Connection refused" in line and "node2" not in done.err + done.out, all_said(done)


def test_sharding_by_two_machines_writes_the_bytes_of_one_process(nodes, tmp_path):
    raw = write_raw(tmp_path / "raw", 24)
    how = ["--size", "28x42", "--rgb", "png", "--shard-mb", 0.02, "--workers", 1]
    alone = Typed(sys.executable, "tools/shard.py", raw, tmp_path / "alone", *how)
    for number in (1, 2):
        nodes[number].write_hosts(like_debian=True)
    both = launched(nodes, (1, 2), "tools/shard.py", raw, tmp_path / "both", *how)
    done = finished(both)
    assert alone.done().code == 0, all_said(alone.done())
    assert "eth0" in done.out + done.err, all_said(done)
    expected = contents(tmp_path / "alone")
    assert len(expected) > 4 and contents(tmp_path / "both") == expected, all_said(done)


def contents(folder: Path) -> dict[str, bytes]:
    """The files that a dataset consists of."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not path.name.startswith(".")
    }


# ------------------------------------------------------------------------- how a run is interrupted


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "Ctrl-C"])
def test_ranks_of_all_machines_save_and_end_with_their_launcher(how, nodes, endless, tmp_path):
    run = tmp_path / "run"
    typed = launched(nodes, (1, 2), *endless, "--run", run)
    at_work(typed, run)
    if how == "SIGTERM":
        is_refused_meanwhile(nodes, [*endless, "--run", run])
    if how == "Ctrl-C":
        typed.press_ctrl_c()
    else:
        typed.command.send_signal(signal.Signals[how])
    done = ended(typed, nodes, END_S, how)
    assert done.code, all_said(done)
    steps = [line["step"] for line in log(run, of="train/loss")]
    assert max(states(run)) >= max(steps), f"the last step is not saved\n{all_said(done)}"
    assert saved_state(run)[1]["train"]["step"] == max(states(run)), "the last state is not whole"


def is_refused_meanwhile(nodes: Machines, words: list) -> None:
    """Fail unless the command is refused on another machine, and says who writes there."""
    second = nodes[2].typed(sys.executable, *words)
    wait_until(second.is_over, BEGIN_S, lambda: f"a second writer is not refused\n{second.said()}")
    pids = {str(nodes[1].pid_here(rank)) for rank in nodes[1].ranks()}
    assert len(second.done().errors) == 1, all_said(second.done())
    (line,) = second.done().errors
    assert "node1" in line, line
    assert pids & set(line.replace(",", " ").replace(")", " ").split()), (line, pids)


def test_a_pulled_cable_ends_both_sides_and_the_machine_that_is_left_goes_on_exactly(
    nodes, words, reference, tmp_path
):
    run = tmp_path / "run"
    typed = launched(nodes, (1, 2), *words, "--run", run, DEPTHDIST_TIMEOUT=TIMEOUT)
    at_work(typed, run)
    nodes[2].pull_cable()
    done = ended(typed, nodes, TIMEOUT + 30 + END_S, "the cable was pulled")
    assert done.code and max(states(run)) < 12, all_said(done)
    line = last_line(done.err + done.out)
    assert "node2" in line, f"the lost machine is not named\n{all_said(done)}"
    finished(launched(nodes, (1,), *words, "--run", run))
    equal_to(run, reference, metrics=1e-9)


def test_a_pulled_cable_ends_sharding_on_both_sides_and_the_machine_that_is_left_goes_on(
    nodes, tmp_path
):
    raw, out = write_raw(tmp_path / "raw", 300), tmp_path / "out"
    how = ["--size", "28x42", "--rgb", "png", "--shard-mb", 0.05, "--workers", 1]
    shard = ["tools/shard.py", raw, out, *how]
    typed = launched(nodes, (1, 2), *shard, DEPTHDIST_TIMEOUT=TIMEOUT)
    wait_until(lambda: typed.is_over() or list(out.glob(".build/*/*.json")), BEGIN_S, typed.said)
    nodes[2].pull_cable()
    done = ended(typed, nodes, TIMEOUT + 30 + END_S, "the cable was pulled", "shard.py")
    assert done.code and not (out / "index.json").exists(), all_said(done)
    line = last_line(done.err + done.out, "shard.py")
    assert line.startswith("rank 1 on node2 ") and "no sign of life" in line, all_said(done)
    assert line.endswith("(finished shards are kept; the same command goes on)"), all_said(done)
    finished(launched(nodes, (1,), *shard))
    alone = Typed(sys.executable, *shard[:2], tmp_path / "alone", *how)
    assert alone.done().code == 0, all_said(alone.done())
    assert contents(out) == contents(tmp_path / "alone")


# ------------------------------------------------------------------------------------- under SLURM


@pytest.fixture(scope="module")
def slurm(nodes):
    """SLURM on the three machines, without GPUs."""
    made_nodes.require_machines(made_slurm.PROGRAMS)
    nodes.as_before()
    return Slurm(nodes)


@pytest.fixture
def checkout(slurm, tmp_path):
    """A folder that is the repository's root for a job, with its runs and logs."""
    for path in ROOT.iterdir():
        if path.name not in (".git", "runs"):
            (tmp_path / path.name).symlink_to(path)
    yield tmp_path
    slurm.run("scancel", "--user=root")


def is_importing(rank: psutil.Process) -> bool:
    """Whether a rank notes signals, or has torch already: then the first ones would be lost."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        caught = status_bits(rank, "SigCgt") >> (signal.SIGUSR1 - 1) & 1
        return bool(caught) or "libtorch" in Path(f"/proc/{rank.pid}/maps").read_text()
    return False


def status_bits(process: psutil.Process, name: str) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")), 16)


def test_a_slurm_job_of_two_machines_goes_on_after_signals_at_any_time_as_if_there_were_none(
    slurm, nodes, words, reference, checkout
):
    run = checkout / "run"
    job = slurm.submit("--nodes=2", "launch/slurm.sbatch", *words[1:], "--run", run, cwd=checkout)

    def described():
        return slurm.describe(job, checkout)

    def ranks():
        found = nodes[1].ranks() + nodes[2].ranks() + nodes[3].ranks()
        tasks = [rank for rank in found if rank.ppid() not in {other.pid for other in found}]
        assert slurm.states(job)[0] not in ("FAILED", "COMPLETED"), described()
        return tasks if len(tasks) == 2 else []

    def started_again(times):
        assert slurm.jobs(job)[0]["JobState"] not in ("FAILED", "COMPLETED"), described()
        return slurm.jobs(job)[0].get("Restarts") == str(times)

    # while it imports
    wait_until(lambda: (tasks := ranks()) and all(map(is_importing, tasks)), BEGIN_S, described)
    slurm.run("scancel", "--signal=USR1", job)
    wait_until(lambda: started_again(1), BEGIN_S, described)
    assert not states(run), "the signal came too late for this test"

    # at its time limit, in mid-training: the ranks stand still until it is there
    wait_until(lambda: max(states(run), default=0) >= 2, BEGIN_S, described)
    with standing_still(ranks()) as held:
        slurm.end_soon(job)
        wait_until(lambda: all(map(is_signalled, held)), 120, described)
    wait_until(lambda: started_again(2), BEGIN_S, described)
    slurm.limit(job, 60)  # before it starts again
    assert max(states(run)) < 12, "the signal came too late for this test"

    slurm.wait_for(job, BEGIN_S, checkout)
    assert slurm.states(job) == ["COMPLETED"], described()
    equal_to(run, reference)


def is_signalled(rank: psutil.Process) -> bool:
    """Whether SIGUSR1 waits for a process that stands still, or came with what let it go on."""
    try:
        pending = status_bits(rank, "ShdPnd")
        return bool(pending >> (signal.SIGUSR1 - 1) & 1) or rank.status() != psutil.STATUS_STOPPED
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
        return True


@contextlib.contextmanager
def standing_still(processes):
    for process in processes:
        process.suspend()
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def test_an_array_of_slurm_jobs_trains_in_a_folder_each_on_machines_without_gpus(
    slurm, words, checkout
):
    job = slurm.submit("--array=0-1", "launch/slurm.sbatch", *words[1:-2], cwd=checkout)
    slurm.wait_for(job, BEGIN_S, checkout)
    assert slurm.states(job) == ["COMPLETED"] * 2, slurm.describe(job, checkout)
    runs = [path.parent.parent for path in checkout.glob(f"runs/*/{WEIGHTS}")]
    assert len(runs) == 2, slurm.describe(job, checkout)
    first, second = runs
    equal_to(first, second)
