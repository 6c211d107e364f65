"""Small disks of their own, which become full or read-only.

with small_disk(tmp_path / "disk") as disk:
    fill(disk)       # not a byte more
    make_room(disk)
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

FILLER = "filler"


@contextmanager
def small_disk(folder: Path, size: str = "64m") -> Iterator[Path]:
    """An empty file system in memory, mounted at `folder`; skips where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder])


def fill(disk: Path, free: int = 0) -> None:
    """Leave so many bytes of room; fewer if a run writes meanwhile."""
    # what did not fit is tried once more when the file is closed
    with suppress(OSError), open(disk / FILLER, "wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - free))


def make_room(disk: Path) -> None:
    (disk / FILLER).unlink()


def make_read_only(disk: Path) -> None:
    """Mount the disk over itself, read-only: a remount is refused while the run's lock is open."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)


def make_writable(disk: Path) -> None:
    subprocess.run(["umount", disk], check=True)
