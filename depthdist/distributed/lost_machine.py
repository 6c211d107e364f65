"""The ssh of a launch that was typed here: machines that it does not reach, or that are gone since.

`deepspeed --hostfile` starts the ranks of each machine by pdsh and ssh, and ends when all of these
have ended, however the first one ended. ssh notices a machine that is gone by itself only where
ServerAliveInterval is set.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil

from depthdist.distributed.launcher_watch import (
    WORLD_INFO,
    command_line,
    is_alive,
    is_launcher,
    launch_of,
    program_of,
)

LOOK_S = 1.0  # between two looks at the ssh of a launch
START_S = 3.0  # that pdsh has, from the end of one ssh to the beginning of another one
FAN_OUT = re.compile(r" -f ?(\d+) ")  # of pdsh: how many ssh at a time
NODE_RANK = re.compile(r"--node_rank=(\d+)")
NOT_REACHED = (
    "has not come, and the ssh from {} that starts it has ended: what it said stands above; `ssh {}"
    " true` must work there without a question"
)


class LaunchedMachine(NamedTuple):
    """A machine of a launch by name, and its ranks."""

    host: str
    ranks: list[int]


class LaunchShells:
    """The ssh of this launch to each of its machines; none where it was typed on another one."""

    def __init__(self) -> None:
        self.pdsh = _find_pdsh()
        words = command_line(self.pdsh) if self.pdsh else []
        self.machines = machines_of(words)
        self.fan_out = fan_out_of(words)
        self.ended: dict[int, float] = {}  # machines without ssh by their numbers, and since when
        self.next_look = 0.0

    def find_ended(self, rank: int) -> list[LaunchedMachine]:
        """Return the machines to which there is no ssh any more.

        Those for which pdsh has no ssh yet, as it starts so many at a time, are not among them.

        rank  this one, which came by such an ssh: where that one is not seen, pdsh uses another way
        """
        now = time.monotonic()
        if self.pdsh is None or now < self.next_look:
            return []
        self.next_look = now + LOOK_S
        try:
            running = self.running()
        except psutil.NoSuchProcess:  # the watch of the launchers ends this rank
            return []
        is_seen = any(rank in self.machines[n].ranks for n in running)
        numbers = range(len(self.machines)) if is_seen and len(running) < self.fan_out else ()
        self.ended = {n: self.ended.get(n, now) for n in numbers if n not in running}
        return [self.machines[n] for n, since in self.ended.items() if now - since > START_S]

    def running(self) -> dict[int, psutil.Process]:
        """Return each ssh that runs, by the number of its machine.

        raises psutil.NoSuchProcess where pdsh itself is gone
        """
        found = {}
        for shell in self.pdsh.children() if self.pdsh else ():
            number = NODE_RANK.search(" ".join(command_line(shell)))
            if number and is_alive(shell):
                found[int(number[1])] = shell
        return found

    def end_launcher(self) -> None:
        """Ask DeepSpeed's launcher, which runs pdsh, to end all ranks."""
        with suppress(psutil.NoSuchProcess):
            above = self.pdsh.parent() if self.pdsh else None
            if above and is_launcher(command_line(above)):
                above.terminate()


def machines_of(words: Sequence[str]) -> list[LaunchedMachine]:
    """Return the machines of a launch by the command line of pdsh, as DeepSpeed numbers them."""
    found: list[LaunchedMachine] = []
    first = 0
    for word in [word for word in words if word.startswith(WORLD_INFO)][:1]:
        slots_of = json.loads(base64.urlsafe_b64decode(word.removeprefix(WORLD_INFO)))
        for host, slots in slots_of.items():
            found.append(LaunchedMachine(host, list(range(first, first + len(slots)))))
            first += len(slots)
    return found


def fan_out_of(words: Sequence[str]) -> int:
    """Return how many ssh pdsh runs at a time, by its command line; 0 where that does not say."""
    options, _, _ = " ".join(words).partition(WORLD_INFO)
    return int([0, *FAN_OUT.findall(options)][-1])  # the last one counts


def end_shell_to(rank: int) -> None:
    """End the ssh of this launch to the lost machine that this rank was on.

    Does nothing where this process was not started by DeepSpeed's launcher, or where the launch was
    typed on another machine.
    """
    shells = LaunchShells()
    of_rank = [n for n, machine in enumerate(shells.machines) if rank in machine.ranks]
    with suppress(psutil.NoSuchProcess):
        for number, shell in shells.running().items():
            if number in of_rank:
                shell.terminate()


def _find_pdsh() -> psutil.Process | None:
    """Return the pdsh of this machine that reaches those of this launch."""
    mine = {launch for p in psutil.Process().parents() if (launch := launch_of(command_line(p)))}
    for process in psutil.process_iter() if mine else ():
        words = command_line(process)
        if program_of(words)[0] != "pdsh" or launch_of(words) not in mine:
            continue
        above = process.parent()
        # else it is a copy that becomes an ssh
        if above is None or program_of(command_line(above))[0] != "pdsh":
            return process
    return None
