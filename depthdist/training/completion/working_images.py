"""Images of a run at the completion network's working size, made once and kept.

    RUN/completion/images/train-000017.npz   rgb, depth_mm, log_pred (models/completion_maps.py)
    RUN/completion/images.json               what they are made with, and whether all are there

The predictions are those of training/detail/coarse.py: of adapters that have not seen the image.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import torch

from depthdist.core.files import parse_json, write_atomic, write_json
from depthdist.data.full_size import FullSizeReader
from depthdist.distributed.process_group import gather_from_all_ranks, stop_together
from depthdist.distributed.shared_folder import SharedFolder
from depthdist.models.adapter_record import read_record
from depthdist.models.completion_maps import MAPS, WORKING_WIDTH, WorkingMaps, working_maps
from depthdist.models.stage_files import adapter_sha256
from depthdist.training.detail.coarse import CoarseFiles

RECORD = "images.json"


class WorkingImages:
    """The kept images of a run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, split: str, number: int) -> Path:
        """Return the file of a sample."""
        return self.folder / "images" / f"{split}-{number:06d}.npz"

    def read(self, split: str, number: int) -> WorkingMaps:
        """Return what is kept of a sample; raise ValueError where it is not there."""
        try:
            with np.load(self.path(split, number)) as file:
                return WorkingMaps(*(file[name] for name in WorkingMaps._fields))
        except FileNotFoundError as err:
            raise ValueError(
                f"{err.filename}: is not here any more; the same command makes it again once"
                f" {self.folder / RECORD} is removed"
            ) from err

    def measured(self, split: str, number: int) -> np.ndarray:
        """Return where a sample was measured, (h, w) bool."""
        with np.load(self.path(split, number)) as file:
            where: np.ndarray = file["depth_mm"] > 0
        return where

    def write(self, split: str, number: int, maps: WorkingMaps) -> None:
        """Keep a sample."""
        content = io.BytesIO()
        np.savez(content, **maps._asdict())
        self.path(split, number).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path(split, number), content.getvalue())


def make_working_images(
    place: SharedFolder, reader: FullSizeReader, coarse: CoarseFiles
) -> WorkingImages:
    """Return a run's images at the working size, made where they are not there yet.

    Every rank calls it and makes its part of those at its place.

    raises Stopped after a stop request
    """
    run = place.path
    images = WorkingImages(run / "completion")
    made_with = {
        "adapter": adapter_sha256(run / "best"),
        "data": reader.dataset.sha256,
        "maps": MAPS,
        "width": WORKING_WIDTH,
    }
    path = images.folder / RECORD
    mine = None
    if place.is_writer:
        mine = parse_json(path.read_bytes()) if path.exists() else {}
    everyone = gather_from_all_ranks(mine)
    if all(one in (None, {**made_with, "complete": True}) for one in everyone):
        return images
    known = everyone[0]
    if place.is_writer:
        if known and {**known, "complete": True} != {**made_with, "complete": True}:
            if place.rank == 0:
                print(
                    "completion   the adapter or the data changed: the completion stage begins"
                    " anew",
                    flush=True,
                )
            shutil.rmtree(images.folder, ignore_errors=place.rank > 0)
        images.folder.mkdir(exist_ok=True)
        write_json(path, {**made_with, "complete": False})
    gather_from_all_ranks(None)  # nobody looks before what is of another adapter is gone
    bounds = read_record(run / "best").bounds
    splits = [split for split in ("train", "val") if reader.dataset.has(split)]
    wanted = [(split, n) for split in splits for n in range(reader.dataset.count(split))]
    mates = place.mates
    my_part = wanted[mates.index(place.rank) :: len(mates)]
    for i in range(-(-len(wanted) // place.least_mates)):  # as often on every rank
        if i < len(my_part) and not images.path(*my_part[i]).exists():
            split, number = my_part[i]
            depth_mm, mask = reader.depth(split, number)
            pred = torch.from_numpy(coarse.read(split, number).target)
            rgb = reader.image(split, number)
            maps = working_maps(rgb, np.where(mask, depth_mm, 0.0), pred, bounds)
            images.write(split, number, maps)
        stop_together("while images were made for the completion stage; the same command goes on")
    if place.is_writer:
        write_json(path, {**made_with, "complete": True})
    gather_from_all_ranks(None)
    return images
