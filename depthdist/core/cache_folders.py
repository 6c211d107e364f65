"""Folders that libraries keep their caches in, where the usual ones cannot be written.

In a container, or in another user's environment, the package is often read-only, the user has no
home and sometimes not even a name. numba, matplotlib, torch, triton and huggingface_hub each fail
or warn there in a way of their own; the variables that set_cache_folders() sets help all of them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def set_cache_folders() -> None:
    """Set the environment's variables of cache folders, before libraries are imported.

    Nothing is set that is set already. Where no folder can be written, nothing changes: then
    kernels are compiled in each process.
    """
    home = _own_cache()
    base = home or _temporary_cache()
    if not base:
        return
    if not home:
        _set_libraries(base)
    if not os.access(PACKAGE, os.W_OK):
        # numba knows a function's own file only, not those of functions that it calls: other
        # sources, another folder
        os.environ.setdefault("NUMBA_CACHE_DIR", str(base / f"depthdist/kernels-{_version()}"))


def _set_libraries(base: Path) -> None:
    models = Path(os.path.expanduser("~/.cache/huggingface"))
    if models.is_dir():  # read-only, but its models can be loaded
        os.environ.setdefault("HF_HOME", str(models))
    for name, folder in {
        "XDG_CACHE_HOME": "",
        "MPLCONFIGDIR": "matplotlib",
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",  # else torch asks for the user's name
    }.items():
        os.environ.setdefault(name, str(base / folder))


def _own_cache() -> Path | None:
    """Return the user's cache folder if it can be written, or made; else None."""
    named = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(named):  # no home is known
        return None
    folder = Path(named)
    parent = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return folder if os.access(parent, os.W_OK | os.X_OK) else None


def _temporary_cache() -> Path | None:
    """Return a folder in the temporary one that only this user can write; None if there is none.

    What is in it is run: a folder of that name that belongs to somebody else is not used.
    """
    if not hasattr(os, "getuid"):
        return None  # Windows: the user's own folder can be written there
    try:
        folder = Path(tempfile.gettempdir(), f"depthdist-cache-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    ours = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if stat.S_ISDIR(status.st_mode) and ours else None


def _version() -> str:
    """Return a name for the package's sources as they are now."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        status = path.stat()
        found.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode(errors="replace"))
    return found.hexdigest()[:16]
