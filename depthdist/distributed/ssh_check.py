"""Whether ssh reaches the machines of a launch, before anything is started on one of them."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress

from depthdist.core.errors import one_reason

ANSWER_S = 10  # that a machine has to answer
SLOWEST_S = 15.0  # until the launch goes on without an answer: a login may be slow
SSH_FAILED = 255  # any other exit code is of the command over there


def check_ssh(hosts: Iterable[str]) -> None:
    """Try ssh to each machine, all at once; to none where there is no ssh here.

    raises ValueError, one line, with the machines that are not reached
    """
    deadline = time.monotonic() + SLOWEST_S
    failed: dict[str, str] = {}
    tries = _start_tries(hosts)
    for host, process in tries.items():
        try:
            said = process.communicate(timeout=max(0, deadline - time.monotonic()))[1]
        except subprocess.TimeoutExpired:
            process.kill()
            continue
        if process.returncode == SSH_FAILED:
            failed[host] = one_reason(said.strip().rpartition("\n")[2] or "it does not say why")
    if failed:
        first = next(iter(failed))
        reasons = "; ".join(f"{host} ({why})" for host, why in failed.items())
        raise ValueError(
            f"--hostfile: ssh does not reach {len(failed)} of {len(tries)} machines: {reasons};"
            f" `ssh {first} true` must work from here without a question"
        )


def _start_tries(hosts: Iterable[str]) -> dict[str, subprocess.Popen[str]]:
    more = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    # the master of several connections would stay, and keep the pipe
    how = ["-a", "-x", "-o", "BatchMode=yes", "-o", "ControlMaster=no", *more]
    tries = {}
    for host in hosts:
        with suppress(FileNotFoundError):
            tries[host] = subprocess.Popen(
                ["ssh", *how, "-o", f"ConnectTimeout={ANSWER_S}", host, "true"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
    return tries
