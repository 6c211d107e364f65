"""A lock on a file for one process, also where the file system has no flock.

    with open(path, "a+b") as file, hold(file, path, wait=False):
        ...

flock ends with its process, however that ends. Some file systems (NFS, Lustre, FUSE) do not offer
it; there a file PATH.held is made, which only one process can, and which names it: when that
process is gone, the next one takes the file over. What is not known is whether a process of another
machine still runs: then the file stays, and the error says who holds it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from depthdist.core.errors import printable_path

POLL_S = 0.2
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
            raise Held(_describe(mark))
        time.sleep(POLL_S)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


@contextmanager
def hold_folder(folder: Path, command: str, name: str, file_name: str = ".lock") -> Iterator[None]:
    """Hold a folder that `command` writes to, and calls `name`; it is made if it is not there.

    file_name  of the file in it that is locked; it is made, empty, if it is not there

    raises ValueError, one line, where another process holds it, OSError where it cannot be written
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    try:
        with open(path, "ab") as file, hold(file, path, wait=False):
            yield
    except Held as err:
        who = f" ({err.holder})" if err.holder else ""
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
    me = {"host": socket.gethostname(), "space": _space(), "pid": os.getpid()}
    return {**me, "began": began(os.getpid())}


def _space() -> str:
    """Return a name for what process ids mean something in: this machine, this container."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


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
        same = holder["space"] == _space() and holder["host"] == socket.gethostname()
        return bool(same and holder["space"] and began(holder["pid"]) != holder["began"])
    except (ValueError, KeyError, TypeError):
        return False


def _describe(mark: Path) -> str:
    try:
        holder = json.loads(mark.read_text(encoding="ascii"))
        who = f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "a process that is not known"
    return f"{who}; if it is gone, remove {mark}"
