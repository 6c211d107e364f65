"""Train a second stage of a run, top to bottom: steps, looks at it, the best kept, its state saved.

    if train_stage(task, settings, world, folder, ds_config):
        ...                             # it has just learned its last step

    FOLDER/best/         the stage with the lowest loss on validation data
    FOLDER/last/         all that a restart needs
    FOLDER/scores.json   written last, by `note_scores`
    FOLDER/metrics.jsonl, FOLDER/tensorboard/    its curves and images

A task says what is trained, on what, and how it is looked at (detail/stage.py,
completion/stage.py). The same DeepSpeed engine as for the adapter, the same sums of gradients: what
comes out depends on the data, the settings and the seed alone, not on the ranks or where it was
stopped. The state is the optimizer step: what a step sees is arithmetic on the seed.
"""

from __future__ import annotations

import copy
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from depthdist.core.errors import stopping
from depthdist.core.files import parse_json, write_json
from depthdist.core.settings import flag_name
from depthdist.core.stop_signals import stop_signal
from depthdist.data.dataset import Dataset
from depthdist.distributed.process_group import (
    World,
    broadcast_from_rank_0,
    stop_together,
    sum_over_ranks,
)
from depthdist.distributed.tensor_exchange import broadcast_tensors
from depthdist.models.half_precision import best_dtype
from depthdist.runs.tracker import Tracker
from depthdist.runs.training_state import load_state, save_state
from depthdist.training.engine import Engine
from depthdist.training.settings import Settings
from depthdist.training.stage_batches import StageBatch
from depthdist.training.step_timer import StepTimer

SCORES = "scores.json"
WARMUP = 50  # steps
LEAST_LR = 0.02  # of the highest learning rate, at the end
LOOKS = 10  # evaluations of a training, evenly spread

Network = Callable[..., Any]  # the stage's network, in the stage's precision


class Look(NamedTuple):
    """What was seen of a stage on fixed validation samples.

    loss    by which the best stage is kept
    values  others, by name, for the log
    remark  rest of the printed line
    """

    loss: float
    values: dict[str, float]
    remark: str


class Task(ABC):
    """What a stage trains.

    name      of its folder in the run, and of its values in the log
    samples   what a step has several of: "crops"
    network   begun from the seed
    steps     optimizer steps of the whole training
    batch     samples of one step over all ranks
    lr        highest learning rate
    deciding  settings by name that its weights depend on, besides its data
    loss      what the loss is, for its state: with another one an unfinished stage begins anew
    """

    name: str
    samples: str
    network: nn.Module
    steps: int
    batch: int
    lr: float
    deciding: dict[str, Any]
    loss: dict[str, Any]
    dataset: Dataset

    @property
    def split(self) -> str:
        """The split that is looked at."""
        return "val" if self.dataset.has("val") else "train"

    @abstractmethod
    def describe(self) -> str:
        """Return what is trained, on what."""

    @abstractmethod
    def batches(self, rank: int, world: int, step: int) -> Iterator[Any]:
        """Yield this rank's samples of each step from `step` on, for ever."""

    @abstractmethod
    def losses(self, network: Network, batch: Any) -> dict[str, Tensor]:
        """Return each loss (B,) of a batch; `loss` is the one that is learned."""

    @abstractmethod
    def look(self, network: Network, world: World, tracker: Tracker, step: int) -> Look:
        """Score and draw fixed samples; every rank calls it, and all return the same.

        raises Stopped, on every rank, after a stop request
        """

    @abstractmethod
    def keep(self, weights: dict[str, Tensor], step: int, eval_loss: float | None) -> None:
        """Write the stage as the best so far."""


@dataclass
class StageState:
    """What changes during the stage's training and is not a weight."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    look_is_due: bool = False


@dataclass
class Stage:
    """The parts of the stage's training. Every rank has them; rank 0 writes."""

    task: Task
    settings: Settings
    world: World
    folder: Path
    engine: Engine
    state: StageState
    tracker: Tracker

    @property
    def look_every(self) -> int:
        """Steps from one evaluation to the next."""
        return max(1, self.task.steps // LOOKS)


def train_stage(
    task: Task,
    settings: Settings,
    world: World,
    folder: Path,
    ds_config: dict[str, Any],
) -> bool:
    """Train a stage to its last step; False where that was done and scored before.

    raises ValueError on bad input, Stopped after a stop request, with everything saved
    """

    def say(line: str) -> None:
        if world.rank == 0:
            print(line, flush=True)

    state, tensors, engine_values = read_stage(task, world, folder, say)
    if state.step == task.steps and broadcast_from_rank_0(is_scored(folder, state)):
        say(describe_finished(folder, state))
        return False
    engine = Engine(
        task.network.to(world.device),
        engine_config(ds_config, task.batch),
        [(list(task.network.parameters()), task.lr)],
        world,
        micro_batch(task, world),
    )
    if tensors:
        engine.restore(tensors, engine_values)
    again = state.look_is_due
    with Tracker(folder, world.rank == 0, state.step or None, task.steps, (), again) as tracker:
        stage = Stage(task, settings, world, folder, engine, state, tracker)
        announce(stage)
        run_steps(stage)
    return True


def note_scores(folder: Path, task: Task, scores: dict[str, Any]) -> None:
    """Write what a finished stage scored: with it nothing is left to do."""
    write_json(folder / SCORES, {"step": task.steps, "scores": scores})


def is_scored(folder: Path, state: StageState) -> bool:
    """Return whether the stage of that step was scored on whole images."""
    path = folder / SCORES
    return path.exists() and parse_json(path.read_bytes())["step"] == state.step


def describe_finished(folder: Path, state: StageState) -> str:
    """Return the line that says that a stage has nothing left to train."""
    on = "" if state.best is None else f", loss {state.best:.3f} at step {state.best_step}"
    return f"{folder} is finished: {state.step} steps{on}"


def engine_config(ds_config: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a stage: its own batch, without ZeRO.

    There is nothing to partition in a million parameters.
    """
    config = copy.deepcopy(ds_config)
    config["train_batch_size"] = batch
    config["zero_optimization"] = {"stage": 0}
    return config


def micro_batch(task: Task, world: World) -> int:
    """Return the samples that a rank computes at a time: one on a CPU, all of its own on a GPU.

    One by one no sum depends on how many ranks share them.
    """
    share, rest = divmod(task.batch, world.size)
    assert not rest, "checked with the settings"
    return 1 if world.device.type == "cpu" else share


def other_setting(name: str, new: Any, old: Any, folder: Path) -> ValueError:
    """Return the error that a stage was begun with another value of a setting."""
    return ValueError(
        f"{flag_name(name)} is {new}, but the {folder.name} stage in {folder} began with {old}:"
        f" give that, or remove {folder} to train it anew"
    )


def read_stage(
    task: Task, world: World, folder: Path, say: Callable[[str], None]
) -> tuple[StageState, dict[str, Tensor], dict[str, Any]]:
    """Return where the training is, and the engine's tensors and values of then.

    raises ValueError where it began with other settings, or its best weights are gone
    """
    found = load_state(folder / "last", print) if world.rank == 0 else None
    values = broadcast_from_rank_0(found[1] if found else {})
    if not values:
        return StageState(), {}, {}
    tensors = broadcast_tensors(found[0] if found else {})
    for name, value in task.deciding.items():
        before = values["settings"][name]
        if before != value:
            raise other_setting(name, value, before, folder)
    state = StageState(**values[task.name])
    if state.step < task.steps and values.get("loss") != task.loss:
        say(
            f"{task.name:<12} {folder}/last: step {state.step} was reached with the loss of another"
            f" version of depthdist: the {task.name} stage begins anew"
        )
        if world.rank == 0:
            shutil.rmtree(folder / "last")  # its step counts more than those to come
        return StageState(), {}, {}
    if state.best_step and not broadcast_from_rank_0((folder / "best").exists()):
        raise ValueError(
            f"{folder}/best: the best {task.name} stage so far is gone; remove {folder} to train"
            " it anew, or put it back"
        )
    return state, tensors, values["engine"]


def announce(stage: Stage) -> None:
    """Print what is trained, on what, from where."""
    state, task = stage.state, stage.task
    num = sum(p.numel() for p in task.network.parameters())
    dtype = str(compute_dtype(stage)).removeprefix("torch.")
    stage.tracker.say(
        f"{task.name:<12} {num:,} parameters, {task.steps} steps of {task.describe()}; computes in"
        f" {dtype}, its last layer in float32"
    )
    if state.step:
        stage.tracker.say(f"going on     from step {state.step} of the {task.name} stage")


def compute_dtype(stage: Stage) -> torch.dtype:
    """Return the precision of the inner layers: the engine's, or bf16 where a CPU has units."""
    own = next(stage.task.network.parameters()).dtype
    is_cpu = stage.world.device.type == "cpu"
    return best_dtype(stage.world.device) if own == torch.float32 and is_cpu else own


def network_of(stage: Stage) -> Network:
    """Return the stage's network as a function that computes in the stage's precision."""
    dtype = compute_dtype(stage)
    own = next(stage.task.network.parameters()).dtype

    def network(*inputs: Any) -> Any:
        with torch.autocast(stage.world.device.type, dtype, enabled=dtype != own):
            return stage.engine.forward(*inputs)

    return network


def lr_factor(step: int, total: int) -> float:
    """Return what the learning rate is multiplied by at a step, counted from 0."""
    warm = min(1.0, (step + 1) / min(WARMUP, max(1, total // 4)))
    t = min(1.0, step / total)
    return warm * (LEAST_LR + (1 - LEAST_LR) * (1 + math.cos(math.pi * t)) / 2)


def run_steps(stage: Stage) -> None:
    """Train to the last step; raise Stopped after a stop request, with everything saved."""
    state, task, keep = stage.state, stage.task, stage.settings.keep
    if state.look_is_due:
        look(stage)
        save(stage)
    timer = StepTimer()
    batches = cast(Any, task.batches(stage.world.rank, stage.world.size, state.step))
    with closing(batches):
        while state.step < task.steps:
            losses, stop_asked, save_is_due = optimizer_step(stage, batches, timer)
            seconds = timer.end_step()
            if state.step % keep.log_every == 0:
                log_step(stage, losses, timer)
            show_progress(stage, losses, seconds)
            is_look = state.step % stage.look_every == 0 or state.step == task.steps
            if is_look:
                state.look_is_due = True
                save(stage)
                look(stage)
            if stop_asked or save_is_due or is_look:
                save(stage)
                timer.saved()
            if stop_asked and state.step < task.steps:
                stop_together(f"{where(stage)}; the same command goes on")


def where(stage: Stage) -> str:
    """Return how far a stage is, for the line of a stop."""
    step, task = stage.state.step, stage.task
    return f"at step {step} of {task.steps} of the {task.name} stage, saved in {stage.folder}/last"


def optimizer_step(
    stage: Stage, batches: Iterator[StageBatch], timer: StepTimer
) -> tuple[dict[str, float], bool, bool]:
    """Take one optimizer step; return its losses, and whether to stop and to save after it."""
    state, engine, task = stage.state, stage.engine, stage.task
    with timer.waiting():
        batch = next(batches)
    task.network.train()
    sums: dict[str, Tensor] = {}
    each = micro_batch(task, stage.world)
    for first in range(0, len(batch), each):
        parts = forward(stage, batch.part(first, first + each).to(stage.world.device))
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part.detach().double().sum() / task.batch
        engine.backward(parts["loss"].double().sum() / task.batch)
        if first + each < len(batch):
            engine.step()
    save_is_due = stage.world.rank == 0 and timer.save_is_due(
        stage.settings.keep.interval, state.step + 1
    )
    local = [*(float(value) for value in sums.values()), bool(stop_signal()), save_is_due]
    *values, stop_asked, save_asked = sum_over_ranks(local)
    losses = dict(zip(sums, values))
    if not math.isfinite(losses["loss"]):
        raise _not_finite(stage, f"the loss is {losses['loss']}")
    engine.reduce_gradients()
    _check_gradient(stage)
    engine.step(lr_factor(state.step, task.steps))
    _check_gradient(stage)  # in fp16 known only now
    state.step += 1
    return losses, bool(stop_asked), bool(save_asked)


def _check_gradient(stage: Stage) -> None:
    if problem := stage.engine.gradient_problem:
        raise _not_finite(stage, f"the gradient is {problem} although the loss is finite")


def _not_finite(stage: Stage, what: str) -> ValueError:
    task, step = stage.task, stage.state.step + 1
    return ValueError(
        f"step {step} of the {task.name} stage: {what}; the last saved state is from before it: try"
        f" a smaller {flag_name(f'{task.name}_lr')} in a new stage"
    )


def forward(stage: Stage, batch: Any) -> dict[str, Tensor]:
    """Return each loss (B,) of a batch."""
    return stage.task.losses(network_of(stage), batch)


def log_step(stage: Stage, losses: dict[str, float], timer: StepTimer) -> None:
    """Write a step's losses, learning rate and speed to the log and to TensorBoard."""
    step, task = stage.state.step, stage.task
    values = {f"{task.name}/{name}": value for name, value in losses.items()}
    values[f"{task.name}/lr"] = task.lr * lr_factor(step - 1, task.steps)
    health = timer.health(stage.engine, task.batch)
    values |= {name.replace("train/", f"{task.name}/"): value for name, value in health.items()}
    stage.tracker.log(step, 0, values)


def show_progress(stage: Stage, losses: dict[str, float], seconds: float) -> None:
    """Move the progress line."""
    speed = {f"{stage.task.samples}_s": f"{stage.task.batch / seconds:.1f}"}
    first = next(iter(losses))
    terms = {name: f"{losses[name]:.2f}" for name in ("loss", first)}
    stage.tracker.advance(stage.state.step, **terms, **speed)


@torch.no_grad()
def look(stage: Stage) -> None:
    """Look at fixed samples, and keep the stage where it is the best so far.

    raises Stopped after a stop request; the state that was saved before says what is due
    """
    state, task = stage.state, stage.task
    task.network.eval()
    with stopping(f"in a look {where(stage)}; the same command goes on"):
        seen = task.look(network_of(stage), stage.world, stage.tracker, state.step)
    state.look_is_due = False
    is_best = task.split == "train" or state.best is None or seen.loss < state.best
    if is_best:
        state.best, state.best_step = seen.loss, state.step
    values = {"loss": seen.loss, **seen.values}
    stage.tracker.log(state.step, 0, {f"eval/{name}": value for name, value in values.items()})
    stage.tracker.say(
        f"{task.name} step {state.step}/{task.steps}: loss {seen.loss:.3f} {seen.remark}"
        f"{'  (best)' if is_best else ''}"
    )
    weights = stage.engine.masters()
    if is_best and stage.world.rank == 0:
        task.keep(weights, state.step, seen.loss if task.split == "val" else None)


def save(stage: Stage) -> None:
    """Write FOLDER/last: every rank takes part, rank 0 writes."""
    tensors, values = stage.engine.state()
    if stage.world.rank == 0:
        stage.tracker.flush()
        content = {
            stage.task.name: asdict(stage.state),
            "engine": values,
            "settings": stage.task.deciding,
            "loss": stage.task.loss,
        }
        folder, keep = stage.folder / "last", stage.settings.keep.keep
        save_state(folder, stage.state.step, tensors, content, keep)
