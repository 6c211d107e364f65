"""One run at work: its loop, its evaluations, and what it keeps.

training = Training(settings, world, dataset, loader, plan, bounds, model, engine, ema, check,
state, run, tracker) training.run_to_the_end(request) training.finish()
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthdist.captures.near_duplicates import fingerprint, format_warning, summarize_split
from depthdist.core.errors import Stopped
from depthdist.data.batch import Batch, EncodedBatch
from depthdist.data.dataset import Dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import Position, TrainPlan
from depthdist.distributed.process_group import (
    StopRequest,
    World,
    broadcast_from_rank_0,
    gather_from_all_ranks,
    sum_over_ranks,
)
from depthdist.evaluation.figures import figure, figure_pixels
from depthdist.evaluation.predictors import Predictor, constant_predictor, network_predictor
from depthdist.evaluation.scoring import Scores, score
from depthdist.evaluation.tables import FOOTNOTE, UNTRAINED, format_scores, scores_table
from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_depth
from depthdist.losses import compute_losses
from depthdist.models.adapter import AdapterRecord, load_adapter, save_adapter
from depthdist.models.depth_model import DepthModel
from depthdist.models.sample_dropout import draw_keys
from depthdist.runs.tracker import Tracker
from depthdist.runs.training_state import save_state
from depthdist.training import diagnostics as advice
from depthdist.training.engine import Engine
from depthdist.training.precision_check import LIMIT_MM, Float32Check
from depthdist.training.schedule import Ema, is_better, lr_factor
from depthdist.training.settings import Settings
from depthdist.training.step_timer import StepTimer


@dataclass
class TrainState:
    """All that changes during training and is not a weight; it survives a restart.

    step, epoch     optimizer steps taken, epochs finished
    position        where in the data training goes on, as Position.token gives it
    line            scale, shift and explained share of the calibrated start, where there was one
    best            best score so far of --best-by, and best_epoch, at whose end
    before          scores of the model before training, as it is and by alignment
    losses          eval loss of every evaluation
    """

    step: int = 0
    epoch: int = 0
    position: dict[str, Any] = field(default_factory=dict)
    line: list[float] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass
class Training:
    """The parts of one run, and what is done with them. Every rank does the same; rank 0 writes."""

    settings: Settings
    world: World
    dataset: Dataset
    loader: Loader
    plan: TrainPlan
    bounds: DepthRange
    model: DepthModel
    engine: Engine
    ema: Ema | None
    check: Float32Check | None
    state: TrainState
    run: Path
    tracker: Tracker

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        return self.plan.steps_per_epoch * self.settings.train.epochs

    @property
    def over(self) -> bool:
        """Whether nothing is left to train: the epochs are done, or there was no new best for
        --patience of them.
        """
        waited = self.state.epoch - self.state.best_epoch
        return self.state.epoch >= self.settings.train.epochs or bool(
            self.state.best_epoch and 0 < self.settings.schedule.patience <= waited
        )

    def run_to_the_end(self, request: StopRequest) -> None:
        """Epoch after epoch, from where the state is; an evaluation after each."""
        state, settings = self.state, self.settings
        if not state.before:
            state.before = self.evaluate(["none", "disparity"])
            self.tracker.say(f"before training: {format_scores(state.before['none'])}")
        position = (
            Position.from_token(
                state.position, self.dataset.sha256, settings.train.seed, self.plan.num_samples
            )
            if state.position
            else Position()
        )
        batches = iter(
            self.loader.train(
                self.plan, settings.train.seed, self.world.rank, position, settings.train.epochs
            )
        )
        start_weights = (
            {name: tensor.clone() for name, tensor in self.engine.masters().items()}
            if state.epoch == 0
            else None
        )
        speed = StepTimer()
        while not self.over:
            epoch = state.epoch
            while state.epoch == epoch:
                self.take_step(batches, speed, request)
            if lost := set().union(*gather_from_all_ranks(self.loader.damaged["train"])):
                self.tracker.log(state.step, state.epoch, {"data/damaged": len(lost)})
            if self.engine.grad_norm == 0:
                self.warn(
                    "the gradient is 0: the network gives the same everywhere and learns no more;"
                    " start again with a smaller --lr"
                )
            if start_weights and state.step > 1:
                self.warn(advice.nothing_moved(start_weights, self.engine.masters()))
                start_weights = None
            self.end_epoch()
            speed.saved()
            if not self.over:
                self.leave_if_asked(request)

    def take_step(
        self, batches: Iterator[EncodedBatch], speed: StepTimer, request: StopRequest
    ) -> None:
        """One optimizer step: all micro-batches of a global batch.

        Leaves `state` after it, and saved where that is due.
        """
        state, engine, settings = self.state, self.engine, self.settings.keep
        self.model.train()
        logged = (state.step + 1) % settings.log_every == 0
        sums, seen = {}, []
        while True:
            with speed.waiting():
                batch = next(batches).to(self.world.device)
            group, parts = batch.group, self.forward(batch)
            weighted = {
                name: (batch.weight * part).double().sum() / group.num_real
                for name, part in parts.items()
            }
            engine.backward(weighted["loss"], watch=logged and not seen)
            sums = {name: sums.get(name, 0.0) + value.detach() for name, value in weighted.items()}
            seen.append((batch.keys, parts["loss"].detach()))
            if group.last:
                break
            engine.step()
            if (
                self.world.device.type == "cpu"
            ):  # a step takes long there; a GPU would have to be waited for
                self.leave_if_asked(request)
        due = self.world.rank == 0 and speed.save_is_due(settings.interval, state.step + 1)
        *values, asked, due = sum_over_ranks(
            [*(float(v) for v in sums.values()), bool(request.signal), due]
        )
        values, factor = (
            dict(zip(sums, values)),
            lr_factor(self.settings.schedule, state.step, self.total),
        )
        self.stop_unless_finite(values["loss"], seen)
        engine.step(factor)
        self.stop_unless_finite(0.0 if engine.precision == "fp16" else engine.grad_norm, [])
        state.step, state.epoch = state.step + 1, group.position.epoch
        state.position = group.position.token(self.dataset.sha256, self.settings.train.seed)
        if self.ema:
            self.ema.update(engine.masters())
        seconds, lr = speed.end_step(), engine.lrs[0] * factor
        if logged:
            self.tracker.log(
                state.step,
                group.epoch,
                {
                    **{f"train/{n}": v for n, v in values.items()},
                    "train/lr": lr,
                    **speed.health(engine, group.num_real),
                },
            )
        self.tracker.advance(
            state.step,
            loss=f"{values['loss']:.4f}",
            lr=f"{lr:.1e}",
            images_s=f"{group.num_real / seconds:.2f}",
        )
        if self.check and state.step % settings.watch_every == 0:
            self.look_at_precision(self.check)
        if state.epoch == group.epoch:  # at an epoch's end it is saved after the evaluation
            if due and not asked:
                self.save()
                speed.saved()
            if asked:
                self.leave(request)

    def stop_unless_finite(self, value: float, seen: list[tuple[list[str], Tensor]]) -> None:
        """ValueError, before any weight is saved, where a loss or a gradient is no number.

        It names the samples.
        """
        if math.isfinite(value):
            return
        mine = [
            key
            for keys, losses in seen
            for key, loss in zip(keys, losses.tolist())
            if not math.isfinite(loss)
        ]
        keys = [key for keys in gather_from_all_ranks(mine) for key in keys]
        what = (
            f"the loss is {value} for {', '.join(keys)}"
            if keys
            else f"the gradient is {value} although the loss is finite"
        )
        raise ValueError(
            f"step {self.state.step + 1}: {what}; the last saved state is from before it. Look at"
            " these samples, or try a smaller --lr"
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of a micro-batch, (B,), at the truth's own size.

        Dropout is drawn from (seed, epoch, sample).
        """
        target, mask = normalize_depth(batch.depth_mm, self.bounds, batch.mask)
        draws = draw_keys(self.settings.train.seed, batch.group.epoch, batch.samples).to(
            batch.rgb.device
        )
        pred = self.model.upsampled(self.engine.forward(batch.rgb, draws), target.shape[-2:])
        return compute_losses(self.settings.loss, pred, target, mask, self.bounds)

    # ---- looking

    def predictor(self) -> Predictor:
        """The network as it is evaluated now."""
        self.model.eval()
        return network_predictor(self.model)

    def scores(self, predict: Predictor, ways: Sequence[str] = ("none",)) -> dict[str, Scores]:
        """Over the validation split by alignment, every sample once over all ranks."""
        batches = self.loader.evaluate(
            "val", self.plan.micro_batch, self.world.rank, self.world.size
        )
        return score(
            predict,
            batches,
            self.dataset.count("val"),
            self.bounds,
            self.settings.loss,
            self.world.device,
            gather_from_all_ranks,
            ways,
        )

    def evaluate(self, ways: Sequence[str] = ("none",)) -> dict[str, dict[str, float]]:
        """Mean scores of now by alignment, and pictures; those without alignment are logged."""
        with self.engine.holding(self.ema.weights if self.ema else None):
            found = {
                way: scores.means() for way, scores in self.scores(self.predictor(), ways).items()
            }
            self.tracker.log(
                self.state.step,
                self.state.epoch,
                {
                    f"eval/{name}": value
                    for name, value in found["none"].items()
                    if name not in ("images", "damaged")
                },
            )
            self.draw()
        self.state.losses.append(found["none"]["loss"])
        return found

    @torch.no_grad()
    def draw(self) -> None:
        """RGB | truth | prediction | error of the same validation samples, evenly spread, in
        TensorBoard.
        """
        num, count = self.dataset.count("val"), self.settings.keep.pictures
        for i in sorted({k * num // max(count, 1) for k in range(min(count, num))}):
            batch = self.loader.samples("val", [i]).to(self.world.device)
            pred_mm = denormalize_depth(
                self.predictor()(batch), self.bounds
            )  # every rank: under ZeRO 3 they need each other
            if self.world.rank == 0:
                arrays = (
                    batch.rgb[0].cpu().numpy(),
                    pred_mm[0].cpu().numpy(),
                    batch.depth_mm[0].cpu().numpy(),
                )
                title = f"{batch.keys[0]}, step {self.state.step}"
                self.tracker.picture(
                    f"validation/{i:03d} {batch.keys[0]}",
                    figure_pixels(figure(*arrays, title=title, columns=2)),
                    self.state.step,
                )

    def look_at_precision(self, check: Float32Check) -> None:
        off_mm = check.difference_mm(self.engine.masters(), self.predictor())
        self.tracker.log(self.state.step, self.state.epoch, {"eval/precision_mm": off_mm})
        if off_mm > LIMIT_MM:
            self.warn(
                f"{self.engine.precision} moves a depth by up to {off_mm:.2f} mm against float32"
                f" (step {self.state.step}, one validation sample)"
            )

    def near_duplicates(self) -> str | None:
        """What rank 0 says of validation pictures that the training set has too, of 256 and 64
        pictures at most.
        """
        if self.world.rank:
            return None
        seen = {}
        for split, most in (("train", 256), ("val", 64)):
            num = self.dataset.count(split)
            batches = [
                self.loader.samples(split, [i]).to("cpu")
                for i in sorted(
                    {k * num // most for k in range(most)} if num > most else range(num)
                )
            ]
            seen[split] = (
                np.stack([fingerprint(b.rgb[0].numpy()) for b in batches]),
                [b.keys[0] for b in batches],
            )
        (train, train_keys), (val, val_keys) = seen["train"], seen["val"]
        return format_warning(summarize_split(val, train, val_keys, train_keys))

    def warn(self, line: str | None) -> None:
        if line:
            self.tracker.say(f"WARNING      {line}")

    # ---- keeping

    def end_epoch(self) -> None:
        """Evaluate; keep the adapter where it is the best so far, and all that a restart needs."""
        state, name = self.state, self.settings.schedule.best_by
        scores = self.evaluate()["none"]
        is_best = is_better(
            name, scores[name], state.best
        )  # the reduced value: the same on every rank
        if is_best:
            state.best, state.best_epoch = scores[name], state.epoch
        self.tracker.say(
            f"epoch {state.epoch}/{self.settings.train.epochs}:"
            f" {format_scores(scores)}{'  (best)' if is_best else ''}"
        )
        weights = self.ema.weights if self.ema else self.engine.masters()
        if is_best and self.world.rank == 0:
            adapter = AdapterRecord.of(
                self.model,
                self.bounds,
                self.dataset.size,
                step=state.step,
                epoch=state.epoch,
                eval_loss=scores["loss"],
            )
            save_adapter(self.model, weights, adapter, self.run / "best")
        self.save()

    def save(self) -> None:
        """Write RUN/last: every rank takes part, rank 0 writes. The frozen model is not in it."""
        tensors, values = self.engine.state()
        if self.ema:
            tensors |= {f"ema/{name}": tensor for name, tensor in self.ema.state().items()}
        if self.world.rank == 0:
            self.tracker.flush()  # first what is seen of these steps
            save_state(
                self.run / "last",
                self.state.step,
                tensors,
                {"train": asdict(self.state), "engine": values},
                self.settings.keep.keep,
            )

    def leave_if_asked(self, request: StopRequest) -> None:
        if sum_over_ranks([bool(request.signal)])[0]:
            self.leave(request)

    def leave(self, request: StopRequest) -> None:
        """Save and end, as somebody asked for by a signal."""
        self.save()
        name = next(signal for signal in gather_from_all_ranks(request.signal) if signal)
        raise Stopped(
            f"stopped by {name} at step {self.state.step} of {self.total}, saved in"
            f" {self.run}/last; the same command goes on"
        )

    def finish(self) -> None:
        """Restore the best adapter from the disk, as a later user will, score it, and print the
        table.
        """
        state, run = self.state, self.run
        broadcast_from_rank_0(None)  # it may still be writing
        best, _ = load_adapter(run / "best")
        best.to(self.world.device)
        mean_mm = self.dataset.stats("train")["mean_mm"]
        row = f"best adapter, epoch {state.best_epoch}"
        before = "calibrated, before training" if state.line else UNTRAINED
        rows = {
            f"constant {mean_mm:.0f} mm": (
                self.scores(constant_predictor(mean_mm, self.bounds))["none"].means()
            ),
            before: state.before["none"],
            f"{before}, disparity-aligned": state.before["disparity"],
            row: self.scores(network_predictor(best))["none"].means(),
        }
        self.tracker.log(
            state.step,
            state.epoch,
            {
                f"best/{name}": value
                for name, value in rows[row].items()
                if name not in ("images", "damaged")
            },
        )
        self.tracker.say(f"\n{scores_table(rows)}\n{FOOTNOTE}\n")
        if state.epoch < self.settings.train.epochs:
            self.tracker.say(
                f"stopped early: no better eval {self.settings.schedule.best_by} for"
                f" {state.epoch - state.best_epoch} epochs (--patience)"
            )
        batch = self.loader.samples("val", [0]).to(self.world.device)
        target, mask = normalize_depth(batch.depth_mm, self.bounds, batch.mask)
        with torch.no_grad():
            self.warn(advice.dominated((network_predictor(best)(batch) - target)[0].abs(), mask[0]))
        self.warn(
            advice.budget_exhausted(
                state.losses[1:],
                [
                    self.engine.lrs[0] * lr_factor(self.settings.schedule, step, self.total)
                    for step in range(state.step)
                ],
            )
        )
        self.tracker.say(
            f"adapter      {run}/best\ncurves       tensorboard --logdir {run.parent}\nnext        "
            f" python launch/evaluate.py --run {run}"
        )
