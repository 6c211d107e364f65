"""A machine that is gone without a word leaves ssh here, which waits for it for hours.

`deepspeed --hostfile` starts the ranks of each machine by pdsh and ssh, and ends when all of these
have ended. ssh notices by itself only where ServerAliveInterval is set.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import psutil

from depthdist.distributed.launcher_watch import world_info


def end_shells_to(host: str) -> None:
    """End the ssh to a lost machine that started this launch's ranks there; only those.

    Does nothing where this process was not started by DeepSpeed's launcher, or where the launch was
    typed on another machine.
    """
    mine = _launch()
    if not mine:
        return
    wanted = _addresses(host)
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        with suppress(psutil.Error):
            words = process.info["cmdline"] or []
            if process.info["name"] != "ssh" or mine not in " ".join(words):
                continue
            if process.info["uids"].real == os.getuid() and any(
                _addresses(word) & wanted for word in _targets(words)
            ):
                process.terminate()


def _launch() -> str:
    """Return what this launch's command lines hold and no other's, "" without such a launcher."""
    with suppress(psutil.Error):
        for parent in psutil.Process().parents():
            if found := world_info(parent.cmdline()):
                return found
    return ""


def _targets(words: list[str]) -> list[str]:
    """Return the words of an ssh command line that may name its machine."""
    first = next((i for i, word in enumerate(words) if " " in word or ";" in word), len(words))
    return [word.rpartition("@")[2] for word in words[1:first] if not word.startswith("-")]


def _addresses(host: str) -> set[str]:
    """Return the name and the addresses that it has."""
    found = {host}
    with suppress(OSError):
        found |= {str(one[4][0]) for one in socket.getaddrinfo(host, None)}
    return found
