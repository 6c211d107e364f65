"""Train from Python: the launcher runs as a process of its own, one process below it a GPU.

trained = train("captures", run="runs/mine", epochs=15, on_epoch=print)
trained.run, trained.best["rmse_mm"]
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any, NamedTuple

from depthdist.core.errors import naming_arguments
from depthdist.core.files import parse_json
from depthdist.core.settings import flag_name
from depthdist.distributed.accelerator import require_linux

POLL_S = 0.2  # between two looks at the log
END_S = 30  # that interrupted processes have to end, before they are killed
KEPT_LINES = 200  # of the command's errors
ERROR = re.compile(r"depthdist train: error: (?:\[rank \d+\] )?(.*)")
FINAL = ("best/", "fit/")  # of names in the log's last line: scores of the best adapter

Callback = Callable[[dict[str, Any]], object]


class TrainedRun(NamedTuple):
    """A finished run.

    run   its folder, which `depthdist.load` takes
    best  mean scores of the best adapter over the validation captures (without any, over training
          captures) by metric: loss, abs_rel, rmse_mm, ...
    """

    run: Path
    best: dict[str, float]


def train(
    data: str | Path | Sequence[str | Path],
    run: str | Path | None = None,
    *,
    epochs: int | None = None,
    model: str | None = None,
    lr: float | None = None,
    on_log: Callback | None = None,
    on_epoch: Callback | None = None,
    **settings: Any,
) -> TrainedRun:
    """Train on a folder of captures, or of shards, with all GPUs, and return when it is done.

    data      the folder, or several
    run       folder of the run; one that was begun goes on. By default runs/<time>
    epochs    times that every training capture is seen
    model     base model: a hub id, a folder, "built-in" or "tiny"
    lr        highest learning rate of LoRA
    on_log    called with each line of RUN/metrics.jsonl as a dict: step, epoch, time, and
              train/loss, train/lr ... or eval/loss, eval/rmse_mm ...
    on_epoch  called with the lines of evaluations alone
    settings  every other flag of `depthdist train --help` by its name: `lora_rank=32`,
              `calibrate=True`, `size=(378, 630)`, `loss={"l1": 1, "grad": 3}`; None is left out

    What the command prints comes through as it is printed. Interrupting (Ctrl-C, the notebook's
    stop button) ends its processes; the same call goes on from the last saved state.

    ValueError with the command's own error lines, where it fails. Linux, or WSL 2.
    """
    require_linux()
    folders = [data] if isinstance(data, (str, Path)) else data
    if not isinstance(folders, Sequence) or not all(
        isinstance(folder, (str, Path)) for folder in folders
    ):
        raise TypeError(f"data is {data!r}: expected a folder of captures or of shards, or several")
    run = Path(run or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")).expanduser()
    given = {"run": run, "epochs": epochs, "model": model, "lr": lr, **settings}
    log = LogReader(run / "metrics.jsonl", time.time())
    errors: deque[str] = deque(maxlen=KEPT_LINES)

    def report() -> None:
        for line in log.new_lines():
            if on_log:
                on_log(line)
            if on_epoch and "eval/loss" in line:
                on_epoch(line)

    words = training_words(data, given)
    # in a session of its own: whom Ctrl-C reaches is for end_processes() to decide
    with subprocess.Popen(
        [sys.executable, "-m", "depthdist", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    ) as process:
        try:
            relay_output(process, report, errors)
        except BaseException:
            end_processes(process)
            raise
    report()
    if process.returncode:
        with naming_arguments():
            raise ValueError(describe_failure(process.returncode, errors))
    return TrainedRun(run, read_best_scores(run / "metrics.jsonl"))


def training_words(
    data: str | Path | Sequence[str | Path], settings: Mapping[str, Any]
) -> list[str]:
    """Return the words of `depthdist train` for settings by name; those that are None are left out.

    True and False are --name and --no-name, lists have commas between their items, a pair of
    numbers named size is HxW, a mapping is name=value,...
    """
    folders = [data] if isinstance(data, (str, Path)) else data
    words = [",".join(os.path.expanduser(folder) for folder in folders)]  # also s3:// and others
    for name, value in settings.items():
        flag = flag_name(name)
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(flag_name(name if value else f"no_{name}"))
            continue
        if name == "size" and isinstance(value, (list, tuple)):
            value = "x".join(map(str, value))
        elif isinstance(value, Mapping):
            value = ",".join(f"{key}={number}" for key, number in value.items())
        elif isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        words.append(f"{flag}={value}")
    return words


def relay_output(
    process: subprocess.Popen[str], report: Callable[[], None], errors: deque[str]
) -> None:
    """Print a process's lines on this one's streams until it closes them.

    Also where those are no files, as in a notebook. `report` is called a few times a second.

    errors  gets the lines of its standard error
    """
    assert process.stdout and process.stderr
    lines: queue.Queue[tuple[str, str]] = queue.Queue()
    open_streams = {"stdout": process.stdout, "stderr": process.stderr}

    def read(name: str, stream: IO[str]) -> None:
        for line in stream:
            lines.put((name, line))
        lines.put((name, ""))

    for name, stream in open_streams.items():
        Thread(target=read, args=(name, stream), daemon=True).start()
    while open_streams:
        try:
            name, line = lines.get(timeout=POLL_S)
        except queue.Empty:
            report()
            continue
        if not line:
            del open_streams[name]
            continue
        if name == "stderr":
            errors.append(line.rstrip("\n"))
        print(line, end="", file=getattr(sys, name), flush=True)
        if lines.empty():
            report()


def end_processes(process: subprocess.Popen[str]) -> None:
    """End the launcher and all below it: interrupt them, and kill what has not ended in time."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        pass  # killed below, as the processes that it may have left are
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def describe_failure(code: int, errors: deque[str]) -> str:
    """Return the command's own error lines, or the last line that it printed to standard error."""
    found = [match[1] for match in map(ERROR.match, errors) if match]
    last = [line for line in errors if line.strip() and not line.startswith("[")][-1:]
    return "\n".join(dict.fromkeys(found or last)) or f"training ended with exit code {code}"


class LogReader:
    """Reads what is appended to a run's metrics.jsonl, from the lines of now on."""

    def __init__(self, path: Path, since: float):
        self.path = path
        self.since = since
        self.file: int | None = None  # which file it was: a resumed run replaces it
        self.offset = 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """Yield the complete lines that were written since the last call."""
        try:
            with open(self.path, "rb") as file:
                number = os.fstat(file.fileno()).st_ino
                self.offset = self.offset if number == self.file else 0
                self.file = number
                file.seek(self.offset)
                content = file.read()
        except FileNotFoundError:
            return
        complete = content[: content.rfind(b"\n") + 1]
        self.offset += len(complete)
        for line in complete.splitlines():
            values = parse_json(line)
            if values["time"] >= self.since:
                yield values


def read_best_scores(path: Path) -> dict[str, float]:
    """Return the scores of the best adapter from a finished run's metrics.jsonl, by metric."""
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        values = parse_json(line)
        scores = {
            name.partition("/")[2]: value
            for name, value in values.items()
            if name.startswith(FINAL) and "/" in name
        }
        if scores:
            return scores
    return {}
