"""What a reader under search needs: real files of every kind, made once, and copies to damage."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from helpers.commands import command
from helpers.external_tars import index, write
from helpers.runs import make_model, make_shards, train


class Reader(NamedTuple):
    """A reader of one kind of file.

    seeds   good files, given a `Scratch`
    read    reads a damaged one; raises `error`, which commands show as one line, or is content
    is_json whether the file is JSON (a line of it, or all)
    slow    whether one call takes more than 50 ms
    """

    seeds: Callable[["Scratch"], list[bytes]]
    read: Callable[["Scratch", bytes], object]
    error: tuple[type[Exception], ...] | type[Exception] = (ValueError, OSError)
    is_json: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Scratch:
    """A folder with good files of every kind, of which a reader damages its own."""

    folder: Path

    @property
    def shards(self) -> Path:
        """Shards of 9 captures."""
        return _once(self.folder / "data", lambda to: make_shards(to, 9)) / "shards"

    @property
    def tars(self) -> Path:
        """Tars of others, with an index."""
        return _once(self.folder / "tars", lambda to: index(write(to), split="none"))

    @property
    def run(self) -> Path:
        """A run of one epoch, with its evaluation."""
        model = _once(self.folder / "model", make_model)
        run = self.folder / "run"
        if not run.exists():
            assert train(self.shards, run, "--epochs", 1, "--model", model).code == 0
            assert command("launch/evaluate.py", "--run", run).code == 0
        return run

    def model(self) -> Any:
        """The run's network and its record."""
        return _load(self.run / "best")

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir()
        return self.folder / name

    def copy(self, source: Path, name: str) -> Path:
        """A copy of a folder whose files are links to those of `source`."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        return shutil.copytree(source, target, copy_function=os.link)


def _once(folder: Path, make: Callable[[Path], object]) -> Path:
    if not folder.exists():
        make(folder)
    return folder


@cache
def _load(folder: Path) -> Any:
    from depthdist.models.adapter import load_adapter

    return load_adapter(folder)


def replace(path: Path, content: bytes) -> None:
    """Replace a file, which may be a link to another one's content."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
