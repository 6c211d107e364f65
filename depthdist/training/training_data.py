"""Open the dataset, and cut it into global batches, ranks and micro-batches."""

from __future__ import annotations

from pathlib import Path

from depthdist.data.dataset import Dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from depthdist.distributed.process_group import World
from depthdist.runs.tracker import record_damage
from depthdist.training.parts import TrainingData
from depthdist.training.run_facts import training_bounds
from depthdist.training.same_on_ranks import agree_on_data
from depthdist.training.settings import Settings


def open_training_data(settings: Settings, world: World) -> Dataset:
    """Open the dataset; raise ValueError where this rank sees other data than rank 0."""
    dataset = settings.open_data()
    agree_on_data(dataset, settings, world)
    if settings.data.damaged == "stop" and world.size > 1:  # one rank has checked all of them
        dataset.check_shards()
    return dataset


def build_data(dataset: Dataset, settings: Settings, world: World, run: Path) -> TrainingData:
    """Return the training data with a loader, and a plan for the first micro-batch to try."""
    depth_range = training_bounds(dataset)._replace(scale=settings.model.target)
    loader = Loader(
        dataset,
        settings.data,
        settings.augment,
        world.device,
        lambda damage: record_damage(damage, run),
    )
    micro_batch = settings.engine.micro_batches(world.size)[0]
    return TrainingData(
        dataset, loader, make_plan(dataset, settings, micro_batch, world.size), depth_range
    )


def make_plan(dataset: Dataset, settings: Settings, micro_batch: int, num_ranks: int) -> TrainPlan:
    """Return how the training samples are cut into global batches, ranks and micro-batches."""
    num_samples = dataset.order(settings.train.seed).num_samples
    return TrainPlan(num_samples, settings.engine.batch, micro_batch, num_ranks)
