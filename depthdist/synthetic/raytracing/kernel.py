"""`@kernel`: a function compiled by numba, kept on disk for the next process, and compiled anew
when any source changes.

numba looks only at the file a function stands in, not at those it calls: an edit of `tread.py`
would leave the old shape compiled into `raycast.py`. So what is kept goes when the sources of this
package are no longer the ones it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from numba import njit


def remove_stale_kernels(folder: Path) -> None:
    """Remove numba's index files under `folder` unless they were made from the sources that stand
    there now.
    """
    stamp = folder / "__pycache__" / "kernels.sha256"
    now = hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    ).hexdigest()
    try:
        if not stamp.exists() or stamp.read_text() != now:
            for index in stamp.parent.glob("*.nbi"):
                index.unlink(missing_ok=True)
            stamp.parent.mkdir(exist_ok=True)
            stamp.write_text(now)
    except OSError:
        pass  # a folder that cannot be written is not edited either


remove_stale_kernels(Path(__file__).parent)


def kernel(function: Callable) -> Callable:
    """`function`, compiled; float64 as written (no fast math), division by zero as in NumPy."""
    return njit(cache=True, nogil=True, error_model="numpy")(function)
