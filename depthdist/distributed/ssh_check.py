"""Whether ssh reaches the machines of a hostfile, before anything is started on one of them.

check = SshCheck(hostfile)    # tries all at once, while the caller does other things
check.wait()                  # ValueError, one line, with those that are not reached
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from depthdist.core.errors import one_line

ANSWER_S = 10  # that a machine has to answer
SLOWEST_S = 15.0  # until the launch goes on without an answer: a login may be slow
SSH_FAILED = 255  # any other exit code is of the command over there


class SshCheck:
    """Tries ssh to each machine of a hostfile; to none where there is no ssh here."""

    def __init__(self, hostfile: Path):
        self.tries: dict[str, subprocess.Popen[str]] = {}
        self.deadline = time.monotonic() + SLOWEST_S
        more = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
        # the master of several connections would stay, and keep the pipe
        how = ["-a", "-x", "-o", "BatchMode=yes", "-o", "ControlMaster=no", *more]
        for host in hosts_of(hostfile):
            with suppress(FileNotFoundError):
                self.tries[host] = subprocess.Popen(
                    ["ssh", *how, "-o", f"ConnectTimeout={ANSWER_S}", host, "true"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )

    def wait(self) -> None:
        """Wait for the answers; raise ValueError, one line, with the machines not reached."""
        failed: dict[str, str] = {}
        for host, process in self.tries.items():
            try:
                said = process.communicate(timeout=max(0, self.deadline - time.monotonic()))[1]
            except subprocess.TimeoutExpired:
                process.kill()
                continue
            if process.returncode == SSH_FAILED:
                failed[host] = one_line(said.strip().rpartition("\n")[2] or "it does not say why")
        if failed:
            first = next(iter(failed))
            reasons = "; ".join(f"{host} ({why})" for host, why in failed.items())
            raise ValueError(
                f"--hostfile: ssh does not reach {len(failed)} of {len(self.tries)} machines:"
                f" {reasons}; `ssh {first} true` must work from here without a question"
            )


def hosts_of(hostfile: Path) -> list[str]:
    """Return the machines of a hostfile, of lines such as `node1 slots=8`."""
    lines = hostfile.read_text(encoding="utf-8").splitlines()
    words = [line.partition("#")[0].split() for line in lines]
    return list(dict.fromkeys(found[0] for found in words if found))
