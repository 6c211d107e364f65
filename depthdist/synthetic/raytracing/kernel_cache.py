"""Remove compiled kernels that were made from other sources.

numba compares only the file that a function stands in, not those of the functions it calls: after
an edit of `tire_shape.py` the compiled `raycast.py` would still contain the old shape. All kernels
of the package are therefore compiled again whenever any of its sources changes.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@functools.cache
def use_fresh_kernels() -> None:
    """Remove outdated kernels of this package, once per process, before the first is called."""
    remove_stale_kernels(PACKAGE)


def remove_stale_kernels(folder: Path) -> None:
    """Remove numba's index files under `folder` if its sources have changed since.

    The digest of the sources is kept in `folder`/__pycache__/kernels.sha256.
    """
    stamp = folder / "__pycache__" / "kernels.sha256"
    sources = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    digest = hashlib.sha256(sources).hexdigest()
    try:
        if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
            return
        for index in folder.rglob("__pycache__/*.nbi"):
            index.unlink(missing_ok=True)
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(digest, encoding="utf-8")
    except OSError:
        pass  # a folder that cannot be written is not edited either
