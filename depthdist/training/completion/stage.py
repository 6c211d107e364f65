"""Train the completion stage of a run: working images, steps on punched holes, sigma calibrated.

    RUN/completion/best/         the stage (models/completion.py)
    RUN/completion/scores.json   what it scored on validation images with punched holes

second_stage.py has the steps; which image a step has, and the holes in it, is arithmetic
(hole_batches.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from depthdist.core.stop_signals import stop_signal
from depthdist.data.dataset import Dataset
from depthdist.data.full_size import FullSizeReader
from depthdist.distributed.process_group import World, gather_from_all_ranks, stop_together
from depthdist.distributed.shared_folder import SharedFolder
from depthdist.losses.completion import CompletionWeights, completion_losses
from depthdist.models.completion import CompletionRecord
from depthdist.models.completion_maps import UNIT, WorkingMaps
from depthdist.models.completion_network import CompletionNetwork
from depthdist.models.seen_range import measure_images
from depthdist.models.stage_files import adapter_sha256, save_stage
from depthdist.runs.tracker import Tracker
from depthdist.training.completion.hole_batches import (
    HoleBatch,
    HolePlan,
    HoleReader,
    training_samples,
    validation_draws,
)
from depthdist.training.completion.looking import HoleErrors, draw_sample
from depthdist.training.completion.working_images import make_working_images
from depthdist.training.detail.coarse import make_coarse
from depthdist.training.second_stage import Look, Network, Task, note_scores, train_stage
from depthdist.training.settings import Settings

MAX_LOOKED_AT = 64  # validation samples
SAMPLES_AN_IMAGE = 4
IMAGES_AT_A_TIME = 64  # that are measured until the ranks ask each other whether to stop
LOSS = CompletionWeights()


def train_completion(
    settings: Settings,
    world: World,
    place: SharedFolder,
    dataset: Dataset,
    ds_config: dict[str, Any],
) -> None:
    """Train the completion stage on a run whose adapter is finished. Every rank calls it.

    raises ValueError on bad input, Stopped after a stop request, with everything saved
    """
    reader = FullSizeReader(dataset, settings.raw_folder, settings.stages.detail_memory)
    run = place.path
    folder = run / "completion"
    coarse = make_coarse(settings, world, place, reader, ds_config)
    images = make_working_images(place, reader, coarse)
    holes = HoleReader(images, dataset.count("train"), settings.train.seed)
    task = CompletionTask(settings, run, dataset, holes)
    trained = train_stage(task, settings, world, folder, ds_config)
    if trained and world.rank == 0:
        print(f"completion   {folder / 'best'}; predict --fill and --save sigma use it", flush=True)
        note_scores(folder, task, task.scores)


class CompletionTask(Task):
    """What the completion stage trains: depth in punched holes of whole images."""

    name = "completion"
    samples = "images"
    network: CompletionNetwork

    def __init__(self, settings: Settings, run: Path, dataset: Dataset, holes: HoleReader):
        completion = settings.completion
        self.settings = settings
        self.run = run
        self.holes = holes
        self.dataset = dataset
        self.adapter = adapter_sha256(run / "best")
        self.network = CompletionNetwork().begin(settings.train.seed)
        self.steps = completion.completion_steps
        self.batch = completion.completion_images
        self.lr = completion.completion_lr
        names = ("completion_steps", "completion_images", "completion_lr")
        self.deciding = {name: getattr(completion, name) for name in names}
        self.deciding["seed"] = settings.train.seed
        self.loss = asdict(LOSS)
        self.seen = measure_images(self._training_images())
        self.errors = HoleErrors()
        self.scores: dict[str, float] = {}

    def _training_images(self) -> Iterator[WorkingMaps]:
        """Yield the training images on every rank, which stop together where one is asked to."""
        for number in range(self.dataset.count("train")):
            if number % IMAGES_AT_A_TIME == 0:
                stop_together("while training images were measured; the same command goes on")
            yield self.holes.images.read("train", number)

    def describe(self) -> str:
        """Return what is trained, on what."""
        height, width = self.holes.images.read("train", 0).depth_mm.shape
        return (
            f"{self.batch} of {self.dataset.count('train')} images at {height} x {width} with"
            " punched holes"
        )

    def batches(self, rank: int, world: int, step: int) -> Iterator[HoleBatch]:
        """Yield this rank's samples of each step from `step` on, for ever."""
        plan = HolePlan(self.dataset.count("train"), self.batch, self.settings.train.seed)
        return training_samples(self.holes, plan, rank, world, step)

    def losses(self, network: Network, batch: HoleBatch) -> dict[str, Tensor]:
        """Return each loss (B,) of a batch."""
        return self._score(batch, *network(batch.channels, batch.guesses))

    def _score(self, batch: HoleBatch, log_depth: Tensor, spread: Tensor) -> dict[str, Tensor]:
        return completion_losses(
            LOSS, log_depth, spread, batch.log_pred, batch.depth_mm, batch.hole, UNIT
        )

    def look(self, network: Network, world: World, tracker: Tracker, step: int) -> Look:
        """Score and draw fixed validation images with punched holes; measure what sigma is."""
        num_images = self.dataset.count(self.split)
        draws = validation_draws(num_images, min(MAX_LOOKED_AT, SAMPLES_AN_IMAGE * num_images))
        errors = HoleErrors()
        losses = []
        num_drawn = self.settings.keep.pictures
        for number in range(world.rank, len(draws), world.size):
            if stop_signal():
                break
            draw = draws[number]
            batch = self.holes(self.split, [draw]).to(world.device)
            log_depth, spread = network(batch.channels, batch.guesses)
            losses.append((number, float(self._score(batch, log_depth, spread)["loss"])))
            errors.add(batch, log_depth, spread)
        for number, draw in enumerate(draws[: num_drawn if world.rank == 0 else 0]):
            batch = self.holes(self.split, [draw]).to(world.device)
            shown, _ = self.holes.maps(self.split, draw)
            drawn = draw_sample(shown.rgb, batch, *network(batch.channels, batch.guesses))
            tracker.picture(f"{self.split} holes/{number:02d}", drawn, step)
        stop_together("in a look")
        everyone = sorted(entry for entries in gather_from_all_ranks(losses) for entry in entries)
        loss = math.fsum(value for _, value in everyone) / len(everyone)
        self.errors = errors.of_all(gather_from_all_ranks)
        self.scores = self.errors.means_mm()
        shares = self.errors.shares_inside()
        return Look(
            loss,
            {**self.scores, **shares},
            f"on {len(draws)} {self.split} samples; in punched holes MAE"
            f" {self.scores['mae_mm']:.1f} mm, prediction moved to the rims"
            f" {self.scores['moved_mae_mm']:.1f}, harmonic {self.scores['harmonic_mae_mm']:.1f};"
            f" within 1 sigma {shares['inside_1_sigma']:.2f}, 2 sigma"
            f" {shares['inside_2_sigma']:.2f}",
        )

    def keep(self, weights: dict[str, Tensor], step: int, eval_loss: float | None) -> None:
        """Write the stage as the best so far, with the sigma that was measured of it."""
        camera = self.dataset.depth_size
        filled, predicted = self.errors.scales()
        record = CompletionRecord(
            adapter=self.adapter,
            widths=self.network.widths,
            camera=(camera.height, camera.width),
            step=step,
            eval_loss=eval_loss,
            filled_sigma=filled,
            predicted_sigma=predicted,
            brightness=self.seen.brightness,
            depth_mm=self.seen.depth_mm,
        )
        save_stage(self.name, weights, record, self.run / "completion/best")
