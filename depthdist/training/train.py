"""The main job, top to bottom: build the parts, train, keep the best, score it.

Every epoch is evaluated; rank 0 keeps the best adapter in RUN/best and all that a restart needs in
RUN/last. What comes out depends on the data, the settings and the seed alone: not on ranks,
micro-batches, or where the run was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from depthdist.core.errors import CannotWrite, os_error_text
from depthdist.core.file_lock import hold_folder
from depthdist.core.files import write_json
from depthdist.core.stop_signals import BEFORE_TRAINING
from depthdist.data.dataset import Dataset
from depthdist.distributed.process_group import World, broadcast_from_rank_0, stop_together
from depthdist.distributed.shared_folder import SharedFolder, share_folder
from depthdist.runs.run_folder import RUN_FILE, earlier_starts
from depthdist.runs.tracker import Tracker
from depthdist.training.completion.stage import train_completion
from depthdist.training.cpu_threads import settle_threads
from depthdist.training.detail.stage import train_detail
from depthdist.training.keeping import finish
from depthdist.training.learner import build_learner, build_model
from depthdist.training.loop import run_loop
from depthdist.training.parts import Output, Run
from depthdist.training.resume import describe_saved, read_saved, restore
from depthdist.training.run_facts import (
    derive_facts,
    describe_facts,
    describe_rates,
    is_scored,
    range_warnings,
    run_record,
    validation_remarks,
)
from depthdist.training.run_overview import show_first_batch, show_settings
from depthdist.training.same_on_ranks import agree_on_settings
from depthdist.training.saving_trial import try_saving
from depthdist.training.settings import Settings
from depthdist.training.training_data import build_data, open_training_data
from depthdist.training.validation import near_duplicates_warnings, record_seen_images
from depthdist.training.verify_first import verify_before_training

AT_RANK_0 = "once that is mended, the same command goes on from what rank 0 has saved"


def train(settings: Settings, world: World) -> None:
    """Train as the settings say. Every rank calls it; rank 0 writes.

    raises ValueError on bad input, Stopped after a stop request
    """
    stop_together(BEFORE_TRAINING)
    ds_config, remarks = settings.engine.resolved()
    settings = agree_on_settings(settings, ds_config, world)
    dataset = open_training_data(settings, world)
    if settings.keep.verify_first:
        verify_before_training(dataset, world)
    with run_folder(settings, world) as place:
        _train(settings, world, place, dataset, ds_config, remarks)
        if settings.detail.detail:
            with saying_how_to_go_on(place / "detail", 1):
                train_detail(settings, world, place, dataset, ds_config)
        if settings.completion.completion:
            with saying_how_to_go_on(place / "completion", 1):
                train_completion(settings, world, place, dataset, ds_config)


def _train(
    settings: Settings,
    world: World,
    place: SharedFolder,
    dataset: Dataset,
    ds_config: dict[str, Any],
    remarks: list[str],
) -> None:
    folder = place.path
    saved = read_saved(folder, settings.keep.resume, world)
    chosen = settle_threads(settings.engine.cpu_threads, saved.state, world)
    data = build_data(dataset, settings, world, folder)
    model = build_model(settings, data, world, saved.state)
    learner = build_learner(settings, data, model, world, ds_config)
    restore(learner, saved, world, folder)
    stop_together(BEFORE_TRAINING)

    facts = derive_facts(
        dataset, data.plan, data.loader, model, settings.train.epochs, learner.engine.precision
    )
    facts |= {"cpu_threads": saved.state.threads, "lr_factor": settings.engine.lr_factor}
    resumed_at = saved.state.step if saved.engine else None
    with (
        saying_how_to_go_on(place, data.plan.micro_batch),
        Tracker(
            folder,
            world.rank == 0,
            resumed_at,
            facts["steps"],
            settings.keep.log_to,
            saved.state.evaluation_is_due,
        ) as tracker,
    ):
        run = Run(settings, world, data, learner, saved.state, Output(place, tracker))
        announce(
            run,
            facts,
            ds_config,
            [*remarks, *validation_remarks(dataset, settings.schedule.val_images)],
            [*describe_rates(settings), *chosen],
        )
        if run.is_over and broadcast_from_rank_0(is_scored(folder, run.state.epoch)):
            tracker.say(describe_finished(run))
            return
        try_saving(run)
        record_seen_images(run, is_new=not saved.engine)
        show_settings(run, facts, ds_config)
        if not saved.engine:
            show_first_batch(run)
            for line in near_duplicates_warnings(run):
                run.output.warn(line)
        run_loop(run)
        finish(run)


@contextmanager
def saying_how_to_go_on(place: SharedFolder, micro_batch: int) -> Iterator[None]:
    """Give errors of disk and memory one line that says what is saved, or what to try."""
    try:
        yield
    except (CannotWrite, OSError) as err:
        text = os_error_text(err) if isinstance(err, OSError) else str(err)
        saved = describe_saved(place.path) if place.writers[place.rank] == 0 else AT_RANK_0
        raise ValueError(f"{text}; {saved}") from err
    except torch.OutOfMemoryError as err:
        raise ValueError(
            f"out of memory with micro-batches of {micro_batch}: try --micro-batch auto,"
            f" --checkpointing, or smaller images ({str(err)[:120]})"
        ) from err


@contextmanager
def run_folder(settings: Settings, world: World) -> Iterator[SharedFolder]:
    """Yield the run's folder; rank 0 makes it and holds it for this run."""
    named = settings.train.run or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = broadcast_from_rank_0(named)
    with ExitStack() as held:
        if world.rank == 0:
            held.enter_context(hold_folder(folder, "depthdist train", "--run"))
        yield held.enter_context(share_folder(folder, "run folder", world))


def announce(
    run: Run,
    facts: dict[str, Any],
    ds_config: dict[str, Any],
    remarks: list[str],
    chosen: list[str],
) -> None:
    """Print what follows from the settings, and write it to run.json.

    chosen  lines on what else was chosen, which stands in the facts
    """
    state, path = run.state, run.output.folder / RUN_FILE
    if run.world.rank == 0 and not (run.is_over and path.exists()):
        record = run_record(run.settings.as_dict(), facts, ds_config, remarks, run.world.device)
        start = {"step": state.step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        starts = [*earlier_starts(run.output.folder), start]
        write_json(path, {**record, "starts": starts})
    lines = describe_facts(facts)
    if state.line:
        scale, shift, explained = state.line
        line = f"calibrated   output x {scale:.4g} + {shift:.4g}"
        share = f", which explains {explained:.0%} of the targets' variance" if explained else ""
        lines.append(f"{line}{share}")
    for line in [*lines, *chosen, *remarks]:
        run.output.tracker.say(line)
    for line in range_warnings(run.data.dataset, run.settings.model.target):
        run.output.warn(line)


def describe_finished(run: Run) -> str:
    """Return the line that says that a run has nothing left to train."""
    state, best_by = run.state, run.settings.schedule.best_by
    best = "without validation"
    if state.best is not None:
        best = f"best eval {best_by} {state.best:.4f} at epoch {state.best_epoch}"
    return (
        f"{run.output.folder} is finished: {state.epoch} epochs, {best}. More --epochs would go on"
    )
