"""DeepSpeed, imported without a warning: it must be told where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from depthdist.core.environment import has_usable_gpu
from depthdist.core.imports import importing
from depthdist.core.nvidia_driver import check_driver
from depthdist.core.stop_signals import BEFORE_TRAINING, leave_if_stopped
from depthdist.distributed.launcher_process import (
    KILLED,
    LauncherProcess,
    adopt_orphans,
    describe_signal,
)
from depthdist.distributed.signal_relay import SignalRelay
from depthdist.distributed.ssh_check import check_ssh

SIGNALS = 256 - 65  # exit codes above it are 256 less the signal that ended a rank
EXPORTED = ("DEPTHDIST_", "GLOO_", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_")
"""How variables begin that other machines' ranks get too, beside those that DeepSpeed sends."""
SSH_KEEPS_ALIVE = "-o ServerAliveInterval=15 -o ServerAliveCountMax=3"


def require_linux() -> None:
    """Raise ValueError where DeepSpeed does not run."""
    if not sys.platform.startswith("linux"):
        raise ValueError(
            f"training needs Linux, and this is {sys.platform}: on Windows WSL 2 is one; predicting"
            " and exporting work here"
        )


def load_deepspeed() -> Any:
    """Return the module deepspeed; nothing else imports it.

    It reads DS_ACCELERATOR while it is imported, and prints a warning where that is not set and
    it finds no GPU. raises ValueError where there is a GPU that PyTorch cannot use
    """
    require_linux()
    if not has_usable_gpu():
        check_driver()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with importing():
        import deepspeed

    return deepspeed


def accelerator() -> Any:
    """Return DeepSpeed's accelerator; "cpu" where torch sees no GPU."""
    return load_deepspeed().accelerator.get_accelerator()


def run_launcher(words: list[str], hostfile: Path | None = None) -> None:
    """Run DeepSpeed's launcher in this process, as the command `deepspeed` does, but silently.

    It ends the process with the exit code of the first rank that failed, with 128 more than the
    signal's number where one ended that rank or the launcher. SIGTERM, SIGUSR1 and Ctrl-C are
    passed on to the ranks, which save and end with 75 or 130, and so does this process. With a
    hostfile DeepSpeed itself takes SIGTERM and Ctrl-C, ssh notices a machine that is gone, and the
    ranks get the variables of EXPORTED too.

    hostfile  that words name, if they do
    raises    Stopped after such a signal where no rank was started yet; ValueError where ssh does
              not reach a machine of the hostfile
    """
    os.environ.setdefault("PDSH_SSH_ARGS_APPEND", SSH_KEEPS_ALIVE)
    load_deepspeed()
    from deepspeed.launcher import runner

    if hostfile:
        check_ssh(runner.fetch_hostfile(hostfile))
    runner.EXPORT_ENVS = [*runner.EXPORT_ENVS, *EXPORTED]
    launcher = LauncherProcess()
    runner.subprocess = launcher.in_place_of(subprocess)
    adopt_orphans()
    SignalRelay(launcher).start()
    leave_if_stopped(BEFORE_TRAINING)
    try:
        runner.main(["--log_level=critical", *words])  # ranks have said their errors themselves
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > SIGNALS:
            print(f"a process was ended by {describe_signal(256 - end.code)}", file=sys.stderr)
            sys.exit(KILLED + 256 - end.code)
        raise
    launcher.exit_if_killed()
