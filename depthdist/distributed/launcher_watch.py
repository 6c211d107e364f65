"""End a rank whose launcher is gone: `kill -9 deepspeed` would else leave it at work, unseen.

    watch_launchers()     # a thread; a request to stop once a launcher of this rank has vanished

A rank's launchers are the processes above it that run `deepspeed`, `depthdist train`, `torchrun`,
or their modules; with --hostfile also the pdsh of this machine that reaches this node. A rank that
none of them started (typed with nohup, a task of srun) is not watched.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import PurePath

import psutil

from depthdist.core.stop_signals import first_parent, note_stop

POLL_S = 1.0  # between two looks
GONE = "the end of its launcher"
LAUNCH = "deepspeed.launcher.launch"  # starts the ranks of one machine
RUNNERS = ("deepspeed", "deepspeed.launcher.runner")  # start LAUNCH on each machine
TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
TRAINING = ("train", "detail", "completion")  # commands of depthdist that run RUNNERS in them
WORLD_INFO = "--world_info="
OF_ONE_LAUNCH = (WORLD_INFO, "--master_addr=", "--master_port=")
SET_BY_LAUNCH = "CROSS_RANK"
SET_BY_LAUNCHERS = (SET_BY_LAUNCH, "TORCHELASTIC_RUN_ID")  # in a rank's environment


def watch_launchers() -> None:
    """Note a request to stop as soon as one of this rank's launchers is gone."""
    launchers = find_launchers()
    if _began_as_orphan(launchers):
        note_stop(GONE)
    elif launchers:
        threading.Thread(target=_watch, args=(launchers,), daemon=True).start()


def find_launchers() -> list[psutil.Process]:
    """Return the launchers of this process that can be seen here."""
    found = [p for p in psutil.Process().parents() if is_launcher(command_line(p))]
    mine = {launch for process in found if (launch := launch_of(command_line(process)))}
    for process in psutil.process_iter() if mine else ():
        words = command_line(process)
        if program_of(words)[0] == "pdsh" and launch_of(words) in mine:
            above = [p for p in _parents(process) if is_launcher(command_line(p))]
            found += [p for p in (process, *above) if p not in found]
    return found


def is_launcher(words: Sequence[str]) -> bool:
    """Return whether a command line is one that starts ranks and lives as long as they do."""
    name, others = program_of(words)
    if name == "depthdist":
        return bool(others) and others[0] in TRAINING
    return name in (LAUNCH, *RUNNERS, *TORCHRUN)


def program_of(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the program that a command line runs, without Python itself, and its arguments.

    It is a name without its folder, or of `python -m` the module.
    """
    if not words:
        return "", ()
    if not PurePath(words[0]).name.startswith("python"):
        return PurePath(words[0]).name, words[1:]
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word == "-m" and rest:
            return rest[0], rest[1:]
        if word in ("-X", "-W") and rest:
            rest.pop(0)
        elif not word.startswith("-"):
            return PurePath(word).name, rest
    return "", ()


def launch_of(words: Sequence[str]) -> tuple[str, ...]:
    """Return which launch DeepSpeed's launcher is of, by its command line or that of pdsh.

    Two launches at a time on the same machines have different ports. () where it is of none
    """
    if not any(word.startswith(WORLD_INFO) for word in words):
        return ()
    named = [[word for word in words if word.startswith(name)] for name in OF_ONE_LAUNCH]
    return tuple(found[0] for found in named if found)


def is_alive(process: psutil.Process) -> bool:
    """Return whether it runs; a zombie is only what is left until its parent looks."""
    try:
        ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return process.is_running() and process.status() not in ended
    except psutil.NoSuchProcess:
        return False


def _watch(launchers: list[psutil.Process]) -> None:
    while all(map(is_alive, launchers)):
        time.sleep(POLL_S)
    note_stop(GONE)


def _began_as_orphan(launchers: Sequence[psutil.Process]) -> bool:
    """Return whether a launcher was gone before anyone could look at it.

    This rank has another parent since its first statement; or of DeepSpeed's two launchers the one
    below is gone, and the other one has adopted this rank; or the one below has a new parent: one
    of another session, though it has not begun a session itself.
    """
    if os.getppid() != first_parent() and any(name in os.environ for name in SET_BY_LAUNCHERS):
        return True
    names = [program_of(command_line(process))[0] for process in launchers]
    if names and LAUNCH not in names and SET_BY_LAUNCH in os.environ:
        return True
    for process, name in zip(launchers, names, strict=True):
        if name == LAUNCH and _session(process.pid) not in (process.pid, _session(process.ppid())):
            return True
    return False


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:  # of another container, or gone
        return 0


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.Error:
        return []


def command_line(process: psutil.Process) -> list[str]:
    """Return a process's command line, [] where it is gone or hidden."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
