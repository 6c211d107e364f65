"""What is to be predicted: pictures, folders, patterns, raw captures, shards. One source a picture, read when its turn comes.

    for source in find_sources(["captures", "more/*.png", "data/tires"], leave_out=Path("predictions")):
        picture = source.read()         # BadFile says what is wrong with it
"""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from depthdist.camera import own_rays, pixel_rays
from depthdist.dataset import DataSettings, open_dataset
from depthdist.pairs import BadFile, find_cloud, list_pictures, read_rgb, read_xyz, shown
from depthdist.stream import Loader

T = TypeVar("T")


@dataclass
class Picture:
    """One picture, and what is known of its depth.

    rgb       (h, w, 3) uint8: as it was taken or, from shards, as the network sees it
    size      (H, W) that depth is wanted at
    truth_mm  (H, W) float32 mm, NaN or 0 where nothing was measured; None where there is none
    rays      (H, W, 2) X / Z and Y / Z; None where the camera is not known
    note      why a truth that is there was not taken, "" where all is well
    """

    rgb: np.ndarray
    size: tuple[int, int]
    truth_mm: np.ndarray | None = None
    rays: np.ndarray | None = None
    note: str = ""


class Source(NamedTuple):
    """`name` is that of its results, `origin` where it comes from and `version` what tells its content from another's."""

    name: str
    origin: str
    version: str
    read: Callable[[], Picture]


def find_sources(inputs: list[str], leave_out: Path) -> list[Source]:
    """Each picture once, in the order given. BadFile or ValueError where an input is nothing that has pictures.

    leave_out  a folder whose pictures are results, not inputs
    """
    files: dict[Path, Path] = {}
    shards: list[Source] = []
    for given in inputs:
        for path in _expanded(given):
            if (path / "index.json").is_file():
                shards += _of_shards(path)
            else:
                files |= {p.resolve(): p for p in list_pictures(path) if leave_out.resolve() not in p.resolve().parents}
    names = output_names(list(files.values()))
    found = [Source(name, shown(p), _version(p), partial(read_capture, p)) for name, p in zip(names, files.values())] + shards
    return different(found, [s.name for s in found])


def _expanded(given: str) -> list[Path]:
    """The file or folder `given`, or what it matches where it is a pattern."""
    path = Path(given).expanduser()
    if path.exists() or not glob.has_magic(given):
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise BadFile(path, "no file fits this pattern")
    return [Path(p) for p in found]


def _version(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def output_names(pictures: list[Path]) -> list[str]:
    """A name for each picture's results: its stem, with its folder's name where two would be the same."""
    times = Counter(p.stem for p in pictures)
    names = [p.stem if times[p.stem] == 1 else f"{p.absolute().parent.name}_{p.stem}_{p.suffix[1:]}" for p in pictures]
    return different(names, names)


def different(things: list[T], names: list[str]) -> list[T]:
    """`things`. ValueError where two of their names are the same."""
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(f"two pictures would be written as {twice[0]}; predict them into two folders")
    return things


def read_capture(path: Path) -> Picture:
    """A picture file, upright, with the truth and the rays of the point cloud that stands beside it. BadFile where the picture cannot be read."""
    rgb = read_rgb(path, upright=True)
    picture = Picture(rgb, rgb.shape[:2])
    cloud = find_cloud(path)
    if cloud is None:
        return picture
    try:
        xyz = read_xyz(cloud)
        if xyz.shape[:2] != picture.size:
            raise BadFile(cloud, f"xyz is {xyz.shape[:2]}, {path.name} is {picture.size}; expected one size")
    except BadFile as err:
        picture.note = f"{err}; {path.name} is drawn without truth"
        return picture
    picture.truth_mm, picture.rays = np.ascontiguousarray(xyz[:, :, 2]), own_rays(xyz)
    return picture


def _of_shards(folder: Path) -> list[Source]:
    settings = DataSettings(data=(str(folder),))
    dataset = open_dataset(settings)
    loader = Loader(dataset, settings)
    found = []
    for split in ("train", "val"):
        for number in range(dataset.count(split) if any(split in part.raw["splits"] for part in dataset.parts) else 0):
            key = dataset.find(split, number)[1].key
            name = key.replace("/", "_")
            version = hashlib.sha256(f"{dataset.sha256} {split} {number}".encode()).hexdigest()[:16]
            found.append(Source(name, f"{folder}: {key}", version, partial(_sample, loader, split, number)))
    return found


def _sample(loader: Loader, split: str, number: int) -> Picture:
    batch = loader.samples(split, [number]).to("cpu")
    depth, size = batch.depth_mm[0].numpy(), tuple(batch.depth_mm.shape[-2:])
    truth = np.where(batch.mask[0].numpy(), depth, np.nan).astype(np.float32)
    return Picture(batch.rgb[0].numpy(), size, truth, pixel_rays(loader.dataset.meta(split, number), size))
