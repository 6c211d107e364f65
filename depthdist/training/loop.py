"""The training loop: one optimizer step after the other, and what is due after each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from depthdist.core.errors import stopping
from depthdist.core.stop_signals import stop_signal
from depthdist.data.batch import Batch, EncodedBatch
from depthdist.data.sample_order import MicroBatchPlan, Position
from depthdist.distributed.process_group import gather_from_all_ranks, sum_over_ranks
from depthdist.geometry.depth_range import normalize_depth
from depthdist.losses.terms import compute_losses
from depthdist.models.sample_dropout import draw_keys
from depthdist.training import diagnostics
from depthdist.training.keeping import end_epoch, leave, leave_if_asked, save
from depthdist.training.parts import Run
from depthdist.training.schedule import lr_factor
from depthdist.training.step_timer import StepTimer
from depthdist.training.validation import check_precision, evaluate_before_training


@dataclass
class StepReport:
    """What one optimizer step was like; losses are of the global batch, the same on every rank."""

    losses: dict[str, float]
    lr: float
    seconds: float
    num_images: int
    epoch: int
    ends_epoch: bool
    stop_asked: bool
    save_is_due: bool


def run_loop(run: Run) -> None:
    """Train from where the state is to the end of the run.

    raises Stopped after a stop request, with everything saved
    """
    state, keep = run.state, run.settings.keep
    if not state.before and run.data.has_validation:
        with stopping(
            f"before the first step of {run.output.folder}; the same command begins it anew"
        ):
            evaluate_before_training(run)
    if state.evaluation_is_due:
        end_epoch(run)
    batches = training_batches(run)
    start_weights = _copy_of_weights(run) if state.epoch == 0 else None
    timer = StepTimer()
    while not run.is_over:
        report = optimizer_step(run, batches, timer)
        if _is_due(state.step, keep.log_every):
            log_step(run, report, timer)
        show_progress(run, report)
        if run.learner.check and _is_due(state.step, keep.watch_every):
            check_precision(run, run.learner.check)
        if report.ends_epoch:
            warn_about_damage_and_gradients(run)
            if start_weights and state.step > 1:
                masters = run.learner.engine.masters()
                run.output.warn(diagnostics.nothing_moved(start_weights, masters))
                start_weights = None
            state.evaluation_is_due = True
            save(run)
            end_epoch(run)
            timer.saved()
            if not run.is_over:
                leave_if_asked(run)
        elif report.stop_asked:
            leave(run)
        elif report.save_is_due:
            save(run)
            timer.saved()


def _is_due(step: int, every: int) -> bool:
    return step % every == 0


def _copy_of_weights(run: Run) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.learner.engine.masters().items()}


def training_batches(run: Run) -> Iterator[EncodedBatch]:
    """Return the micro-batches of this rank, from where the state is to the end of the run."""
    data, state, seed = run.data, run.state, run.settings.train.seed
    position = Position()
    if state.position:
        num_samples = data.plan.num_samples
        position = Position.from_token(state.position, data.dataset.sha256, seed, num_samples)
    epochs = run.settings.train.epochs
    return iter(data.loader.train(data.plan, seed, run.world.rank, position, epochs))


def optimizer_step(run: Run, batches: Iterator[EncodedBatch], timer: StepTimer) -> StepReport:
    """Take one optimizer step: all micro-batches of a global batch. Leaves the state after it."""
    state, engine, keep = run.state, run.learner.engine, run.settings.keep
    sums, seen, group = accumulate_gradients(run, batches, timer)
    save_is_due = run.world.rank == 0 and timer.save_is_due(keep.interval, state.step + 1)
    local = [*(float(value) for value in sums.values()), bool(stop_signal()), save_is_due]
    *values, stop_asked, save_asked = sum_over_ranks(local)
    losses = dict(zip(sums, values))
    check_loss_is_finite(run, losses["loss"], seen)
    factor = lr_factor(run.settings.schedule, state.step, run.total_steps)
    if engine.sums_gradients_itself:
        engine.reduce_gradients()
        check_gradient_is_finite(run, seen)
    engine.step(factor)
    check_gradient_is_finite(run, seen)  # known only now under ZeRO and in fp16
    epoch = group.epoch
    state.step += 1
    state.epoch = group.position.epoch
    state.position = group.position.token(run.data.dataset.sha256, run.settings.train.seed)
    if run.learner.ema:
        run.learner.ema.update(engine.masters())
    return StepReport(
        losses=losses,
        lr=engine.lrs[0] * factor,
        seconds=timer.end_step(),
        num_images=group.num_real,
        epoch=epoch,
        ends_epoch=state.epoch != epoch,
        stop_asked=bool(stop_asked),
        save_is_due=bool(save_asked),
    )


def accumulate_gradients(
    run: Run, batches: Iterator[EncodedBatch], timer: StepTimer
) -> tuple[dict[str, Tensor], list[tuple[list[str], Tensor]], MicroBatchPlan]:
    """Put this rank's share of a global batch through the network, forward and backward.

    returns  the share's sum of each loss; the stems and the losses (B,) of each micro-batch; the
             plan of the last micro-batch, whose optimizer step is still to be taken
    """
    engine = run.learner.engine
    run.learner.model.train()
    will_log = _is_due(run.state.step + 1, run.settings.keep.log_every)
    sums: dict[str, Tensor] = {}
    seen: list[tuple[list[str], Tensor]] = []
    while True:
        with timer.waiting():
            batch = next(batches).to(run.world.device)
        parts = forward(run, batch)
        for name, part in parts.items():
            weighted = (batch.weight * part).double().sum() / batch.group.num_real
            if name == "loss":
                loss = weighted
            sums[name] = sums.get(name, 0.0) + weighted.detach()
        engine.backward(loss, watch=will_log and not seen)
        seen.append((batch.stems, parts["loss"].detach()))
        if batch.group.last:
            return sums, seen, batch.group
        engine.step()
        if run.world.device.type == "cpu":  # a step takes long there; a GPU would have to wait
            leave_if_asked(run)


def forward(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Return each loss of a micro-batch, (B,), at the ground truth's own size.

    Dropout is drawn from (seed, epoch, sample).
    """
    depth_range = run.data.depth_range
    target, mask = normalize_depth(batch.depth_mm, depth_range, batch.mask)
    draws = draw_keys(run.settings.train.seed, batch.group.epoch, batch.samples)
    output = run.learner.engine.forward(batch.rgb, draws.to(batch.rgb.device))
    pred = run.learner.model.upsampled(output, target.shape[-2:])
    return compute_losses(run.settings.loss, pred, target, mask, depth_range)


def check_loss_is_finite(run: Run, loss: float, seen: list[tuple[list[str], Tensor]]) -> None:
    """Raise ValueError, which names the samples, where a loss is no number.

    No weight has changed yet.
    """
    if math.isfinite(loss):
        return
    mine = []
    for stems, losses in seen:
        mine += [s for s, value in zip(stems, losses.tolist()) if not math.isfinite(value)]
    stems = [stem for stems in gather_from_all_ranks(mine) for stem in stems]
    _raise_not_finite(run, f"the loss is {loss} for {', '.join(stems)}")


def check_gradient_is_finite(run: Run, seen: list[tuple[list[str], Tensor]]) -> None:
    """Raise ValueError, which names the batch's samples, where the gradient is no number.

    In fp16 the loss scaler skips such a step, and it is an error where no smaller scale will help.
    """
    problem = run.learner.engine.gradient_problem
    if not problem:
        return
    mine = [stem for stems, _ in seen for stem in stems]
    stems = [stem for stems in gather_from_all_ranks(mine) for stem in stems]
    what = f"the gradient is {problem} although the loss is finite"
    _raise_not_finite(run, f"{what}, for {', '.join(dict.fromkeys(stems))}")


def _raise_not_finite(run: Run, what: str) -> None:
    raise ValueError(
        f"step {run.state.step + 1}: {what}; the last saved state is from before it. Look at these"
        " samples, or try a smaller --lr"
    )


def log_step(run: Run, report: StepReport, timer: StepTimer) -> None:
    """Write the step's losses, learning rate, speed and health to the log and to TensorBoard."""
    values = {f"train/{name}": value for name, value in report.losses.items()}
    values["train/lr"] = report.lr
    values |= timer.health(run.learner.engine, report.num_images)
    run.output.tracker.log(run.state.step, report.epoch, values)


def show_progress(run: Run, report: StepReport) -> None:
    """Move the progress line."""
    run.output.tracker.advance(
        run.state.step,
        loss=f"{report.losses['loss']:.4f}",
        lr=f"{report.lr:.1e}",
        images_s=f"{report.num_images / report.seconds:.2f}",
    )


def warn_about_damage_and_gradients(run: Run) -> None:
    """Log how many samples were damaged, and warn where nothing can be learned any more."""
    state, output = run.state, run.output
    damaged = set().union(*gather_from_all_ranks(run.data.loader.damaged["train"]))
    if damaged:
        output.tracker.log(state.step, state.epoch, {"data/damaged": len(damaged)})
    if run.learner.engine.grad_norm == 0:
        output.warn(
            "the gradient is 0: the network gives the same everywhere and learns no more; start"
            " again with a smaller --lr"
        )
