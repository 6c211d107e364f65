"""The images to predict, from files, folders, patterns, raw captures and shards.

Each image is a source that is read only when it is used:

    for source in find_sources(["captures", "more/*.png", "data/tires"], out=Path("predictions")):
        image = source.read()           # raises BadFile if it cannot be read
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from depthdist.captures import readers
from depthdist.captures.flying_pixels import find_flying
from depthdist.captures.found_files import IMAGE_SUFFIXES
from depthdist.captures.layouts import CapturePair, find_captures, holds_image, list_images
from depthdist.captures.read_options import NO_OPTIONS, ReadOptions
from depthdist.captures.readers import read_rgb
from depthdist.core.errors import BadFile, printable_path
from depthdist.core.settings import expand_user
from depthdist.geometry.camera import (
    fit_intrinsics,
    measured_rays,
    pinhole,
    pinhole_from_fov,
    pixel_rays,
)
from depthdist.geometry.image_resizing import resize_nearest

if TYPE_CHECKING:
    from depthdist.data.loader import Loader

T = TypeVar("T")
RESULT = re.compile(r"_((depth|filled)_[\d.]+mm|colour|figure|filled_map)\.png$")


@dataclass
class InputImage:
    """One image, and what is known of its depth.

    rgb       (h, w, 3) uint8: at its full size or, from shards, at the network's input size
    size      (H, W) of the depth to predict
    truth_mm  (H, W) float32 mm, NaN or 0 where nothing was measured; None if there is none
    rays      (H, W, 2) X / Z and Y / Z; None if the camera is not known
    note      why an existing point cloud was not used, "" if it was or if there is none
    fill      whether what was measured is kept and only its holes get depth
    """

    rgb: np.ndarray
    size: tuple[int, int]
    truth_mm: np.ndarray | None = None
    rays: np.ndarray | None = None
    note: str = ""
    fill: bool = False


class ImageSource(NamedTuple):
    """An image to read later.

    name     first part of the names of its results
    origin   where it comes from, for messages
    version  changes whenever the content of its files does
    read     loads the image; raises BadFile
    files    what is read
    shard    whether it is a sample of a shard
    """

    name: str
    origin: str
    version: str
    read: Callable[[], InputImage]
    files: tuple[Path, ...] = ()
    shard: bool = False


def find_sources(
    inputs: list[str], out: Path, options: ReadOptions = NO_OPTIONS
) -> list[ImageSource]:
    """Return every image once, in the order given.

    out      the folder for results: files in it that are named like results are skipped in folders
             and patterns
    options  how the points beside images are read
    raises BadFile or ValueError if an input holds no images
    """
    files: dict[Path, Path] = {}  # resolved path -> path as given
    shards: list[ImageSource] = []
    for text in inputs:
        given = expand_user(text)
        for path in _expand_pattern(text):
            if (path / "index.json").is_file():
                shards += _shard_sources(path)
                continue
            for image in list_images(path):
                chosen = path.is_dir() or holds_image(image)
                if image == given or (chosen and not _is_result(image, out)):
                    files[image.resolve()] = image
    found = _file_sources(files, out, options) + shards
    if not found:
        raise ValueError(
            f"{', '.join(inputs)}: no images beside results of earlier predictions and groove"
            f" labels; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return check_unique_names(found, [source.name for source in found])


def _file_sources(files: dict[Path, Path], out: Path, options: ReadOptions) -> list[ImageSource]:
    paths = list(files.values())
    pairs = find_captures(paths)
    found = []
    for name, (resolved, path) in zip(output_names(paths), files.items()):
        pair = pairs.get(path)
        if pair is not None and _is_depth_result(pair.xyz, name, out):
            pair = None
        read = tuple(dict.fromkeys(p.resolve() for p in pair.files.values())) if pair else ()
        read = read or (resolved,)
        found.append(
            ImageSource(
                name=name,
                origin=printable_path(resolved),
                version="+".join(map(_version, read)),
                read=partial(read_capture, path, pair, options),
                files=read,
            )
        )
    return found


def _expand_pattern(given: str) -> list[Path]:
    """Return the file or folder `given`, or all that it matches if it is a pattern."""
    path = expand_user(given)
    if path.exists() or not glob.has_magic(given):
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise BadFile(path, "no file fits this pattern")
    return [Path(p) for p in found]


def _is_result(path: Path, out: Path) -> bool:
    return path.resolve().parent == out.resolve() and RESULT.search(path.name) is not None


def _is_depth_result(path: Path, name: str, out: Path) -> bool:
    """Return whether `path` is an earlier prediction of the image `name`, not a point cloud."""
    return path.resolve() == out.resolve() / f"{name}_depth.npy" and not _has_points(path)


def _has_points(path: Path) -> bool:
    try:
        return bool(np.load(path, mmap_mode="r").ndim == 3)
    except Exception:  # NumPy raises TokenError, RecursionError ... on what is no header
        return False


def _version(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""  # a broken link: reading it raises the error
    return f"{status.st_size}-{status.st_mtime_ns}"


def output_names(images: list[Path]) -> list[str]:
    """Return a name for each image's results: its stem, with its folder's name if not unique."""
    times = Counter(path.stem for path in images)
    names = [
        path.stem
        if times[path.stem] == 1
        else f"{path.absolute().parent.name}_{path.stem}_{path.suffix[1:]}"
        for path in images
    ]
    return check_unique_names(names, names)


def check_unique_names(things: list[T], names: list[str]) -> list[T]:
    """Return `things`; ValueError if two of their names are the same."""
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise ValueError(
            f"two images would be written as {repeated[0]}; predict them into two folders"
        )
    return things


def to_fill(image: InputImage, origin: Path, denoise: bool = False) -> InputImage:
    """Return the image with `fill`; raise BadFile where it has no measured depth.

    denoise  flying pixels, which stand alone in space, become holes
    """
    if image.truth_mm is None:
        reason = image.note or "no points or depth of it lie beside it"
        raise BadFile(origin, f"there is nothing to fill: {reason}")
    if not denoise:
        return replace(image, fill=True)
    truth_mm = np.where(find_flying(image.truth_mm), np.float32(np.nan), image.truth_mm)
    return replace(image, truth_mm=truth_mm, fill=True)


def read_capture(
    path: Path, pair: CapturePair | None, options: ReadOptions = NO_OPTIONS
) -> InputImage:
    """Read an image, with ground truth and rays from the points of its capture `pair`.

    An image without points is brought upright as its EXIF orientation says, one with points lies as
    they do; where these have another size, the truth is brought to the image's (nearest neighbor).
    BadFile if the image cannot be read. If the points cannot be used, the image's note says why.
    """
    note = ""
    if pair is not None:
        try:
            capture = readers.read_capture(pair, options=options)
        except BadFile as err:
            note = f"{err}; {path.name} is drawn without truth"
        else:
            return to_input_image(np.array(capture.image), capture.xyz)
    rgb = read_rgb(path, upright=True)
    return InputImage(rgb, (rgb.shape[0], rgb.shape[1]), note=note)


def to_input_image(rgb: np.ndarray, xyz: np.ndarray) -> InputImage:
    """Return an image (H, W, 3) uint8 with the truth and the rays of its points (h, w, 3) mm."""
    size = (rgb.shape[0], rgb.shape[1])
    truth_mm = np.ascontiguousarray(xyz[:, :, 2])
    if truth_mm.shape == size:
        return InputImage(rgb, size, truth_mm, measured_rays(xyz))
    meta = {"size": xyz.shape[:2], "intrinsics": fit_intrinsics(xyz)}
    return InputImage(rgb, size, resize_nearest(truth_mm, size), pixel_rays(meta, size))


def source_to_fill(source: ImageSource, denoise: bool = False) -> ImageSource:
    """Return a source whose image is one `to_fill`."""
    return source._replace(read=lambda: to_fill(source.read(), Path(source.origin), denoise))


def find_rays(
    image: InputImage, intrinsics: Sequence[float], fov: float | None
) -> np.ndarray | None:
    """Return an image's rays (H, W, 2): its own, else those of a camera; None if there is none.

    intrinsics  fx, fy, cx, cy in pixels of the image; empty where they are not given
    fov         horizontal field of view, degrees
    """
    if image.rays is not None:
        return image.rays
    if len(intrinsics):
        return pixel_rays(pinhole(image.size, *intrinsics), image.size)
    if fov is not None:
        return pixel_rays(pinhole_from_fov(image.size, fov), image.size)
    return None


def _shard_sources(folder: Path) -> list[ImageSource]:
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.loader import Loader
    from depthdist.shards.split_names import in_order

    settings = DataSettings(data=(str(folder),))
    dataset = open_dataset(settings)
    stored = dataset.parts[0].raw["rgb"].get("size")
    if stored == list(dataset.depth_size):  # resized once, to the size of the model that predicts
        settings = replace(settings, size=dataset.depth_size)
        dataset = open_dataset(settings)
    loader = Loader(dataset, settings)
    found = []
    for split in in_order(dataset.splits):
        for number in range(dataset.count(split)):
            stem = dataset.find(split, number)[1].stem
            version = hashlib.sha256(f"{dataset.sha256} {split} {number}".encode()).hexdigest()[:16]
            found.append(
                ImageSource(
                    name=stem.replace("/", "_"),
                    origin=f"{folder.resolve()}: {stem}",
                    version=version,
                    read=partial(_read_sample, folder, loader, split, number),
                    shard=True,
                )
            )
    return found


def _read_sample(folder: Path, loader: Loader, split: str, number: int) -> InputImage:
    import torch

    try:
        batch = loader.samples(split, [number]).to(torch.device("cpu"))
    except ValueError as err:  # it names the shard
        raise BadFile(folder, str(err)) from err
    depth_mm = batch.depth_mm[0].numpy()
    size = (depth_mm.shape[0], depth_mm.shape[1])
    truth_mm = np.where(batch.mask[0].numpy(), depth_mm, np.nan).astype(np.float32)
    rays = pixel_rays(loader.dataset.meta(split, number), size)
    return InputImage(batch.rgb[0].numpy(), size, truth_mm, rays)
