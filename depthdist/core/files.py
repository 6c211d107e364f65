"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill.

    On leaving without an error it takes `folder`'s place, else it goes and `folder` stays.
    """
    fresh, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    recover_folder(folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    for file in (f for f in fresh.rglob("*") if f.is_file()):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put the previous folder back where a crash came between the two renames of `replacing`."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        os.rename(old, folder)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a small file so that `path` is, at every moment, absent, the old one, or the whole new
    one.
    """
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as err:
        unfinished.unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written: {err.strerror}") from err
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files are."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # some network file systems cannot; the names are then as durable as the server makes them
        pass
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that the file is whole or as it was.

    Numbers that are not finite become null, which any reader takes.
    """
    fresh = path.with_name(path.name + ".tmp")
    try:
        fresh.write_text(json.dumps(_finite(content), indent=1) + "\n")
        os.replace(fresh, path)
    except OSError as err:
        raise ValueError(f"{path}: cannot be written: {err.strerror}") from err


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
