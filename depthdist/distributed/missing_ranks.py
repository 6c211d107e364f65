"""While ranks wait for one another at the start: which are missing, and why so many are expected.

with tell_missing_ranks(rank, size):
    torch.distributed.init_process_group(...)
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from depthdist.core.environment import local_rank
from depthdist.distributed.launchers import why_so_many_ranks

TELL_AFTER_S = 10.0
MAX_NAMED = 8  # ranks in the line


@contextmanager
def tell_missing_ranks(rank: int, size: int) -> Iterator[None]:
    """Print one line if the block still waits after TELL_AFTER_S seconds.

    Rank 0 names those that have not come; elsewhere the first rank of a machine speaks, if it is
    rank 0 that has not.
    """
    met = threading.Event()
    threading.Thread(target=_announce, args=(rank, size, met), daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _announce(rank: int, size: int, met: threading.Event) -> None:
    """Say in the store that this rank is there, and what is missing when it takes long."""
    until = time.monotonic() + TELL_AFTER_S
    store = None
    told = False
    while not met.is_set() and not (store and told):
        store = store or _enter(rank)
        if not told and time.monotonic() > until:
            told = True
            if line := _missing(store, rank, size):
                print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr, flush=True)
        met.wait(0.25)


def _enter(rank: int) -> Any:
    """Return the store of the meeting, or None where nobody serves it yet."""
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection((address, port), timeout=2).close()
        store: Any = dist.TCPStore(
            address,
            port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=5),
        )
        store = dist.PrefixStore("came", store)
        store.set(str(rank), socket.gethostname())
    except (OSError, RuntimeError):
        return None
    return store


def _missing(store: Any, rank: int, size: int) -> str:
    """Return the line about the ranks that have not come, "" where another rank says it."""
    meeting = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    why = f"{size} are expected as {why_so_many_ranks()}"
    if rank == 0:
        missing = [
            str(other) for other in range(1, size) if not store or not _has_come(store, other)
        ]
        if not missing:
            return ""
        more = ", ..." if len(missing) > MAX_NAMED else ""
        named = ", ".join(missing[:MAX_NAMED])
        return f"waits at {meeting} for {len(missing)} of {size} ranks: {named}{more}; {why}"
    if store or local_rank():
        return ""
    return f"[rank {rank}] waits for rank 0 at {meeting}; {why}"


def _has_come(store: Any, rank: int) -> bool:
    try:
        return bool(store.check([str(rank)]))
    except RuntimeError:  # the store ended: the meeting says why
        return True
