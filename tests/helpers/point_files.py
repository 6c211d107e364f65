"""Files of points as other libraries write them: h5py, NumPy, plyfile, pypcd4."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from plyfile import PlyData, PlyElement
from pypcd4 import Encoding, PointCloud

Array = np.ndarray[Any, Any]


def write_zdf(path: Path, rgb: Array, xyz: Array, snr: Array | None = None, **packing: Any) -> None:
    """Write what Zivid's samples without the SDK read: netCDF4's groups, as HDF5."""
    with h5py.File(path, "w") as file:
        file.create_dataset("data/pointcloud", data=xyz, **packing)
        alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
        file.create_dataset("data/rgba_image", data=np.concatenate([rgb, alpha], 2), **packing)
        file.create_dataset("data/contrast", data=xyz[:, :, 2] * 0)
        if snr is not None:
            file.create_dataset("data/snr", data=snr, **packing)


def write_npz(
    path: Path, rgb: Array, xyz: Array, snr: Array | None = None, pack: bool = False
) -> None:
    """Write points, colors and SNR with NumPy."""
    save = np.savez_compressed if pack else np.savez
    save(path, rgb=rgb, xyz=xyz, **({} if snr is None else {"snr": snr}))


def vertices(rgb: Array, xyz: Array, snr: Array | None = None) -> Array:
    """Return (H * W,) records x, y, z, red, green, blue and snr."""
    fields = [*((name, "f4") for name in "xyz"), *((c, "u1") for c in ("red", "green", "blue"))]
    found = np.empty(
        rgb.shape[0] * rgb.shape[1], fields + ([("snr", "f4")] if snr is not None else [])
    )
    for number, (name, _) in enumerate(fields):
        found[name] = (xyz if number < 3 else rgb)[:, :, number % 3].ravel()
    if snr is not None:
        found["snr"] = snr.ravel()
    return found


def write_ply(
    path: Path, rgb: Array, xyz: Array, snr: Array | None = None, says: str = "", **how: Any
) -> None:
    """Write every pixel as a vertex; `says` names rows and columns in comments or obj_info."""
    height, width = rgb.shape[:2]
    lines = {
        "obj_info": {"obj_info": [f"num_cols {width}", f"num_rows {height}"]},
        "comments": {"comments": [f"width {width}", f"height = {height}"]},
        "": {},
    }[says]
    element = PlyElement.describe(vertices(rgb, xyz, snr), "vertex")
    PlyData([element], **lines, **how).write(str(path))


def no_faces() -> PlyElement:
    """The element that PCL writes behind vertices, as VTK wants it."""
    faces = np.empty(0, [("vertex_indices", object)])
    return PlyElement.describe(faces, "face", len_types={"vertex_indices": "u1"})


def write_camera_ply(
    path: Path, rgb: Array, xyz: Array, snr: Array | None = None, **how: Any
) -> None:
    """Write every pixel as a vertex, and the camera whose viewport is the size, as PCL does."""
    names = ("view_px", "focal", "viewportx", "viewporty", "k1", "k2")
    camera = np.zeros(1, [(name, "i4" if name.startswith("viewport") else "f4") for name in names])
    camera["viewporty"], camera["viewportx"] = rgb.shape[:2]
    vertex = PlyElement.describe(vertices(rgb, xyz, snr), "vertex")
    PlyData([vertex, no_faces(), PlyElement.describe(camera, "camera")], **how).write(str(path))


def write_grid_ply(
    path: Path, rgb: Array, xyz: Array, snr: Array | None = None, **how: Any
) -> None:
    """Write the measured pixels as vertices, and a range_grid of all, as PCL and Stanford do."""
    measured = np.isfinite(xyz[:, :, 2]).ravel()
    numbers = np.cumsum(measured) - 1
    grid = np.empty(measured.size, [("vertex_indices", object)])
    for cell, (used, number) in enumerate(zip(measured, numbers)):
        grid["vertex_indices"][cell] = np.array([number] if used else [], np.int32)
    elements = [
        PlyElement.describe(vertices(rgb, xyz, snr)[measured], "vertex"),
        no_faces(),
        PlyElement.describe(grid, "range_grid", len_types={"vertex_indices": "u1"}),
    ]
    info = [f"num_cols {rgb.shape[1]}", f"num_rows {rgb.shape[0]}"]
    PlyData(elements, obj_info=info, **how).write(str(path))


def write_pcd(
    path: Path,
    rgb: Array,
    xyz: Array,
    snr: Array | None = None,
    encoding: Encoding = Encoding.BINARY,
    color: type = np.float32,
    organised: bool = True,
) -> None:
    """Write a cloud with packed colors, as numbers or in the bits of a float."""
    packed = (rgb.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(2, dtype=np.uint32)
    columns = [*xyz.reshape(-1, 3).T, packed.ravel().view(color)]
    columns += [] if snr is None else [snr.ravel()]
    names = ("x", "y", "z", "rgb", "snr")[: len(columns)]
    types = (np.float32, np.float32, np.float32, color, np.float32)[: len(columns)]
    cloud = PointCloud.from_points(columns, names, types)
    if organised:
        cloud.metadata.height, cloud.metadata.width = rgb.shape[:2]
    cloud.save(path, encoding)


Writer = Callable[..., None]
# by a name that ends in the suffix; each takes path, rgb, xyz and, where there is one, snr
WRITERS: dict[str, Writer] = {
    "plain.zdf": write_zdf,
    "packed.zdf": partial(write_zdf, compression="gzip", shuffle=True),
    "plain.npz": write_npz,
    "packed.npz": partial(write_npz, pack=True),
    "little.ply": partial(write_ply, says="obj_info", byte_order="<"),
    "big.ply": partial(write_ply, says="comments", byte_order=">"),
    "ascii.ply": partial(write_ply, says="obj_info", text=True),
    "camera.ply": partial(write_camera_ply, byte_order=">"),
    "ascii_camera.ply": partial(write_camera_ply, text=True),
    "grid.ply": partial(write_grid_ply, byte_order="<"),
    "ascii_grid.ply": partial(write_grid_ply, text=True),
    "binary.pcd": write_pcd,
    "ascii.pcd": partial(write_pcd, encoding=Encoding.ASCII, color=np.uint32),
    "packed.pcd": partial(write_pcd, encoding=Encoding.BINARY_COMPRESSED),
}
