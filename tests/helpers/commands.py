"""Commands as a person types them: in this process, which is quick, or on several ranks through the
real launcher.

    done = command("launch/train.py", "--data", data, ...)          # done.code, done.out, done.err
    # deepspeed --num_accelerators 2 launch/train.py ...
    launch = Launch(2, "launch/train.py", "--data", data, ...)
    # function(*words) on each rank; it imports what it needs
    launch = on_ranks(2, function, tmp_path, "its", "words")
    # the same without a launcher, each rank for itself
    first, second = on_srun(2, script(function, tmp_path), "its")
    done = launch.done()  # waits for it; launch.kill() does not

Everything is on the CPU and one thread a process: pools of threads wait for one another when other
work shares the cores."""

import contextlib
import functools
import inspect
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from helpers.captures import ROOT

ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LAUNCHER = Path(sys.executable).with_name("deepspeed")


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines a person reads, once the exit code is 2 and there is no traceback."""
        assert self.code == 2 and "Traceback" not in self.err + self.out, self
        return [
            line.split("error: ", 1)[1] for line in self.err.splitlines() if ": error: " in line
        ]


def command(script: str, *words: Any) -> Done:
    """The script of that name in this process, with `words` on its command line, from the
    repository's root or where we are."""
    import depthdist.training.train  # noqa: F401  so that patches find its modules

    joined()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        signals_as_before(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, ON_CPU),
        mock.patch.object(sys, "argv", [str(ROOT / script), *map(str, words)]),
        # DeepSpeed cannot start twice in one process
        mock.patch("depthdist.distributed.process_group.stop"),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def signals_as_before():
    """A command in this process notes signals; the tests' own handlers return after it."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def steps_in_this_process():
    """The commands that a command runs one after the other run here, on one core: no workers.

    Training is its only rank. Each process would import for seconds; those of the demo, which are
    started alike, are real ones: tests/test_anywhere.py.
    """

    def run_line(shown: list[Any], words: list[Any]) -> None:
        first, *rest = words
        if first == "-m":
            first = f"{rest.pop(0)}/__main__.py"
        with mock.patch.dict(os.environ, RANK="0"):
            done = command(first, *rest)
        print(done.out)
        assert done.code == 0, done

    with (
        mock.patch("depthdist.commands.subcommands.run_line", run_line),
        one_core(),
    ):
        yield


@contextlib.contextmanager
def one_core():
    """Commands in this process find one core: what they share out among workers, they do alone."""
    from depthdist.shards.writer import write_shard

    def write_shards(jobs: list[Any], *how: Any) -> None:
        for job in jobs:
            write_shard(job)

    with (
        mock.patch("depthdist.core.environment.usable_cores", return_value=1),
        mock.patch("depthdist.shards.build.write_shards", write_shards),
    ):
        yield


@functools.cache
def joined():
    """The World of this process, alone. The environment stays as it was."""
    import torch

    with mock.patch.dict(os.environ, ON_CPU):
        from depthdist.distributed.process_group import start

        torch.set_num_threads(1)
        return start()


def until(found, seconds: float = 240):
    """What `found()` returns as soon as it is something."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return value


def last_line(text: str, *scripts: str) -> str:
    """The last line of these scripts: launchers may say more after it."""
    said = tuple(f"{script}: " for script in scripts)
    return [line for line in text.splitlines() if line.startswith(said)][-1]


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Typed:
    """A command, typed in the repository's root and at work from now on.

    `env` is added to its environment.
    """

    def __init__(self, *words: Any, **env: Any):
        # files, as a pipe that nobody reads would fill up; `done` reads them, then they go
        out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        err = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.files = out, err
        known = {**os.environ, **ON_CPU, **{name: str(value) for name, value in env.items()}}
        self.process = subprocess.Popen(
            [*map(str, words)], cwd=ROOT, env=known, stdout=out, stderr=err, start_new_session=True
        )

    @functools.cache  # noqa: B019  a handful of commands a test
    def done(self, timeout: float = 240) -> Done:
        """How it ended. After `timeout` seconds all its processes are killed."""
        try:
            code = self.process.wait(timeout)
        finally:
            self.kill()
        return Done(code, *(file.seek(0) or file.read() for file in self.files))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Launch(Typed):
    """`deepspeed --num_accelerators RANKS WORDS`."""

    def __init__(self, ranks: int, *words: Any):
        super().__init__(
            LAUNCHER, "--num_accelerators", ranks, "--master_port", free_port(), *words
        )


def on_srun(ranks: int, *words: Any, **env: Any) -> list[Typed]:
    """`python WORDS` as srun starts it, once a rank, all on one machine."""
    shared = {
        "SLURM_STEP_NUM_TASKS": ranks,
        "SLURM_STEP_TASKS_PER_NODE": ranks,
        "SLURM_NODEID": 0,
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    return [
        Typed(sys.executable, *words, **shared, SLURM_PROCID=rank, SLURM_LOCALID=rank, **env)
        for rank in range(ranks)
    ]


def script(function, folder: Path) -> Path:
    """A file that calls `function` with its command line's words: it gets text, and finds nothing
    of its module."""
    path = folder / f"{function.__name__}.py"
    call = (
        "\n\nif __name__ == '__main__':  # not in the worker processes that it spawns\n    import"
        f" sys\n    sys.path.insert(0, {str(ROOT / 'tests')!r})\n    {function.__name__}(*(word for"
        " word in sys.argv[1:] if not word.startswith('--local_rank')))\n"
    )
    path.write_text(textwrap.dedent(inspect.getsource(function)) + call)
    return path


def on_ranks(ranks: int, function, folder: Path, *words: Any) -> Launch:
    """`function(*words)` on each rank, as `script` has it."""
    return Launch(ranks, script(function, folder), *words)


# ----------------------------------------------------------------------- small data, settings, runs
