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
from depthdist.distributed.process_group import World, broadcast_from_rank_0, stop_together
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
                f"{err.filename}: is not here; with --completion all machines need the same run"
                " folder"
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
    world: World, run: Path, reader: FullSizeReader, coarse: CoarseFiles
) -> WorkingImages:
    """Return a run's images at the working size, made where they are not there yet.

    Every rank calls it and makes its part.

    raises Stopped after a stop request
    """
    images = WorkingImages(run / "completion")
    made_with = {
        "adapter": adapter_sha256(run / "best"),
        "data": reader.dataset.sha256,
        "maps": MAPS,
        "width": WORKING_WIDTH,
    }
    path = images.folder / RECORD
    known = broadcast_from_rank_0(parse_json(path.read_bytes()) if path.exists() else {})
    if known == {**made_with, "complete": True}:
        return images
    if world.rank == 0:
        if known and known != {**made_with, "complete": False}:
            print(
                "completion   the adapter or the data changed: the completion stage begins anew",
                flush=True,
            )
            shutil.rmtree(images.folder)
        images.folder.mkdir(exist_ok=True)
        write_json(path, {**made_with, "complete": False})
    broadcast_from_rank_0(None)  # nobody looks before what is of another adapter is gone
    bounds = read_record(run / "best").bounds
    splits = [split for split in ("train", "val") if reader.dataset.has(split)]
    wanted = [(split, n) for split in splits for n in range(reader.dataset.count(split))]
    for first in range(0, len(wanted), world.size):
        some = wanted[first : first + world.size]
        if world.rank < len(some):
            split, number = some[world.rank]
            if not images.path(split, number).exists():
                depth_mm, mask = reader.depth(split, number)
                pred = torch.from_numpy(coarse.read(split, number).target)
                rgb = reader.image(split, number)
                maps = working_maps(rgb, np.where(mask, depth_mm, 0.0), pred, bounds)
                images.write(split, number, maps)
        stop_together("while images were made for the completion stage; the same command goes on")
    if world.rank == 0:
        write_json(path, {**made_with, "complete": True})
    broadcast_from_rank_0(None)
    return images
