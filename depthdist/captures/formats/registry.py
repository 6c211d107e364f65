"""The formats that files of points and depth are read from: a further one is one more entry."""

from __future__ import annotations

from pathlib import PurePath

from depthdist.captures.formats.depth_image import DEPTH_IMAGE
from depthdist.captures.formats.npy import NPY
from depthdist.captures.formats.npz import NPZ
from depthdist.captures.formats.pcd import PCD
from depthdist.captures.formats.ply import PLY
from depthdist.captures.formats.stored_points import PointFormat
from depthdist.captures.formats.zdf import ZDF
from depthdist.core.errors import BadFile

# where a capture has files of several, the first is taken
FORMATS: tuple[PointFormat, ...] = (NPY, ZDF, NPZ, PCD, PLY, DEPTH_IMAGE)
BY_SUFFIX = {suffix: form for form in FORMATS for suffix in form.suffixes}


def format_of(path: PurePath) -> PointFormat:
    """Return the format of a file by its name, raise BadFile where it is none of FORMATS."""
    form = BY_SUFFIX.get(path.suffix.lower())
    if form is None:
        raise BadFile(str(path), f"no file of points by its name; expected {', '.join(BY_SUFFIX)}")
    return form
