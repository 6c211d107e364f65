"""Run a command: exit codes, and one clear line for each problem."""

from __future__ import annotations

import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

from depthdist.core.cache_folders import set_cache_folders
from depthdist.core.environment import local_rank, rank, silence_image_warnings
from depthdist.core.errors import SettingsError, Stopped, os_error_text
from depthdist.core.stop_signals import CTRL_C, ignore_stop_signals

STOPPED, INTERRUPTED, BAD_INPUT, FAILED = 75, 130, 2, 1  # exit codes; 75 is EX_TEMPFAIL
LAUNCHER_GRACE_S = 10  # a launcher ends all processes of a machine sooner after the first one ends
NO_TRACKER_WARNING = "ignore:resource_tracker"  # about what it removes itself


class FailureJudge(Protocol):
    """Knows whether this rank's error is the first one of the run; see EarlyJudge, FailureWatch."""

    def judge(self, err: BaseException, code: int, text: str) -> str:
        """Return the text to show for this rank's error, "" if it follows from another rank's."""

    def end(self) -> NoReturn:
        """Repeat the first error of the run and end this process with its exit code."""


class _Ranks(NamedTuple):
    """What to do with the other ranks when this command ends early."""

    leave: Callable[[], None]
    judge: FailureJudge | None


_ranks: _Ranks | None = None


def register_ranks(leave: Callable[[], None], judge: FailureJudge | None) -> None:
    """Call `leave` when the command is stopped, and `judge` when it fails.

    What joins the ranks calls this (distributed), so that nothing here imports torch.
    """
    global _ranks
    _ranks = _Ranks(leave, judge)


def unregister_ranks() -> None:
    """Forget the ranks: they have parted."""
    global _ranks
    _ranks = None


def prepare_process() -> None:
    """Set what holds for the whole process, before torch is imported.

    Without the variables, a rank whose store is gone would fill the screen with torch's C++ stack,
    and a process of multiprocessing would have the last word where a command ends at once.
    """
    silence_image_warnings()
    set_cache_folders()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what the locale cannot show
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    ignored = os.environ.get("PYTHONWARNINGS", "").split(",")
    if NO_TRACKER_WARNING not in ignored:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [*ignored, NO_TRACKER_WARNING]))


def program() -> str:
    """Return the name of this command, as it was started: `train.py`, or `depthdist train`."""
    return Path(sys.argv[0]).name


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Run `main` and exit with its return value, or with a code and one clear line a problem.

    0    done, or what `main` returned
    2    bad input: ValueError or OSError; one line for each problem
    75   stopped on request (EX_TEMPFAIL); the line says how to resume
    130  Ctrl-C; where it is a request to save and stop, the line says how to resume

    Signals that ask for a stop (stop_signals.py) come too late once this is decided.
    Other errors show their traceback. When one rank of several fails, all end, and what several
    have to say is printed once. DEPTHDIST_TRACE=1 in the environment shows every traceback.
    """
    prepare_process()
    try:
        code = main() or 0
    except Stopped as stop:
        _exit_stopped(stop)
    except (Exception, KeyboardInterrupt) as err:
        code, text = _code_and_text(err)
        judge = _ranks.judge if _ranks else None
        if _ranks and not judge:  # alone; NCCL would add a remark below the one line
            _ranks.leave()
        if code == FAILED and not judge:
            raise
        _exit_failed(err, code, text, judge)
    ignore_stop_signals()
    sys.exit(code)


def stop_code(by: str) -> int:
    """Return the exit code after a request to stop, by who asked."""
    return INTERRUPTED if by == CTRL_C else STOPPED


def _exit_stopped(stop: Stopped) -> NoReturn:
    if rank() == 0:
        _print(str(stop))
    if _ranks:
        _ranks.leave()
    ignore_stop_signals()
    sys.exit(stop_code(stop.by))


def _code_and_text(err: BaseException) -> tuple[int, str]:
    if isinstance(err, KeyboardInterrupt):
        return INTERRUPTED, "stopped by Ctrl-C"
    if isinstance(err, UnicodeEncodeError) and err.encoding == "utf-8":
        return BAD_INPUT, f"{err.object!a}: expected a name in UTF-8 here; rename it"
    if isinstance(err, UnicodeEncodeError):
        return BAD_INPUT, (
            f"{err.object!a}: this process's locale has only {err.encoding}; LC_ALL=C.UTF-8 or"
            " PYTHONUTF8=1 in the environment shows and finds every name"
        )
    if isinstance(err, ValueError):
        return BAD_INPUT, str(err) or repr(err)
    if isinstance(err, OSError):
        return BAD_INPUT, os_error_text(err)
    return FAILED, f"{type(err).__name__}: {err}"


def _exit_failed(err: BaseException, code: int, text: str, judge: FailureJudge | None) -> NoReturn:
    if not judge and isinstance(err, SettingsError) and local_rank():
        # Every rank of this machine found the same problem. The launcher ends all of them after
        # the first one ends, and that must be the one that prints it.
        time.sleep(LAUNCHER_GRACE_S)
        sys.exit(code)
    shown = judge.judge(err, code, text) if judge else text
    unexpected = code == FAILED and shown == text
    if shown and (unexpected or os.environ.get("DEPTHDIST_TRACE")):
        traceback.print_exception(err)
    who = f"[rank {rank()}] " if rank() else ""
    what = "" if code == INTERRUPTED else "error: "
    for line in shown.splitlines():
        _print(f"{what}{who}{line}")
    if judge:
        judge.end()
    sys.exit(code)


def _print(line: str) -> None:
    print(f"{program()}: {line}", file=sys.stderr)
