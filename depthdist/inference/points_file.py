"""Points that a client sends: a .npy file whose header is judged before anything is made of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from depthdist.core.errors import BadFile


def decode_points(name: str, content: bytes, size: tuple[int, int]) -> np.ndarray:
    """Return the array in a .npy file, (H, W) or (H, W, 3); BadFile where it is another.

    name     of the file, for messages
    content  its bytes
    size     height and width of the image
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(file)
    except Exception as err:  # NumPy raises half a dozen types on what is no header
        reason = " ".join(str(err).split())[:120]
        raise BadFile(Path(name), f"cannot be read as a .npy file ({reason})") from err
    expected = (size, (*size, 3))
    rest = len(content) - file.tell()
    if tuple(shape) not in expected or dtype.kind not in "fiu":
        raise BadFile(
            Path(name),
            f"is {dtype} of shape {shape}; expected numbers of shape {expected[0]} or"
            f" {expected[1]}, the image's",
        )
    if rest != dtype.itemsize * int(np.prod(shape)):
        raise BadFile(Path(name), f"holds {rest} bytes behind its header, not those of {shape}")
    array = np.frombuffer(content, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if is_fortran else "C")
