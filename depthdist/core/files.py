"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from depthdist.core.errors import CannotWrite

SEEKING = Lock()  # where the system cannot read a file at a place without moving in it


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which takes the place of `folder` on leaving without an error.

    After an error it is removed and `folder` stays as it was. raises CannotWrite where the
    operating system refuses something
    """
    fresh = folder.with_name(folder.name + ".tmp")
    old = folder.with_name(folder.name + ".old")
    try:
        recover_folder(folder)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
    except OSError as err:
        raise CannotWrite(f"{folder}: cannot be written: {err.strerror}") from err
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    try:
        for path in fresh.rglob("*"):
            if path.is_file():
                # Windows syncs only what is open for writing; a copy may be read-only
                with open(path, "r+b" if os.access(path, os.W_OK) else "rb") as file:
                    os.fsync(file.fileno())  # a network's disk may only now say that it is full
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
    except OSError as err:
        recover_folder(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        raise CannotWrite(f"{folder}: cannot be written: {err.strerror}") from err
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put the previous folder back if a crash came between the renames of `replace_folder`."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        os.rename(old, folder)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a small file so that `path` is at every moment absent, the old file or the new one.

    raises CannotWrite, which is a ValueError
    """
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as err:
        raise CannotWrite(f"{path}: cannot be written: {err.strerror}") from err
    finally:
        with suppress(OSError):  # a folder that is gone or read-only has said so above
            unfinished.unlink(missing_ok=True)  # after an error, Ctrl-C included
    sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Add bytes at the end of a file, made where it is missing; raise CannotWrite.

    The file is opened anew each time: one whose folder is gone would be written to nowhere.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            while content:
                content = content[file.write(content) :]
    except OSError as err:
        raise CannotWrite(f"{path}: cannot be written: {err.strerror}") from err


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as its files are."""
    # Windows opens no folders, some network file systems do not sync them: there the system decides
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Return up to `size` bytes of an open file from `offset` on; threads may share the file."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    with SEEKING:  # Windows
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)


def read_into(fd: int, pieces: list[memoryview], offset: int) -> int:
    """Fill buffers one after another from `offset` of an open file on.

    Returns how many bytes were read, fewer than they hold where the file ends.
    """
    done = 0
    while pieces and (num_read := _read_some(fd, pieces, offset + done)):
        done += num_read
        while pieces and num_read >= len(pieces[0]):
            num_read -= len(pieces[0])
            pieces = pieces[1:]
        if pieces:
            pieces = [pieces[0][num_read:], *pieces[1:]]
    return done


def _read_some(fd: int, pieces: list[memoryview], offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, pieces, offset)
    content = read_at(fd, len(pieces[0]), offset)  # Windows, old releases of macOS
    pieces[0][: len(content)] = content
    return len(content)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON with `write_atomic`; numbers that are not finite become null."""
    write_atomic(path, (json.dumps(finite_or_none(content), indent=1) + "\n").encode())


def parse_json(content: str | bytes) -> Any:
    """Return what JSON text holds; of bytes a byte-order mark is skipped and UTF-8 is expected.

    raises ValueError, one line, where it is not JSON, or nested deeper than Python can follow
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None


def finite_or_none(value: Any) -> Any:
    """Return `value` with every number that is not finite, however deep inside, as None."""
    if isinstance(value, dict):
        return {name: finite_or_none(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
