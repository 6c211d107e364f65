"""Captures of depthdist.synthetic with what no camera knows: exact depth, grooves, painted treads.

stems = list_stems(Path("data/held_out"))
capture = read_truth(Path("data/held_out"), stems[0])
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from depthdist.captures.readers import read_rgb, read_xyz
from depthdist.core.errors import BadFile
from depthdist.geometry.camera import pinhole, pixel_rays
from depthdist.synthetic.capture_files import read_folder_settings
from depthdist.synthetic.command import paths

SETTINGS_FILE = "tires.json"
END_OF_TRUTH = "_truth.npz"
MAY_DIFFER = "groove_depth"  # the setting that scales the grooves of the same scene
Array = np.ndarray


class CaptureTruth(NamedTuple):
    """What is known of one capture.

    exact_mm   (H, W) float64: depth without the camera's errors, NaN where a ray hits nothing
    camera_mm  (H, W) float64: what the camera measured, NaN where it did not
    groove     (H, W) uint16: the groove seen there, floor or wall, 0 for none
    painted    (H, W) uint16: the groove that is painted on there, without relief, 0 for none
    rays       (H, W, 2): X / Z and Y / Z
    """

    exact_mm: Array
    camera_mm: Array
    groove: Array
    painted: Array
    rays: Array

    @property
    def mask(self) -> Array:
        """(H, W) bool: where the camera measured something that is there."""
        return np.isfinite(self.camera_mm) & np.isfinite(self.exact_mm)


def list_stems(folder: Path) -> list[str]:
    """Return the stems of the captures that have a truth; raise ValueError if there is none."""
    found = sorted(path.name for path in (folder / "truth").glob(f"*{END_OF_TRUTH}"))
    if not found or not (folder / SETTINGS_FILE).is_file():
        raise ValueError(
            f"{folder}: no captures with their truth: expected a folder with {SETTINGS_FILE} and"
            " truth/, as `python -m depthdist.synthetic` writes"
        )
    return [name.removesuffix(END_OF_TRUTH) for name in found]


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings that a folder of captures was rendered with."""
    return read_folder_settings(folder / SETTINGS_FILE, "settings") or {}


def check_same_scenes(folder: Path, other: Path) -> None:
    """Raise ValueError if two folders do not show the same scenes, but for the grooves' depth."""
    mine = read_settings(folder)
    theirs = read_settings(other)
    names = sorted({*mine, *theirs} - {MAY_DIFFER})
    differences = [
        f"{name} {theirs.get(name)}, not {mine.get(name)}"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]
    if not differences and list_stems(folder) != list_stems(other):
        differences = ["not the same captures"]
    if differences:
        raise ValueError(
            f"{other}: not the scenes of {folder} ({'; '.join(differences)}): render them with the"
            " same settings, and --groove-depth 0.5"
        )


def read_image(folder: Path, stem: str) -> Array:
    """Return the image (H, W, 3) uint8 of a capture; raise BadFile."""
    return read_rgb(paths(folder, stem)["rgb"])


def read_truth(folder: Path, stem: str) -> CaptureTruth:
    """Return what is known of a capture; raise BadFile if a file is missing or not as expected."""
    files = paths(folder, stem)
    camera_mm = read_xyz(files["xyz"])[..., 2].astype(np.float64)
    size = camera_mm.shape
    nothing = np.zeros(size, np.uint16)
    try:
        with np.load(files["truth"], allow_pickle=False) as truth:
            exact_mm = truth["z"].astype(np.float64)
            groove = truth["groove"]
            # captures of before there were painted treads have none
            painted = truth.get("painted", nothing)
            k = truth["K"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise BadFile(files["truth"], f"not a capture's truth ({err})") from None
    if {exact_mm.shape, groove.shape, painted.shape} != {size}:
        raise BadFile(
            files["truth"], f"z is {exact_mm.shape}, groove {groove.shape}; the points are {size}"
        )
    rays = pixel_rays(pinhole(size, k[0, 0], k[1, 1], k[0, 2], k[1, 2]), size)
    if rays is None:
        raise BadFile(files["truth"], f"K is no pinhole's: {k.tolist()}")
    return CaptureTruth(exact_mm, camera_mm, groove, painted, rays)
