"""Coarse predictions of the training images, whose errors are those of images never seen.

The training images are cut into folds. For each fold an adapter is trained on the others, in
RUN/detail/folds/N, exactly as the run's own; it predicts the fold that it has not seen. The
predictions are kept:

    RUN/detail/coarse/train-000017.npz    coarse (h, w) float32 normalized inverse depth, and the
                                          squares (N, 2) of the image that show relief
    RUN/detail/coarse/val-000003.npz      of validation images, by the run's own adapter
    RUN/detail/coarse.json                what they are made with, and whether all are there
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from depthdist.core.errors import Stopped
from depthdist.core.files import parse_json, write_atomic, write_json
from depthdist.core.stop_signals import stop_signal
from depthdist.data.crops import find_relief
from depthdist.data.few_samples import FewSamples
from depthdist.data.full_size import FullSizeReader
from depthdist.data.loader import Loader
from depthdist.distributed.process_group import (
    World,
    gather_from_all_ranks,
)
from depthdist.distributed.shared_folder import SharedFolder
from depthdist.models.adapter import load_adapter
from depthdist.models.depth_model import DepthModel
from depthdist.models.stage_files import adapter_sha256
from depthdist.runs.tracker import Tracker
from depthdist.training.learner import build_learner, build_model
from depthdist.training.loop import run_loop
from depthdist.training.parts import Output, Run
from depthdist.training.resume import read_saved, restore
from depthdist.training.second_stage import other_setting
from depthdist.training.settings import Settings
from depthdist.training.training_data import build_data

RECORD = "coarse.json"


class Coarse(NamedTuple):
    """A coarse prediction (h, w) float32 and the squares (N, 2) with relief of one image."""

    target: np.ndarray
    cells: np.ndarray


class CoarseFiles:
    """The kept predictions of a run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, split: str, number: int) -> Path:
        """Return the file of a sample."""
        return self.folder / "coarse" / f"{split}-{number:06d}.npz"

    def read(self, split: str, number: int) -> Coarse:
        """Return what is kept of a sample; raise ValueError where it is not there."""
        try:
            with np.load(self.path(split, number)) as file:
                return Coarse(file["coarse"], file["cells"])
        except FileNotFoundError as err:
            raise ValueError(
                f"{err.filename}: is not here any more; the same command makes it again once"
                f" {self.folder / RECORD} is removed"
            ) from err

    def write(self, split: str, number: int, coarse: Coarse) -> None:
        """Keep what is known of a sample."""
        content = io.BytesIO()
        np.savez(content, coarse=coarse.target, cells=coarse.cells)
        self.path(split, number).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path(split, number), content.getvalue())


def make_coarse(
    settings: Settings,
    world: World,
    place: SharedFolder,
    reader: FullSizeReader,
    ds_config: dict[str, Any],
) -> CoarseFiles:
    """Return the coarse predictions of a run, made where they are not there yet.

    Every rank calls it and takes its part; rank 0 writes, and one on each machine without its disk.

    raises ValueError where they were begun with another number of folds, Stopped after a stop
    request
    """

    def say(line: str) -> None:
        if world.rank == 0:
            print(line, flush=True)

    place.bring("best")
    run = place.path
    files = CoarseFiles(run / "detail")
    folds = settings.stages.detail_folds
    record = {
        "adapter": adapter_sha256(run / "best"),
        "data": reader.dataset.sha256,
        "folds": folds,
    }
    found = files.folder / RECORD
    mine = None
    if place.is_writer:
        mine = parse_json(found.read_bytes()) if found.exists() else {}
    everyone = gather_from_all_ranks(mine)
    if all(one in (None, {**record, "complete": True}) for one in everyone):
        return files
    known = {**everyone[0]}
    known.pop("complete", None)
    if known and known != record:
        if known == {**record, "folds": known["folds"]}:
            raise other_setting("detail_folds", folds, known["folds"], files.folder)
        say("detail       the adapter or the data changed: the detail stage begins anew")
    if place.is_writer:
        if known != record and files.folder.exists():
            shutil.rmtree(files.folder)
        files.folder.mkdir(exist_ok=True)
        write_json(found, {**record, "complete": False})
    gather_from_all_ranks(None)  # nobody looks before what is of another adapter is gone
    predict = partial(_predict, settings, world, reader, files, place)
    num_train = reader.dataset.count("train")
    for fold in range(folds):
        left_out = range(fold, num_train, folds)
        part = FewSamples.without(reader.dataset, left_out)
        say(
            f"detail       adapter {fold + 1} of {folds}: learns {len(part.chosen)} training images"
            f" and predicts the other {len(left_out)}"
        )
        of_fold = place / f"detail/folds/{fold + 1}"
        _train_part(settings, world, of_fold, part, ds_config)
        of_fold.bring("best")
        predict(of_fold.path / "best", "train", left_out)
    if not folds:
        predict(run / "best", "train", range(num_train))
    if reader.dataset.has("val"):
        predict(run / "best", "val", range(reader.dataset.count("val")))
    if place.is_writer:
        write_json(found, {**record, "complete": True})
    gather_from_all_ranks(None)
    return files


def _train_part(
    settings: Settings,
    world: World,
    place: SharedFolder,
    part: FewSamples,
    ds_config: dict[str, Any],
) -> None:
    """Train an adapter on some of the training images, as the run's own was; it is resumed."""
    folder = place.path
    settings = replace(
        settings,
        train=replace(settings.train, run=folder),
        schedule=replace(settings.schedule, patience=0, best_by="loss"),
        keep=replace(settings.keep, pictures=0, watch_every=0, resume="auto", log_to=(), keep=1),
    )
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    saved = read_saved(folder, "auto", world)
    data = build_data(part, settings, world, folder)
    model = build_model(settings, data, world, saved.state)
    learner = build_learner(settings, data, model, world, ds_config)
    restore(learner, saved, world, folder)
    resumed_at = saved.state.step if saved.engine else None
    steps = data.plan.steps_per_epoch * settings.train.epochs
    again = saved.state.evaluation_is_due
    with Tracker(folder, world.rank == 0, resumed_at, steps, (), again) as tracker:
        run = Run(settings, world, data, learner, saved.state, Output(place, tracker))
        run_loop(run)


@torch.no_grad()
def _predict(
    settings: Settings,
    world: World,
    reader: FullSizeReader,
    files: CoarseFiles,
    place: SharedFolder,
    adapter: Path,
    split: str,
    numbers: range,
) -> None:
    """Keep an adapter's predictions of samples; the ranks share them."""
    model, _ = load_adapter(adapter)
    model.to(world.device).eval()
    loader = Loader(reader.dataset, settings.data, device=world.device)
    for some in _chunks(numbers, world.size):
        mine = some[world.rank] if world.rank < len(some) else None
        made = None if mine is None else (mine, _coarse_of(model, loader, reader, split, mine))
        everyone = gather_from_all_ranks((made, stop_signal()))
        for entry, _ in everyone:
            if entry is not None and place.is_writer:
                files.write(split, *entry)
        for _, by in everyone:
            if by:
                raise Stopped(
                    by,
                    f"while {adapter} predicted {split} images for the detail stage; the same"
                    " command goes on",
                )


def _chunks(numbers: range, size: int) -> Iterator[range]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


def _coarse_of(
    model: DepthModel, loader: Loader, reader: FullSizeReader, split: str, number: int
) -> Coarse:
    batch = loader.samples(split, [number]).to(next(model.parameters()).device)
    target = model(batch.rgb)[0].cpu().numpy()
    return Coarse(target, find_relief(*reader.depth(split, number)))
