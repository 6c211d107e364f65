"""Train the detail stage of a run: coarse depth, steps on crops, the table of whole images.

    RUN/detail/best/         the stage (models/detail.py)
    RUN/detail/scores.json   the final table's scores of whole validation images

second_stage.py has the steps; which crops a step has is arithmetic (data/crops.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from depthdist.core.errors import stopping
from depthdist.core.stop_signals import stop_signal
from depthdist.data.crops import CropPlan
from depthdist.data.dataset import Dataset
from depthdist.data.full_size import FullSizeReader
from depthdist.distributed.process_group import World, gather_from_all_ranks, stop_together
from depthdist.distributed.shared_folder import SharedFolder
from depthdist.evaluation.tables import FOOTNOTE, scores_table
from depthdist.losses.relief import ReliefWeights, relief_losses
from depthdist.models.adapter_record import read_record
from depthdist.models.detail import DETAIL_FOLDER, DetailRecord
from depthdist.models.detail_network import DetailNetwork
from depthdist.models.stage_files import adapter_sha256, save_stage
from depthdist.runs.tracker import Tracker
from depthdist.training.detail.coarse import make_coarse
from depthdist.training.detail.crop_batches import (
    CropBatch,
    CropReader,
    fixed_draws,
    training_crops,
)
from depthdist.training.detail.looking import ReliefSums, draw_crop, final_scores
from depthdist.training.second_stage import Look, Network, Task, note_scores, train_stage
from depthdist.training.settings import Settings

MAX_LOOKED_AT = 64  # validation crops
LOSS = ReliefWeights()


def train_detail(
    settings: Settings,
    world: World,
    place: SharedFolder,
    dataset: Dataset,
    ds_config: dict[str, Any],
) -> None:
    """Train the detail stage on a run whose adapter is finished. Every rank calls it.

    raises ValueError on bad input, Stopped after a stop request, with everything saved
    """
    reader = FullSizeReader(dataset, settings.raw_folder, settings.stages.detail_memory)
    run = place.path
    folder = run / "detail"
    files = make_coarse(settings, world, place, reader, ds_config)
    bounds = read_record(run / "best").bounds
    task = DetailTask(settings, run, CropReader(reader, files, bounds, settings.detail.detail_crop))
    if train_stage(task, settings, world, folder, ds_config):
        place.bring(DETAIL_FOLDER)
        with stopping("while the detail stage was scored; the same command finishes the table"):
            _finish(task, run, world)


def _finish(task: DetailTask, run: Path, world: World) -> None:
    """Score the kept stage on whole validation images, print it, and note that this is done."""
    scores = final_scores(task.crops, run, task.settings, world)
    if world.rank:
        return
    if scores:
        print("\n".join(["", scores_table(scores), FOOTNOTE, ""]), flush=True)
    print(
        f"detail       {run / DETAIL_FOLDER}; predict, evaluate and serve use it (--refine detail)",
        flush=True,
    )
    note_scores(run / "detail", task, scores)


class DetailTask(Task):
    """What the detail stage trains: relief, on crops of the images at the camera's size."""

    name = "detail"
    samples = "crops"
    network: DetailNetwork

    def __init__(self, settings: Settings, run: Path, crops: CropReader):
        detail = settings.detail
        self.settings = settings
        self.run = run
        self.crops = crops
        self.dataset = crops.reader.dataset
        self.adapter = adapter_sha256(run / "best")
        self.network = DetailNetwork().begin(settings.train.seed)
        self.steps, self.batch, self.lr = detail.detail_steps, detail.detail_crops, detail.detail_lr
        names = ("detail_steps", "detail_crops", "detail_crop", "detail_lr")
        self.deciding = {name: getattr(detail, name) for name in names}
        self.deciding["seed"] = settings.train.seed
        self.loss = asdict(LOSS)

    def describe(self) -> str:
        """Return what is trained, on what."""
        side, dataset = self.crops.side, self.dataset
        return (
            f"{self.batch} crops of {side} x {side} pixels from {dataset.count('train')} images of"
            f" {dataset.depth_size}"
        )

    def batches(self, rank: int, world: int, step: int) -> Iterator[CropBatch]:
        """Yield this rank's crops of each step from `step` on, for ever."""
        plan = CropPlan(self.dataset.count("train"), self.batch, self.settings.train.seed)
        return training_crops(self.crops, plan, rank, world, step)

    def losses(self, network: Network, batch: CropBatch) -> dict[str, Tensor]:
        """Return each loss (B,) of a batch of crops."""
        return self._score(batch, network(batch.rgb, batch.coarse_log))

    def _score(self, batch: CropBatch, log_depth: Tensor) -> dict[str, Tensor]:
        """Return each loss (B,) of the logarithm of a refined depth (B, S, S)."""
        width = self.dataset.depth_size.width
        return relief_losses(LOSS, log_depth, batch.coarse_log, batch.depth_mm, batch.mask, width)

    def look(self, network: Network, world: World, tracker: Tracker, step: int) -> Look:
        """Score and draw fixed crops on relief."""
        num_images = self.dataset.count(self.split)
        seed = self.settings.train.seed
        draws = fixed_draws(num_images, min(MAX_LOOKED_AT, 4 * num_images), seed)
        sums = ReliefSums()
        losses = []
        for number in range(world.rank, len(draws), world.size):
            if stop_signal():
                break
            batch = self.crops(self.split, [draws[number]]).to(world.device)
            log_depth = network(batch.rgb, batch.coarse_log)
            losses.append((number, float(self._score(batch, log_depth)["loss"])))
            sums.add(batch, log_depth)
        num_drawn = self.settings.keep.pictures if world.rank == 0 else 0
        for number, draw in enumerate(draws[:num_drawn]):
            batch = self.crops(self.split, [draw]).to(world.device)
            drawn = draw_crop(batch, network(batch.rgb, batch.coarse_log))
            tracker.picture(f"{self.split} crops/{number:02d}", drawn, step)
        stop_together("in a look")
        everyone = sorted(entry for entries in gather_from_all_ranks(losses) for entry in entries)
        loss = math.fsum(value for _, value in everyone) / len(everyone)
        slope, correlation = sums.fit(gather_from_all_ranks)
        return Look(
            loss,
            {"relief_slope": slope, "relief_r": correlation},
            f"on {len(draws)} {self.split} crops; relief follows the camera's with slope"
            f" {slope:.2f}, r {correlation:.2f}",
        )

    def keep(self, weights: dict[str, Tensor], step: int, eval_loss: float | None) -> None:
        """Write the stage as the best so far."""
        camera = self.dataset.depth_size
        record = DetailRecord(
            adapter=self.adapter,
            widths=self.network.widths,
            camera=(camera.height, camera.width),
            step=step,
            eval_loss=eval_loss,
        )
        save_stage(self.name, weights, record, self.run / DETAIL_FOLDER)
