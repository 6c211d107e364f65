"""A lock on a file for one process, also where the file system has no flock.

    with open(path, "a+b") as file, hold(file, path, wait=False):
        ...

flock ends with its process, however that ends. Some file systems (NFS, Lustre, FUSE) do not offer
it; there a file PATH.held is made, which only one process can, and which names it: when that
process is gone, the next one takes the file over. What is not known is whether a process of another
machine still runs: then the file stays, and the error says who holds it.

Machines that share a disk: on NFS flock is a lock of the server, seen by all its clients, unless
they are mounted with nolock or local_lock; on Lustre with the option flock, not with localflock.
Where it is one machine's own, two machines may both get it. So the lock of a folder also names its
holder, which touches it every few seconds: whoever finds it with the name of a process on another
machine looks for longer than that whether it is touched.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from depthdist.core.environment import process_space
from depthdist.core.errors import printable_path

POLL_S = 0.2
TOUCH_S = 4.0  # between two signs of life of a folder's holder
LOOK_S = 3 * TOUCH_S  # for them
LOCK = ".lock"
NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


class Held(BlockingIOError):
    """Another process holds the lock; `holder` says which, "" where that is not known."""

    def __init__(self, holder: str = ""):
        super().__init__(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.holder = holder


@contextmanager
def hold(file: IO[Any], path: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of the open file at `path`.

    wait  for another process that holds it; else Held is raised
    """
    if _flock(file, wait):
        yield  # closing the file ends it
        return
    mark = path.with_name(f"{path.name}.held")
    mine = json.dumps(_me())
    while not _made(mark, mine) and not _took_over(mark, mine):
        if not wait:
            holder = _describe(_read_holder(mark)) or "a process that is not known"
            raise Held(f"{holder}; if it is gone, remove {mark}")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


@contextmanager
def hold_folder(folder: Path, command: str, name: str, file_name: str = LOCK) -> Iterator[None]:
    """Hold a folder that `command` writes to, and calls `name`; it is made if it is not there.

    file_name  of the file in it that is locked; it is made, empty, if it is not there. One with
               another name has a content of its own, and does not name its holder

    raises ValueError, one line, where another process holds it, OSError where it cannot be written
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    try:
        with (
            open(path, "ab") as file,
            hold(file, path, wait=False),
            _naming_me(path) if file_name == LOCK else nullcontext(),
        ):
            yield
    except Held as err:
        holder = err.holder or (_describe(_read_holder(path)) if file_name == LOCK else "")
        who = f" ({holder})" if holder else ""
        raise ValueError(
            f"{printable_path(folder)}: another {command} is writing here{who}; wait for it, or"
            f" take another {name}"
        ) from None


def _flock(file: IO[Any], wait: bool) -> bool:
    """Lock with flock and return True, or False where the file system has none."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Held from None
    except OSError as err:
        if err.errno not in NO_FLOCK:
            raise
        return False
    return True


def _me() -> dict[str, Any]:
    me = {"host": socket.gethostname(), "space": process_space(), "pid": os.getpid()}
    return {**me, "began": began(os.getpid()), "since": time.strftime("%Y-%m-%d %H:%M")}


@contextmanager
def _naming_me(path: Path) -> Iterator[None]:
    """Keep this process's name and signs of life in the lock's file, which it holds.

    raises Held where that has the name of a process on another machine, and is touched
    """
    holder = _read_holder(path)
    if holder and holder.get("space") != process_space() and _is_touched(path, holder):
        raise Held(_describe(holder))
    with suppress(OSError):  # a full disk: the lock is held without a name as well
        path.write_text(json.dumps(_me()), encoding="ascii")
    is_over = threading.Event()

    def touch() -> None:
        while not is_over.wait(TOUCH_S):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        with suppress(OSError):
            os.truncate(path, 0)


def _is_touched(path: Path, holder: dict[str, Any]) -> bool:
    """Look for some seconds whether a process on another machine shows that it holds the lock."""
    print(
        f"{printable_path(path.parent)}: looking if {_describe(holder)} is writing here", flush=True
    )
    first = _touched_at(path)
    until = time.monotonic() + LOOK_S
    while time.monotonic() < until:
        time.sleep(POLL_S)
        if _touched_at(path) != first:
            return True
    return False


def _touched_at(path: Path) -> int:
    with open(path, "rb") as file:  # opened, so that NFS asks its server
        return os.fstat(file.fileno()).st_mtime_ns


def began(pid: int) -> str:
    """Return when a process began, so that another one with its number is not taken for it."""
    with suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = text.rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""


def _made(mark: Path, mine: str) -> bool:
    """Make the file if there is none; whole at once, so that nobody reads half of it."""
    unfinished = mark.with_name(f"{mark.name}.tmp-{os.getpid()}-{time.monotonic_ns()}")
    try:
        unfinished.write_text(mine, encoding="ascii")
        try:
            os.link(unfinished, mark)
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            return _created(mark, mine)
        return True
    finally:
        unfinished.unlink(missing_ok=True)


def _created(mark: Path, mine: str) -> bool:
    try:
        with open(mark, "x", encoding="ascii") as file:
            file.write(mine)
    except FileExistsError:
        return False
    return True


def _took_over(mark: Path, mine: str) -> bool:
    """Take the place of a process of this machine that is gone."""
    try:
        content = mark.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False  # released just now
    if not _is_gone(content):
        return False
    aside = mark.with_name(f"{mark.name}.tmp-{os.getpid()}-{time.monotonic_ns()}")
    with suppress(OSError):
        os.rename(mark, aside)  # only one process can
        if aside.read_text(encoding="ascii", errors="replace") != content:
            os.rename(aside, mark)  # another one had taken over in between
            return False
        aside.unlink()
        return _made(mark, mine)
    return False


def _is_gone(content: str) -> bool:
    """Whether the process that wrote this is known to be gone."""
    try:
        holder = json.loads(content)
        same = holder["space"] == process_space() and holder["host"] == socket.gethostname()
        return bool(same and holder["space"] and began(holder["pid"]) != holder["began"])
    except (ValueError, KeyError, TypeError):
        return False


def _read_holder(path: Path) -> dict[str, Any]:
    """Return what a process has written about itself into a lock's file, {} where nothing is."""
    with suppress(OSError, ValueError):
        holder = json.loads(path.read_text(encoding="ascii"))
        if isinstance(holder, dict):
            return holder
    return {}


def _describe(holder: dict[str, Any]) -> str:
    """Return who holds a lock, for messages; "" where that is not known."""
    if not {"pid", "host"} <= holder.keys():
        return ""
    since = f", since {holder['since']}" if "since" in holder else ""
    return f"process {holder['pid']} on {holder['host']}{since}"
