"""What TensorBoard shows of a run as a whole: settings, best scores, and its first batch.

    show_settings(run, facts, ds_config)   # before training: texts, hparams tab, charts
    show_first_batch(run)                  # of a new run
    show_best(run, scores)                 # at each new best: the last one is what hparams has
    show_end(run, scores)

Rank 0 writes; the order of samples and every random draw stay as they are without it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import torch

from depthdist.core.environment import describe_environment
from depthdist.evaluation.figures import batch_figure, figure_pixels
from depthdist.evaluation.metrics.pixels import HEADLINE
from depthdist.runs.tensorboard_plugins import overview, session_end, session_start
from depthdist.training.parts import Run
from depthdist.training.run_facts import hyperparameters, text_json, text_table
from depthdist.training.validation import scores_to_log

CPU = torch.device("cpu")
MAX_FIRST = 8  # samples of the first batch that are drawn
SHOWN = ("loss", *HEADLINE)
"""Scores of the best adapter that are curves, and so columns of the hparams tab: what it shows
first are five.
"""
CHARTS = {
    "Overview": {
        "loss": ("train/loss", "eval/loss"),
        "RMSE of validation, mm": ("eval/rmse_mm",),
        "RMSE of validation by depth range (mm), mm": ("eval/rmse_mm@*",),
        "learning rate": ("train/lr",),
        "images a second": ("speed/images_per_s",),
    }
}


def show_settings(run: Run, facts: dict[str, Any], ds_config: dict[str, Any]) -> None:
    """Write what this start works with: texts, the row of the hparams tab, the charts."""
    if run.world.rank:
        return
    tracker, step = run.output.tracker, run.state.step
    settings = run.settings.as_dict()
    environment = describe_environment(run.world.device)
    versions = environment.pop("versions")
    tracker.text("settings", text_json(settings), step)
    tracker.text("deepspeed", text_json(ds_config), step)
    tracker.text("derived", text_table(facts), step)
    tracker.text("versions", text_table(environment | versions), step)
    chosen = hyperparameters(run.settings, facts)
    name = str(run.output.folder)
    tracker.summary(session_start(name, chosen, time.time()), step)
    tracker.summary(overview(CHARTS), step)
    tracker.describe({**settings, **facts, **versions, "deepspeed_config": json.dumps(ds_config)})


def best_prefix(run: Run) -> str:
    """Return what the scores of the best adapter are logged under."""
    return "best" if run.data.has_validation else "fit"


def show_best(run: Run, scores: Mapping[str, float]) -> None:
    """Write the scores of a new best; those of the end are of the adapter as it is on the disk."""
    if not run.is_over:
        best = {f"{best_prefix(run)}/{name}": scores[name] for name in SHOWN}
        run.output.tracker.curves(run.state.step, best)


def show_end(run: Run, scores: Mapping[str, float]) -> None:
    """Log the scores of the best adapter, and mark the run as finished in the hparams tab."""
    state, prefix = run.state, best_prefix(run)
    logged = scores_to_log(prefix, scores)
    run.output.tracker.log(state.step, state.epoch, logged, [f"{prefix}/{n}" for n in SHOWN])
    run.output.tracker.summary(session_end(), state.step)


def show_first_batch(run: Run) -> None:
    """Draw the first samples of the first epoch, augmented as they are trained on.

    Nothing is drawn without --pictures.
    """
    if run.world.rank or not run.settings.keep.pictures:
        return
    seed = run.settings.train.seed
    order = run.data.dataset.order(seed).epoch(0)
    numbers = [int(number) for number in order[: min(MAX_FIRST, run.data.plan.global_batch)]]
    batches = [run.data.loader.samples("train", [n], seed).to(CPU) for n in numbers]
    read = [batch for batch in batches if batch.weight[0]]  # 0 where the sample is damaged
    if read:
        drawn = batch_figure(
            [batch.rgb[0].numpy() for batch in read],
            [batch.depth_mm[0].numpy() for batch in read],
            [batch.stems[0] for batch in read],
        )
        run.output.tracker.picture("training/first batch", figure_pixels(drawn), 0)
