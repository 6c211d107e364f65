"""Zivid's `.zdf`: points in mm, colors and SNR, through Zivid's SDK or as plain HDF5.

Where the package `zivid` imports and its SDK reads the file, that is taken. Else a file that is
HDF5 (netCDF4), as Zivid's SDK 1 and its samples without the SDK have it, is read by h5py: the
datasets `data/pointcloud` (H, W, 3) float32 mm, `data/rgba_image` (H, W, 4) uint8 and, where there
is one, `snr` (H, W), in whatever group. A `.zdf` of another inside needs the SDK.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from depthdist.captures.formats.named_arrays import (
    NamedArray,
    NamedArrays,
    read_named_arrays,
    read_named_size,
)
from depthdist.captures.formats.stored_points import PointFormat, StoredPoints, read_head
from depthdist.core.errors import BadFile, one_reason

SIGNATURE = b"\x89HDF\r\n\x1a\n"

Answer = TypeVar("Answer")


def read_zdf(path: Path, content: bytes) -> StoredPoints:
    """Return the points in mm, colors and SNR of a `.zdf` file; raise BadFile."""
    is_hdf5 = content.startswith(SIGNATURE)
    frame = _open_frame(path, is_hdf5)
    if frame is None:
        return _answer(path, BytesIO(content), read_named_arrays)._replace(unit_mm=1.0)
    with frame, frame.point_cloud() as cloud:
        return StoredPoints(
            cloud.copy_data("xyz"),
            rgb=np.ascontiguousarray(_copy_colors(cloud)[:, :, :3]),
            snr=cloud.copy_data("snr"),
            unit_mm=1.0,
        )


def read_zdf_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of the points of a `.zdf` file; raise BadFile."""
    if read_head(path, len(SIGNATURE)) == SIGNATURE:
        return _answer(path, path, read_named_size)
    frame = _open_frame(path, is_hdf5=False)
    assert frame is not None, "without the SDK there was an error"
    with frame, frame.point_cloud() as cloud:
        return cloud.height, cloud.width


# ---------------------------------------------------------------------------------------- the SDK


@cache
def _start_sdk() -> tuple[Any, Any] | str:
    """Return the package `zivid` and its application, which ends it, or why there is none."""
    try:
        import zivid

        return zivid, zivid.Application()
    except ImportError:
        return "the package zivid is not installed"
    except Exception as err:  # no graphics card, no driver, ...: RuntimeError
        return f"Zivid's SDK does not start: {one_reason(err)}"


def _open_frame(path: Path, is_hdf5: bool) -> Any:
    """Return the SDK's frame of a file, None where it is to be read as HDF5.

    raises BadFile where neither can be
    """
    sdk = _start_sdk()
    reason = sdk if isinstance(sdk, str) else ""
    if not isinstance(sdk, str):
        try:
            return sdk[0].Frame(path)
        except Exception as err:  # RuntimeError
            reason = f"Zivid's SDK says: {one_reason(err)}"
    if is_hdf5:
        return None
    raise BadFile(path, f"is no HDF5 file, and {reason}; expected a .zdf file of a Zivid")


def _copy_colors(cloud: Any) -> np.ndarray:
    """Return the colors (H, W, 4) uint8 of the SDK's point cloud."""
    try:
        return cloud.copy_data("rgba_srgb")
    except ValueError:  # before SDK 2.14 it was called
        return cloud.copy_data("rgba")


# ------------------------------------------------------------------------------------------- HDF5


def _answer(
    path: Path, file: Path | IO[bytes], ask: Callable[[Path, NamedArrays], Answer]
) -> Answer:
    """Return what `ask` makes of the datasets of an HDF5 file; raise BadFile."""
    import h5py

    try:
        with h5py.File(file, "r") as root:
            names: list[str] = []
            root.visititems(
                lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None
            )
            return ask(path, NamedArrays(names, lambda name: _open_dataset(root[name])))
    except BadFile:
        raise
    except Exception as err:  # h5py raises OSError, KeyError, RuntimeError, ValueError ...
        raise BadFile(path, f"not a .zdf file that can be read ({one_reason(err)})") from err


def _open_dataset(dataset: Any) -> NamedArray:
    return NamedArray(dataset.shape or (), dataset.dtype, lambda: dataset[()])


ZDF = PointFormat("Zivid", (".zdf",), read_zdf, read_zdf_size, has_rgb=True)
