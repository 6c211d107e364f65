"""What is to be predicted: pictures, folders, patterns, raw captures, shards.

One source a picture, read when its turn comes.

for source in find_sources(["captures", "more/*.png", "data/tires"], leave_out=Path("predictions")):
    picture = source.read()         # BadFile says what is wrong with it
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from depthdist.captures.layouts import IMAGE_SUFFIXES, find_point_maps, is_image, list_images
from depthdist.captures.readers import exif_orientation, read_rgb, read_xyz
from depthdist.core.errors import BadFile, printable_path
from depthdist.core.settings import expand_user
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.geometry.camera import measured_rays, pixel_rays
from depthdist.inference.predictor import InputImage

T = TypeVar("T")
RESULT = re.compile(r"_(depth_[\d.]+mm|colour|figure)\.png$")


class Source(NamedTuple):
    """`name` is that of its results, `origin` where it comes from, `files` what is read and
    `version` what tells its content from another's.
    """

    name: str
    origin: str
    version: str
    read: Callable[[], InputImage]
    files: tuple[Path, ...] = ()
    shard: bool = False


def find_sources(inputs: list[str], out: Path) -> list[Source]:
    """Each picture once, in the order given.

    BadFile or ValueError where an input is nothing that has pictures.

    out  the folder for results: what is named like one there is none of the pictures of a folder or
         pattern
    """
    files: dict[Path, Path] = {}
    shards: list[Source] = []
    for given in inputs:
        named = expand_user(given)
        for path in _expanded(given):
            if (path / "index.json").is_file():
                shards += _of_shards(path)
            else:
                files |= {
                    p.resolve(): p
                    for p in list_images(path)
                    if p == named or (is_image(p) and not _is_result(p, out))
                }
    names, clouds = output_names(list(files.values())), find_point_maps(list(files.values()))
    found = []
    for name, (whole, path) in zip(names, files.items()):
        cloud = clouds.get(path)
        if (
            cloud
            and cloud.resolve() == out.resolve() / f"{name}_depth.npy"
            and not _has_points(cloud)
        ):
            cloud = None  # an earlier prediction
        read = (whole, cloud.resolve()) if cloud else (whole,)
        found.append(
            Source(
                name,
                printable_path(whole),
                "+".join(map(_version, read)),
                partial(read_capture, path, cloud),
                read,
            )
        )
    found += shards
    if not found:
        raise ValueError(
            f"{', '.join(inputs)}: no pictures beside results of earlier predictions and groove"
            f" labels; expected {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return drop_duplicate_names(found, [s.name for s in found])


def _expanded(given: str) -> list[Path]:
    """The file or folder `given`, or what it matches where it is a pattern."""
    path = expand_user(given)
    if path.exists() or not glob.has_magic(given):
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise BadFile(path, "no file fits this pattern")
    return [Path(p) for p in found]


def _is_result(path: Path, out: Path) -> bool:
    return path.resolve().parent == out.resolve() and RESULT.search(path.name) is not None


def _has_points(path: Path) -> bool:
    try:
        return np.load(path, mmap_mode="r").ndim == 3
    except (OSError, ValueError, EOFError):
        return False


def _version(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""  # a link to nothing: reading it says so
    return f"{status.st_size}-{status.st_mtime_ns}"


def output_names(pictures: list[Path]) -> list[str]:
    """A name for each picture's results: its stem, with its folder's name where two would be the
    same.
    """
    times = Counter(p.stem for p in pictures)
    names = [
        p.stem if times[p.stem] == 1 else f"{p.absolute().parent.name}_{p.stem}_{p.suffix[1:]}"
        for p in pictures
    ]
    return drop_duplicate_names(names, names)


def drop_duplicate_names(things: list[T], names: list[str]) -> list[T]:
    """`things`. ValueError where two of their names are the same."""
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(
            f"two pictures would be written as {twice[0]}; predict them into two folders"
        )
    return things


def read_capture(path: Path, cloud: Path | None) -> InputImage:
    """A picture file, upright, with the truth and the rays of its point `cloud`.

    BadFile where the picture cannot be read.
    """
    rgb = read_rgb(path, upright=True)
    picture = InputImage(rgb, rgb.shape[:2])
    if cloud is None:
        return picture
    try:
        if turned := exif_orientation(path):
            raise BadFile(
                cloud,
                f"{path.name} lies turned (EXIF orientation {turned}) and a point cloud has no"
                " such tag",
            )
        xyz = read_xyz(cloud)
        if xyz.shape[:2] != picture.size:
            raise BadFile(
                cloud, f"xyz is {xyz.shape[:2]}, {path.name} is {picture.size}; expected one size"
            )
    except BadFile as err:
        picture.note = f"{err}; {path.name} is drawn without truth"
        return picture
    picture.truth_mm, picture.rays = np.ascontiguousarray(xyz[:, :, 2]), measured_rays(xyz)
    return picture


def _of_shards(folder: Path) -> list[Source]:
    settings = DataSettings(data=(str(folder),))
    dataset = open_dataset(settings)
    loader = Loader(dataset, settings)
    found = []
    for split in ("train", "val"):
        for number in range(
            dataset.count(split)
            if any(split in part.raw["splits"] for part in dataset.parts)
            else 0
        ):
            stem = dataset.find(split, number)[1].stem
            name = stem.replace("/", "_")
            version = hashlib.sha256(f"{dataset.sha256} {split} {number}".encode()).hexdigest()[:16]
            found.append(
                Source(
                    name,
                    f"{folder.resolve()}: {stem}",
                    version,
                    partial(_sample, folder, loader, split, number),
                    shard=True,
                )
            )
    return found


def _sample(folder: Path, loader: Loader, split: str, number: int) -> InputImage:
    try:
        batch = loader.samples(split, [number]).to("cpu")
    except ValueError as err:  # which names the shard
        raise BadFile(folder, str(err)) from err
    depth, size = batch.depth_mm[0].numpy(), tuple(batch.depth_mm.shape[-2:])
    truth = np.where(batch.mask[0].numpy(), depth, np.nan).astype(np.float32)
    return InputImage(
        batch.rgb[0].numpy(), size, truth, pixel_rays(loader.dataset.meta(split, number), size)
    )
