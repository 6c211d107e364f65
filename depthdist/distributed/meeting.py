"""The ranks come together in one store, before they have a process group.

    met = Meeting(patience_s).wait()
    met.places[2].host, met.store       # a store of this meeting alone

Where one of them fails before it has come, those that wait end with its error
(early_failure.py leaves it), as they do when a process of this machine is gone, or when ssh from
here did not start the ranks of another one. After TELL_AFTER_S seconds a line says which ranks are
missing.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from depthdist.core.command import BAD_INPUT
from depthdist.core.environment import (
    local_rank,
    local_world_size,
    process_space,
    rank,
    world_size,
)
from depthdist.core.errors import one_line
from depthdist.core.stop_signals import leave_if_stopped
from depthdist.distributed.failure_report import FailureReport, is_running, show
from depthdist.distributed.launchers import why_so_many_ranks
from depthdist.distributed.lost_machine import NOT_REACHED, LaunchShells
from depthdist.distributed.network_interface import address_towards, choose_interface

TELL_AFTER_S = 10.0
LOOK_AFTER_S = 2.0  # whether ssh reaches the other machines; a good start is over sooner
MAX_NAMED = 8  # ranks in the line
POLL_S = 0.1
ANSWER_S = 10  # that a store has to answer, once something listens at its port
LINGER_S = 12.0  # that rank 0 serves the store for others to hear of an early failure
WAITING = "before all ranks had come; the same command goes on"
FOREIGN = 2  # attempts at a port where something else listens


class MeetingEnded(Exception):
    """A rank failed before all had come; `report` says which, and why."""

    def __init__(self, report: FailureReport):
        super().__init__(report.text)
        self.report = report


class RankPlace(NamedTuple):
    """Where a rank runs: `space` says what its process id means something in.

    token    of its attempt to meet
    address  of its machine, as seen on the way to rank 0
    """

    token: str
    host: str
    pid: int
    space: str
    address: str


class Met(NamedTuple):
    """All ranks have come: a store of this meeting alone, and where each of them runs."""

    store: Any
    places: list[RankPlace]

    def choose_interface(self, rank: int) -> str:
        """Set the interface on which gloo reaches the other machines; return a line about it."""
        own = self.places[rank]
        others = [place.address for place in self.places if place.space != own.space]
        return choose_interface(own.address, others)


def meeting_address() -> str:
    """Return where the ranks meet, as HOST:PORT."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def agent_serves() -> bool:
    """Return whether torchrun's agent serves the store, not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def open_store() -> Any:
    """Return the launch's store, or None where nobody serves it yet.

    Rank 0 serves it, unless torchrun does. raises RuntimeError where rank 0 cannot have the port,
    or where something else answers there
    """
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = rank() == 0 and not agent_serves()
    limit = timedelta(seconds=ANSWER_S)

    def connect() -> Any:
        return dist.TCPStore(
            address, port, None, is_master, limit, wait_for_workers=False, multi_tenant=True
        )

    if is_master:
        return connect()
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return None
    return _answer_in_time(connect)


def _answer_in_time(connect: Callable[[], Any]) -> Any:
    """Return the store; raise RuntimeError where what listens there is none: it never answers."""
    answer: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answer.put(connect())
        except RuntimeError as err:
            answer.put(err)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=ANSWER_S)
    except queue.Empty:
        raise RuntimeError("something else listens there") from None
    if isinstance(found, RuntimeError):
        raise found
    return found


def early_store(store: Any) -> Any:
    """Return the part of the launch's store where errors before the meeting stand.

    torchrun's store outlives its ranks: after a restart the former ones' errors are not read.
    """
    import torch.distributed as dist

    return dist.PrefixStore(f"early/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


class Meeting:
    """This rank's wait for the others, `patience_s` seconds at most."""

    def __init__(self, patience_s: float):
        self.patience_s = patience_s
        self.began = time.monotonic()
        self.told = False
        self.store: Any = None
        self.name = ""  # of the meeting, once it is known
        self.shells: LaunchShells | None = None
        self.refused = 0
        self.rank = rank()
        self.size = world_size()
        self.me = RankPlace(
            uuid.uuid4().hex,
            socket.gethostname(),
            os.getpid(),
            process_space(),
            address_towards(os.environ["MASTER_ADDR"]),
        )

    def wait(self) -> Met:
        """Return when all ranks have come.

        raises MeetingEnded with the first error of a rank that will not come, Stopped on request,
        RuntimeError where the ranks cannot meet
        """
        import torch.distributed as dist

        while self.store is None:
            self._open()
            self._find_unreached()
            self._pause(missing=list(range(self.size)))
        try:
            name, places = self._gather() if self.rank == 0 else self._join()
        except dist.DistError as err:  # the store ended with rank 0
            raise MeetingEnded(FailureReport.of_gone(0)) from err
        return Met(dist.PrefixStore(name, self.store), places)

    def _open(self) -> None:
        try:
            self.store = open_store()
        except RuntimeError:
            self.refused += 1
            if self.rank == 0 or self.refused == FOREIGN:
                raise

    def _gather(self) -> tuple[str, list[RankPlace]]:
        """Wait for the others as rank 0, which names the meeting.

        When torchrun starts its ranks again, the store holds what the former ones wrote, and every
        node counts restarts by itself: so no meeting bears the name of an earlier one.
        """
        self.name = name = self.me.token
        self.store.set("meeting", name)
        places = {0: self.me}
        while len(places) < self.size:
            for other in range(1, self.size):
                if other not in places and self.store.check([f"{name}/{other}"]):
                    places[other] = RankPlace(*json.loads(self.store.get(f"{name}/{other}")))
            self._look(places)
            self._pause([other for other in range(self.size) if other not in places])
        found = [places[other] for other in range(self.size)]
        self.store.set(f"{name}/all", json.dumps(found))
        return name, found

    def _join(self) -> tuple[str, list[RankPlace]]:
        """Come to the meeting that rank 0 has named, and wait until all have."""
        entered = ""
        first = self.rank - local_rank()
        siblings = range(first, min(first + local_world_size(), self.size))
        places: dict[int, RankPlace] = {}
        while True:
            name = self.store.get("meeting").decode() if self.store.check(["meeting"]) else ""
            self.name = name
            if name and name != entered:
                self.store.set(f"{name}/{self.rank}", json.dumps(self.me))
                entered, places = name, {}
            if name and self.store.check([f"{name}/all"]):
                found = [RankPlace(*one) for one in json.loads(self.store.get(f"{name}/all"))]
                if self.me in found:
                    return name, found
                if not agent_serves():
                    raise RuntimeError(f"another run meets there, of {len(found)} ranks")
            for other in siblings:
                if name and other not in places and self.store.check([f"{name}/{other}"]):
                    places[other] = RankPlace(*json.loads(self.store.get(f"{name}/{other}")))
            self._look(places)
            self._pause([])

    def _look(self, places: dict[int, RankPlace]) -> None:
        """Raise MeetingEnded if a rank has failed, or is gone from this machine."""
        early = early_store(self.store)
        if not early.check(["word"]):
            for other, place in places.items():
                if place.space == self.me.space and not is_running(place.pid):
                    early.compare_set(
                        "word", "", FailureReport.of_gone(other, place.host).to_store()
                    )
                    break
            else:
                self._find_unreached()
                return
        report = FailureReport.from_store(early.get("word"))
        early.set(f"heard/{self.rank}", "")
        if self.rank == 0 and not agent_serves():
            await_heard(early, set(range(1, self.size)) - {report.rank}, LINGER_S)
        raise MeetingEnded(report)

    def _find_unreached(self) -> None:
        """Leave a report for a machine on which ssh from this one has started no rank.

        raises MeetingEnded where that is rank 0's machine: then nobody serves the store
        """
        if local_rank() or time.monotonic() < self.began + LOOK_AFTER_S:
            return
        self.shells = self.shells or LaunchShells()
        for host, ranks in self.shells.find_ended(self.rank):
            text = NOT_REACHED.format(self.me.host, host)
            report = FailureReport(ranks[0], BAD_INPUT, text, host)
            if self.store is None and ranks[0] == 0:
                self.shells.end_launcher()
                raise MeetingEnded(report)
            if self.store is not None and not any(map(self._has_come, ranks)):
                early = early_store(self.store)
                for other in ranks:  # nobody waits for them
                    early.set(f"heard/{other}", "")
                early.compare_set("word", "", report.to_store())
                return

    def _has_come(self, rank: int) -> bool:
        if not self.name or rank == 0:  # which names the meeting
            return bool(self.name)
        return bool(self.store.check([f"{self.name}/{rank}"]))

    def _pause(self, missing: list[int]) -> None:
        leave_if_stopped(WAITING)
        waited = time.monotonic() - self.began
        if waited > self.patience_s:
            raise RuntimeError(f"rank {self.rank} has waited {self.patience_s:g} s")
        if waited > TELL_AFTER_S and not self.told:
            self.told = True
            if line := self._describe_missing(missing):
                show(line)
        time.sleep(POLL_S)

    def _describe_missing(self, missing: list[int]) -> str:
        """Return the line about the ranks that have not come, "" where another rank says it."""
        why = f"{self.size} are expected as {why_so_many_ranks()}"
        if self.rank == 0:
            more = ", ..." if len(missing) > MAX_NAMED else ""
            named = ", ".join(map(str, missing[:MAX_NAMED]))
            return (
                f"waits at {meeting_address()} for {len(missing)} of {self.size} ranks:"
                f" {named}{more}; {why}"
            )
        if self.store is not None or local_rank():
            return ""
        return f"[rank {self.rank}] waits for rank 0 at {meeting_address()}; {why}"


def await_heard(early: Any, ranks: set[int], seconds: float) -> None:
    """Wait until these ranks have heard of the early failure, or so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(early.check([f"heard/{r}"]) for r in ranks):
        time.sleep(POLL_S)


def describe_failed_meeting(err: Exception) -> str:
    """Return the error line where the ranks did not meet."""
    return (
        f"the ranks cannot meet at {meeting_address()}; did every node start, and is another run"
        f" using the port? Give the launcher another --master_port ({one_line(err)})"
    )
