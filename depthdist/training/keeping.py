"""What a run keeps: the best adapter, all that a restart needs, and the final table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch import Tensor

from depthdist.core.errors import Stopped, stopping
from depthdist.core.stop_signals import stop_signal
from depthdist.distributed.process_group import (
    gather_from_all_ranks,
    sum_over_ranks,
)
from depthdist.evaluation.predictors import constant_predictor, network_predictor
from depthdist.evaluation.tables import FIT, FOOTNOTE, UNTRAINED, format_scores, scores_table
from depthdist.evaluation.verdict import RunFacts, describe_no_better
from depthdist.geometry.depth_range import normalize_depth
from depthdist.models.adapter import load_adapter, save_adapter
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.depth_model import DepthModel
from depthdist.runs.training_state import save_state
from depthdist.training import diagnostics
from depthdist.training.overfit import best_reached, describe_fit, is_learned
from depthdist.training.parts import Run
from depthdist.training.run_facts import mark_as_scored
from depthdist.training.run_overview import show_best, show_end
from depthdist.training.schedule import is_better, lr_factor
from depthdist.training.validation import (
    evaluate,
    look_without_validation,
    score_validation,
    scored_samples,
)


def end_epoch(run: Run) -> None:
    """Evaluate; keep the adapter where it is the best so far, and all that a restart needs.

    Without validation the last one is the best.

    raises Stopped after a stop request; the state that was saved before says what is due
    """
    state, best_by = run.state, run.settings.schedule.best_by
    scores: dict[str, float] | None = None
    if run.data.has_validation:
        with stopping(where_saved(run, f", in the evaluation of epoch {state.epoch}")):
            scores = evaluate(run)["none"]
        is_best = is_better(best_by, scores[best_by], state.best)  # reduced: equal on every rank
        state.best = scores[best_by] if is_best else state.best
        state.is_learned = bool(run.settings.train.overfit) and is_learned(scores)
        median = f", median {scores['median_mm']:.1f} mm" if run.settings.train.overfit else ""
        said = f"{format_scores(scores)}{median}{'  (best)' if is_best else ''}"
    else:
        look_without_validation(run)
        is_best = True
        said = "kept; nothing to validate on"
    if is_best:
        state.best_epoch = state.epoch
    if is_best and scores:
        show_best(run, scores)
    state.evaluation_is_due = False
    run.output.tracker.say(f"epoch {state.epoch}/{run.settings.train.epochs}: {said}")
    weights = run.learner.weights_to_keep()
    if is_best and run.world.rank == 0:
        record = adapter_record(run, scores["loss"] if scores else None)
        save_adapter(run.learner.model, weights, record, run.output.folder / "best")
    save(run)


def adapter_record(run: Run, eval_loss: float | None) -> AdapterRecord:
    """Return what an adapter of now needs beside its weights."""
    return AdapterRecord.of(
        run.learner.model,
        run.data.depth_range,
        run.data.dataset.size,
        camera=run.data.dataset.camera,
        step=run.state.step,
        epoch=run.state.epoch,
        eval_loss=eval_loss,
    )


def whole_state(
    run: Run, engine_state: tuple[dict[str, Tensor], dict[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return all that a restart needs: tensors by name, and the values beside them."""
    tensors, values = engine_state
    if run.learner.ema:
        average = run.learner.ema.state()
        tensors = tensors | {f"ema/{name}": tensor for name, tensor in average.items()}
    return tensors, {"train": asdict(run.state), "engine": values}


def save(run: Run) -> None:
    """Write RUN/last: every rank takes part, rank 0 writes. The frozen model is not in it."""
    tensors, content = whole_state(run, run.learner.engine.state())
    if run.world.rank == 0:
        run.output.tracker.flush()  # first what is seen of these steps
        folder, num_kept = run.output.folder / "last", run.settings.keep.keep
        save_state(folder, run.state.step, tensors, content, num_kept)


def leave_if_asked(run: Run) -> None:
    """Save and raise Stopped if any rank was asked to stop."""
    if sum_over_ranks([bool(stop_signal())])[0]:
        leave(run)


def leave(run: Run) -> NoReturn:
    """Save and raise Stopped, as a signal to some rank asked for."""
    save(run)
    by = next(filter(None, gather_from_all_ranks(stop_signal())))
    raise Stopped(by, where_saved(run))


def where_saved(run: Run, what: str = "") -> str:
    """Return where a run is stopped, for the line that says so; `what` is going on there."""
    return (
        f"at step {run.state.step} of {run.total_steps}{what}, saved in {run.output.folder}/last;"
        " the same command goes on"
    )


def finish(run: Run) -> None:
    """Load the best adapter from the disk, as a later user will, score it, and print the table.

    raises Stopped after a stop request
    """
    state, folder, tracker = run.state, run.output.folder, run.output.tracker
    run.output.place.bring("best")
    best, _ = load_adapter(folder / "best")
    best.to(run.world.device)
    with stopping("while the best adapter was scored; the same command finishes the table"):
        rows, constant_row, best_row = final_rows(run, best)
    show_end(run, rows[best_row])
    notes = [FOOTNOTE]
    if not run.data.has_validation:
        num, all_train = len(scored_samples(run)), run.data.dataset.count("train")
        notes.append(f"on {num} of {all_train} training images: {FIT}")
    elif len(scored_samples(run)) < run.data.dataset.count("val"):
        num, all_val = len(scored_samples(run)), run.data.dataset.count("val")
        notes.append(f"on {num} of {all_val} validation images (--val-images)")
    tracker.say("\n".join(["", scores_table(rows), *notes, ""]))
    if run.settings.train.overfit:
        tracker.say("\n".join(describe_fit(best_reached(run, best))))
    else:
        describe_end(run, best, rows[constant_row], rows[best_row])
    if run.world.rank == 0:
        mark_as_scored(folder, state.epoch)


def describe_end(
    run: Run, best: DepthModel, constant: dict[str, float], adapter: dict[str, float]
) -> None:
    """Print what is odd about a finished run, and what to do next.

    constant, adapter  mean scores of the same depth everywhere, and of the best adapter
    """
    state, folder, tracker = run.state, run.output.folder, run.output.tracker
    if state.epoch < run.settings.train.epochs:
        waited = state.epoch - state.best_epoch
        best_by = run.settings.schedule.best_by
        tracker.say(f"stopped early: no better eval {best_by} for {waited} epochs (--patience)")
    run.output.warn(dominated_loss(run, best))
    lr = run.learner.engine.lrs[0]
    schedule, total = run.settings.schedule, run.total_steps
    lrs = [lr * lr_factor(schedule, step, total) for step in range(state.step)]
    run.output.warn(diagnostics.budget_exhausted(state.losses[1:], lrs))
    tracker.say(
        f"adapter      {folder}/best\ncurves       tensorboard --logdir {folder.parent}\n"
        f"next         depthdist evaluate --run {folder}"
        f"{'' if run.data.has_validation else ' --split train'}"
    )
    facts = RunFacts(run.settings.as_dict(), run.data.dataset.count("train"), run.state.losses)
    run.output.warn(describe_no_better(constant, adapter, facts))


def final_rows(run: Run, best: DepthModel) -> tuple[dict[str, dict[str, float]], str, str]:
    """Return the mean scores of each row of the final table, and which are two of the rows.

    These are the constant's and the best adapter's.
    """
    state, data = run.state, run.data
    mean_mm = data.dataset.stats("train")["mean_mm"]
    before = "calibrated, before training" if state.line else UNTRAINED
    on = "" if data.has_validation else ", train"
    best_row = f"best adapter, epoch {state.best_epoch}{on}"
    constant = constant_predictor(mean_mm, data.depth_range)
    constant_row = f"constant {mean_mm:.0f} mm{on}"
    rows = {constant_row: score_validation(run, constant)["none"].means()}
    if data.has_validation:
        rows[before] = state.before["none"]
        rows[f"{before}, disparity-aligned"] = state.before["disparity"]
    rows[best_row] = score_validation(run, network_predictor(best))["none"].means()
    return rows, constant_row, best_row


@torch.no_grad()
def dominated_loss(run: Run, best: DepthModel) -> str | None:
    """Return a warning where a few pixels of a validation sample carry half of its loss."""
    batch = run.data.loader.samples(run.data.watched_split, [0]).to(run.world.device)
    target, mask = normalize_depth(batch.depth_mm, run.data.depth_range, batch.mask)
    error = network_predictor(best)(batch) - target
    return diagnostics.dominated(error[0].abs(), mask[0])
