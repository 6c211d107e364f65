"""A folder of rank 0's that all ranks read, also those of machines that do not have its disk.

with share_folder(run, "run folder", world) as place:
    place.bring("best")                  # rank 0's newest; every rank calls it
    load_adapter(place.path / "best")    # the same files on every rank

Rank 0 leaves a file in the folder, and each rank says whether it sees it. Ranks that do not never
look into a folder of that name on their own disk: what is there is of another run. The first of
them on each machine keeps a copy of what is brought, in a temporary folder that goes at the end.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from depthdist.core.files import replace_folder, write_atomic
from depthdist.distributed.process_group import (
    World,
    broadcast_from_rank_0,
    gather_from_all_ranks,
)
from depthdist.distributed.tensor_exchange import broadcast_file

LOOK_S = 3.0  # seconds in which a rank looks for what another machine has just written
POLL_S = 0.1


@dataclass(frozen=True)
class SharedFolder:
    """Where this rank finds rank 0's folder.

    path     the folder itself, or a copy of what was brought
    writers  by rank, the first of the ranks that find it at the same place
    rank     this one
    """

    path: Path
    writers: tuple[int, ...]
    rank: int

    @classmethod
    def alone(cls, path: Path) -> SharedFolder:
        """Return that of a single rank."""
        return cls(path, (0,), 0)

    def __truediv__(self, name: str) -> SharedFolder:
        """Return a folder in it."""
        return replace(self, path=self.path / name)

    @property
    def is_everybodys(self) -> bool:
        """Whether all ranks have the same disk."""
        return not any(self.writers)

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes at `path` for all that read there."""
        return self.writers[self.rank] == self.rank

    @property
    def mates(self) -> list[int]:
        """The ranks that read at `path`, this one among them."""
        return [rank for rank, first in enumerate(self.writers) if first == self.writers[self.rank]]

    @property
    def least_mates(self) -> int:
        """Number of ranks that read at the same place, where they are fewest."""
        return min(self.writers.count(first) for first in set(self.writers))

    def bring(self, name: str) -> None:
        """Let every rank find the folder `name` in it as it is on rank 0; every rank calls it.

        raises CannotWrite where a machine has no room for its copy
        """
        mine = []
        if self.rank == 0 and not self.is_everybodys:
            paths = sorted((self.path / name).rglob("*"))
            mine = [str(path.relative_to(self.path)) for path in paths if path.is_file()]
        names = broadcast_from_rank_0(mine)  # once rank 0 has written it
        if self.is_everybodys:
            return
        if self.is_writer and self.rank:
            with replace_folder(self.path / name) as fresh:
                for file_name in names:
                    self._write(self.path / file_name, fresh / Path(file_name).relative_to(name))
        else:
            for file_name in names:
                for _ in broadcast_file(self.path / file_name):
                    pass  # has it already, or another rank of this machine takes it
        gather_from_all_ranks(None)  # the copies are whole

    def _write(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            for piece in broadcast_file(source):
                file.write(piece)


@contextmanager
def share_folder(folder: Path, what: str, world: World) -> Iterator[SharedFolder]:
    """Yield where each rank finds `folder`, which is there on rank 0; every rank calls it.

    what  it is, for the line that rank 0 prints where some do not see it
    """
    if world.size == 1:
        yield SharedFolder.alone(folder)
        return
    seers = _who_sees(folder, world)
    machines = [None if seen else machine for seen, _, machine in seers]
    writers = tuple(machines.index(machine) for machine in machines)
    place = SharedFolder(folder, writers, world.rank)
    if place.is_everybodys:
        yield place
        return
    if world.rank == 0:
        print(_describe(folder, what, seers), flush=True)
    copy = tempfile.mkdtemp(prefix="depthdist-") if place.is_writer and world.rank else ""
    copies = gather_from_all_ranks(copy)
    path = copies[writers[world.rank]]
    try:
        yield SharedFolder(Path(path) if path else folder, writers, world.rank)
        gather_from_all_ranks(None)  # nobody reads there any more
    finally:
        if copy:
            shutil.rmtree(copy, ignore_errors=True)


def _who_sees(folder: Path, world: World) -> list[tuple[bool, str, str]]:
    """Return for each rank whether it sees rank 0's folder, its host and a name of its machine."""
    content = uuid.uuid4().hex.encode()
    mark = folder / f".seen-{content.decode()}"
    if world.rank == 0:
        write_atomic(mark, content)
    try:
        name, content = broadcast_from_rank_0((mark.name, content))
        sees = world.rank == 0 or _finds(folder / name, content)
        return gather_from_all_ranks((sees, socket.gethostname(), _machine()))
    finally:
        if world.rank == 0:
            mark.unlink(missing_ok=True)


def _finds(path: Path, content: bytes) -> bool:
    """Return whether a file is there with that content, soon."""
    until = time.monotonic() + LOOK_S
    while True:
        for parent in reversed(path.absolute().parents):
            with suppress(OSError):  # opening a folder lets NFS look at the server's again
                os.close(os.open(parent, os.O_RDONLY | os.O_DIRECTORY))
        with suppress(OSError):
            if path.read_bytes() == content:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)


def _machine() -> str:
    """Return a name for what sees the same temporary folder: a machine, a container on it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/mnt')} {os.getuid()}"


def _describe(folder: Path, what: str, seers: list[tuple[bool, str, str]]) -> str:
    hosts = dict.fromkeys(host for seen, host, _ in seers if seen)
    blind = [f"rank {rank} on {host}" for rank, (seen, host, _) in enumerate(seers) if not seen]
    more = f" and {len(blind) - 1} more ranks do not" if len(blind) > 1 else " does not"
    return (
        f"{what:<12} {folder} is on a disk of {', '.join(hosts)} alone ({blind[0]}{more} see it):"
        " rank 0 keeps everything"
    )
