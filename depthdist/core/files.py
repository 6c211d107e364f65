"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from depthdist.core.errors import CannotWrite


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
                with open(path, "rb") as file:
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
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot: there the server decides
            os.fsync(handle)
    finally:
        os.close(handle)


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
