"""Find and read a camera's intrinsics in the file that lies beside its depth images.

    path = CameraFiles(listing).find("depth/a.png")  # intrinsics.json, K.txt ...
    meta = read_camera(path, (480, 640))  # for geometry.camera.pixel_rays

Understood are JSON, YAML, `key,value` lines and plain matrices of 3x3 or 4x4, with the usual names:
fx fy cx cy, ppx ppy, intrinsic_matrix (Open3D, by columns), camera_matrix and K (ROS). As
everywhere but here, such files count from the middle of pixel (0, 0): column = fx X / Z + cx.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from depthdist.captures.found_files import Listing, plain
from depthdist.captures.path_text import folder_of, folders_above, stem_of
from depthdist.core.errors import BadFile, one_reason
from depthdist.core.files import parse_json
from depthdist.geometry.camera import pinhole

NAMES = (  # in this order, without what joins words
    "depthintrinsics", "depthintrinsic", "intrinsicsdepth", "intrinsicdepth", "depthcamerainfo",
    "depthcamera", "cameradepth", "intrinsics", "intrinsic", "cameraintrinsics", "cameraintrinsic",
    "camerainfo", "cameramatrix", "camera", "camk", "k", "calibration", "ost",
)  # fmt: skip
SPELLINGS = {
    "fx": ("fx", "focalx", "flx", "focallengthx"),
    "fy": ("fy", "focaly", "fly", "focallengthy"),
    "cx": ("cx", "ppx", "principalpointx", "px"),
    "cy": ("cy", "ppy", "principalpointy", "py"),
}
MATRICES = ("intrinsicmatrix", "cameramatrix", "k", "camk", "intrinsics", "intrinsic", "matrix")
WIDTHS = ("width", "imagewidth", "w", "resolutionx")
HEIGHTS = ("height", "imageheight", "h", "resolutiony")
EXPECTED = "expected fx, fy, cx, cy in pixels, or a matrix of 3x3"
MAX_DEPTH = 8  # of objects within objects


class Intrinsics(NamedTuple):
    """A pinhole: pixels count from the middle of the first; size (H, W) where the file has it."""

    fx: float
    fy: float
    cx: float
    cy: float
    size: tuple[int, int] | None = None


class CameraFiles:
    """The files of cameras in a listing, to look up that of a depth image.

    by_words   those of single depth images, by folder and the words of the image's name
    by_folder  the one that counts for a folder and those below it
    """

    def __init__(self, listing: Listing):
        self.by_words = {(folder_of(path), _words(path)): path for path in reversed(listing.tables)}
        ranked = [path for path in listing.tables if plain(stem_of(path)) in NAMES]
        ranked.sort(key=lambda path: NAMES.index(plain(stem_of(path))), reverse=True)
        self.by_folder = {folder_of(path): path for path in ranked}

    def find(self, xyz: str) -> str | None:
        """Return the file of a depth image's camera: its own, its folder's, or one further up."""
        own = self.by_words.get((folder_of(xyz), _words(xyz))) if self.by_words else None
        if own or not self.by_folder:
            return own
        found = (self.by_folder[place] for place in folders_above(xyz) if place in self.by_folder)
        return next(found, None)


def _words(path: str) -> tuple[str, ...]:
    """Return the words of a name but those of camera files: X_Depth_metadata.csv, X_Depth.png."""
    extra = {"metadata", "intrinsics", "intrinsic", "camera", "info"}
    words = re.findall(r"[^\W_]+", stem_of(path).lower())
    return tuple(word for word in words if word not in extra)


def read_camera(path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Return the pinhole of a depth image of `size` (H, W) as a sample's meta; raise BadFile.

    Intrinsics of another size of the same aspect are scaled.
    """
    fx, fy, cx, cy, own_size = read_intrinsics(path)
    if own_size is None or own_size == tuple(size):
        return pinhole(size, fx, fy, cx + 0.5, cy + 0.5)
    scale = size[1] / own_size[1]
    if abs(own_size[0] * scale - size[0]) > 1:
        raise BadFile(
            path,
            f"is of {own_size[0]}x{own_size[1]} pixels, the depth has {size[0]}x{size[1]}; expected"
            " the intrinsics of the depth images",
        )
    return pinhole(size, fx * scale, fy * scale, (cx + 0.5) * scale, (cy + 0.5) * scale)


def read_intrinsics(path: Path) -> Intrinsics:
    """Return the intrinsics that a file holds, raise BadFile if it holds none that can be read."""
    try:
        text = path.read_bytes()
    except OSError as err:
        raise BadFile(path, f"cannot be read ({err.strerror}); {EXPECTED}") from err
    content = _parse(path, text)
    for values in _objects(content):
        found = _pinhole_of(values)
        if found is not None:
            return found
    if "CalibrationInformation" in str(content)[:1000]:
        raise BadFile(
            path,
            "is the calibration of an Azure Kinect itself, in shares of its sensor; expected"
            " Open3D's intrinsic.json, or --intrinsics",
        )
    raise BadFile(path, f"no intrinsics of a camera; {EXPECTED}")


def _parse(path: Path, text: bytes) -> Any:
    """Return what a file holds as objects, lists and numbers; raise BadFile."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            return parse_json(text)
        if suffix in (".yaml", ".yml"):
            return _parse_yaml(text.decode("utf-8-sig"))
        return _parse_lines(text.decode("utf-8-sig"))
    except ValueError as err:
        raise BadFile(path, f"cannot be read as {suffix[1:]} ({one_reason(err)})") from err


def _parse_yaml(text: str) -> Any:
    """Return what YAML holds, also OpenCV's; raise ValueError."""
    import yaml  # takes long

    text = re.sub(r"^%YAML[^\n]*\n", "", text).replace("!!opencv-matrix", "")
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as err:
        raise ValueError(one_reason(err)) from err


def _parse_lines(text: str) -> Any:
    """Return `key,value` lines as an object, or plain numbers as a list."""
    rows = [re.split(r"[\s,;:=]+", line.strip("\ufeff [](){}")) for line in text.splitlines()]
    rows = [[word for word in row if word] for row in rows if any(row)]
    keyed: dict[str, Any] = {}
    numbers: list[float] = []
    for row in rows:
        values = [number for word in row if (number := _number(word)) is not None]
        if len(values) == len(row):
            numbers += values
        elif len(values) == len(row) - 1 == 1:
            keyed.setdefault(row[0], values[0])
        elif values and len(values) == 1:  # Resolution x,1280
            keyed.setdefault("".join(row[:-1]), values[0])
    header = [plain(word) for word in rows[0]] if rows else []
    if not keyed and set(SPELLINGS) <= set(header) and len(numbers) >= len(header):
        return dict(zip(header, numbers))  # a table with a head
    return keyed or {"k": numbers}


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _objects(content: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield every object in what a file holds, those of depth before others; keys are plain."""
    if depth > MAX_DEPTH:
        return
    if isinstance(content, dict):
        values = {plain(str(key)): value for key, value in content.items()}
        yield values
        for key in sorted(values, key=lambda key: ("depth" not in key, key)):
            yield from _objects(values[key], depth + 1)
    elif isinstance(content, list):
        if content and not isinstance(content[0], (dict, list)):
            return
        for value in content:
            yield from _objects(value, depth + 1)


def _pinhole_of(values: dict[str, Any]) -> Intrinsics | None:
    """Return the intrinsics in one object, None where it has none."""
    size = (_first(values, HEIGHTS), _first(values, WIDTHS))
    own_size = (round(size[0]), round(size[1])) if size[0] and size[1] else None
    named = [_first(values, names) for names in SPELLINGS.values()]
    if None in named:
        matrices = (_from_matrix(values[name]) for name in MATRICES if name in values)
        named = list(next(filter(None, matrices), named))
    if any(value is None for value in named):
        return None
    fx, fy, cx, cy = (float(value) for value in named if value is not None)
    good = fx > 0 and fy > 0 and (own_size is None or min(own_size) > 0)
    return Intrinsics(fx, fy, cx, cy, own_size) if good else None


def _first(values: dict[str, Any], names: tuple[str, ...]) -> float | None:
    """Return the first of these values that is a number."""
    return next((values[name] for name in names if _is_number(values.get(name))), None)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 1e9 and math.isfinite(value)


def _from_matrix(value: Any) -> tuple[float, float, float, float] | None:
    """Return fx, fy, cx, cy of 3x3, 3x4 or 4x4 numbers by rows or columns, or of four numbers."""
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        return None
    if value and all(isinstance(row, list) for row in value):
        value = [number for row in value for number in row]
    if len(value) not in (4, 9, 12, 16) or not all(map(_is_number, value)):
        return None
    if len(value) == 4:
        fx, fy, cx, cy = value
        return fx, fy, cx, cy
    width = 3 if len(value) == 9 else 4
    place = [row * width + column for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))]
    if len(value) != 12 and not value[place[2]] and not value[place[3]]:  # by columns
        place[2:] = [2 * width, 2 * width + 1]
    fx, fy, cx, cy = (value[i] for i in place)
    return fx, fy, cx, cy
