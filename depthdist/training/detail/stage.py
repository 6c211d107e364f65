"""Train the detail stage of a run, top to bottom: coarse depth, steps on crops, the best kept.

    RUN/detail/best/         the stage with the lowest loss on validation crops (models/detail.py)
    RUN/detail/last/         all that a restart needs
    RUN/detail/scores.json   the final table's scores of whole validation images; written last
    RUN/detail/metrics.jsonl, RUN/detail/tensorboard/    its curves and images

The same DeepSpeed engine as for the adapter, the same sums of gradients: what comes out depends on
the data, the settings and the seed alone, not on the ranks or where it was stopped. Its state is
the optimizer step: which crops a step has is arithmetic (data/crops.py).
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from depthdist.core.errors import Stopped
from depthdist.core.files import parse_json, write_json
from depthdist.data.crops import CropPlan
from depthdist.data.dataset import Dataset
from depthdist.data.full_size import FullSizeReader
from depthdist.distributed.process_group import (
    StopRequest,
    World,
    broadcast_from_rank_0,
    gather_from_all_ranks,
    sum_over_ranks,
)
from depthdist.evaluation.tables import FOOTNOTE, scores_table
from depthdist.losses.relief import ReliefWeights, relief_losses
from depthdist.models.adapter_record import read_record
from depthdist.models.detail import (
    DETAIL_FILE,
    DETAIL_FOLDER,
    DetailRecord,
    adapter_sha256,
    best_dtype,
    save_detail,
)
from depthdist.models.detail_network import DetailNetwork
from depthdist.runs.tracker import Tracker
from depthdist.runs.training_state import load_state, save_state
from depthdist.training.detail.coarse import make_coarse, other_setting
from depthdist.training.detail.crop_batches import (
    CropBatch,
    CropReader,
    fixed_draws,
    training_crops,
)
from depthdist.training.detail.looking import ReliefSums, draw_crop, final_scores
from depthdist.training.engine import Engine
from depthdist.training.settings import Settings
from depthdist.training.step_timer import StepTimer

SCORES = "scores.json"
WARMUP = 50  # steps
LEAST_LR = 0.02  # of --detail-lr, at the end
LOOKS = 10  # evaluations of a training, evenly spread
MAX_LOOKED_AT = 64  # validation crops
LOSS = ReliefWeights()


@dataclass
class DetailState:
    """What changes during the stage's training and is not a weight."""

    step: int = 0
    best: float | None = None
    best_step: int = 0


@dataclass
class Stage:
    """The parts of the stage's training. Every rank has them; rank 0 writes."""

    settings: Settings
    world: World
    folder: Path
    adapter: str
    crops: CropReader
    engine: Engine
    network: DetailNetwork
    state: DetailState
    tracker: Tracker

    @property
    def total(self) -> int:
        """Optimizer steps of the whole training."""
        return self.settings.detail.detail_steps

    @property
    def look_every(self) -> int:
        """Steps from one evaluation to the next."""
        return max(1, self.total // LOOKS)

    @property
    def split(self) -> str:
        """The split whose crops are looked at."""
        return "val" if self.crops.reader.dataset.has("val") else "train"


def train_detail(
    settings: Settings,
    world: World,
    run: Path,
    dataset: Dataset,
    ds_config: dict[str, Any],
) -> None:
    """Train the detail stage on a run whose adapter is finished. Every rank calls it.

    raises ValueError on bad input, Stopped after a stop request, with everything saved
    """
    detail = settings.detail
    reader = FullSizeReader(dataset, settings.raw_folder, detail.detail_memory)

    def say(line: str) -> None:
        if world.rank == 0:
            print(line, flush=True)

    folder = run / "detail"
    with StopRequest() as request:
        files = make_coarse(settings, world, run, reader, ds_config, say, request)
        state, tensors, engine_values = read_stage(settings, world, folder, say)
        if state.step == detail.detail_steps and broadcast_from_rank_0(is_scored(folder, state)):
            say(describe_finished(folder, state))
            return
        network = DetailNetwork().begin(settings.train.seed).to(world.device)
        engine = Engine(
            network,
            engine_config(ds_config, detail.detail_crops),
            [(list(network.parameters()), detail.detail_lr)],
            world,
            micro_batch(settings, world),
        )
        if tensors:
            engine.restore(tensors, engine_values)
        bounds = read_record(run / "best").bounds
        crops = CropReader(reader, files, bounds, detail.detail_crop)
        adapter = adapter_sha256(run / "best")
        with Tracker(folder, world.rank == 0, state.step or None, detail.detail_steps) as tracker:
            stage = Stage(settings, world, folder, adapter, crops, engine, network, state, tracker)
            announce(stage)
            run_steps(stage, request)
    finish(stage, run)


def finish(stage: Stage, run: Path) -> None:
    """Score the kept stage on whole validation images, print it, and note that this is done."""
    broadcast_from_rank_0(None)  # rank 0 may still be writing it
    scores = final_scores(stage.crops, run, stage.settings, stage.world)
    if stage.world.rank:
        return
    if scores:
        print("\n".join(["", scores_table(scores), FOOTNOTE, ""]), flush=True)
    print(
        f"detail       {run / DETAIL_FOLDER}; predict, evaluate and serve use it (--refine detail)",
        flush=True,
    )
    write_json(stage.folder / SCORES, {"step": stage.state.step, "scores": scores})


def is_scored(folder: Path, state: DetailState) -> bool:
    """Return whether the stage of that step was scored on whole images."""
    path = folder / SCORES
    return path.exists() and parse_json(path.read_bytes())["step"] == state.step


def describe_finished(folder: Path, state: DetailState) -> str:
    """Return the line that says that a stage has nothing left to train."""
    on = "" if state.best is None else f", loss {state.best:.3f} at step {state.best_step}"
    return (
        f"{folder} is finished: {state.step} steps{on}; predict, evaluate and serve use it"
        " (--refine detail)"
    )


def engine_config(ds_config: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for the stage: its own batch, without ZeRO.

    There is nothing to partition in 0.9 million parameters.
    """
    config = copy.deepcopy(ds_config)
    config["train_batch_size"] = batch
    config["zero_optimization"] = {"stage": 0}
    return config


def micro_batch(settings: Settings, world: World) -> int:
    """Return the crops that a rank computes at a time: one on a CPU, all of its own on a GPU.

    One by one no sum depends on how many ranks share them.
    """
    share, rest = divmod(settings.detail.detail_crops, world.size)
    assert not rest, "checked with the settings"
    return 1 if world.device.type == "cpu" else share


def read_stage(
    settings: Settings, world: World, folder: Path, say: Callable[[str], None]
) -> tuple[DetailState, dict[str, Tensor], dict[str, Any]]:
    """Return where the training is, and the engine's tensors and values of then.

    raises ValueError where it began with other settings, or its best weights are gone
    """
    found = load_state(folder / "last", print) if world.rank == 0 else None
    tensors, values = broadcast_from_rank_0(found[:2] if found else ({}, {}))
    if not values:
        return DetailState(), {}, {}
    for name, value in what_decides(settings).items():
        before = values["settings"][name]
        if before != value:
            raise other_setting(name, value, before, folder)
    state = DetailState(**values["detail"])
    if state.step < settings.detail.detail_steps and values.get("loss") != asdict(LOSS):
        say(
            f"detail       {folder}/last: step {state.step} was reached with the loss of another"
            " version of depthdist: the detail stage begins anew"
        )
        if world.rank == 0:
            shutil.rmtree(folder / "last")  # its step counts more than those to come
        return DetailState(), {}, {}
    if state.best_step and not broadcast_from_rank_0((folder / "best" / DETAIL_FILE).exists()):
        raise ValueError(
            f"{folder}/best: the best detail stage so far is gone; remove {folder} to train it"
            " anew, or put it back"
        )
    return state, tensors, values["engine"]


def what_decides(settings: Settings) -> dict[str, Any]:
    """Return the settings that the stage's weights depend on, besides the coarse predictions."""
    names = ("detail_steps", "detail_crops", "detail_crop", "detail_lr")
    return {name: getattr(settings.detail, name) for name in names} | {"seed": settings.train.seed}


def announce(stage: Stage) -> None:
    """Print what is trained, on what, from where."""
    state, num = stage.state, sum(p.numel() for p in stage.network.parameters())
    dataset, detail = stage.crops.reader.dataset, stage.settings.detail
    dtype = str(compute_dtype(stage)).removeprefix("torch.")
    stage.tracker.say(
        f"detail       {num:,} parameters, {stage.total} steps of {detail.detail_crops} crops of"
        f" {detail.detail_crop} x {detail.detail_crop} pixels from {dataset.count('train')} images"
        f" of {dataset.depth_size}; computes in {dtype}, its last layer in float32"
    )
    if state.step:
        stage.tracker.say(f"going on     from step {state.step} of the detail stage")


def compute_dtype(stage: Stage) -> torch.dtype:
    """Return the precision of the inner layers: the engine's, or bf16 where a CPU has units."""
    own = next(stage.network.parameters()).dtype
    is_cpu = stage.world.device.type == "cpu"
    return best_dtype(stage.world.device) if own == torch.float32 and is_cpu else own


def lr_factor(step: int, total: int) -> float:
    """Return what the learning rate is multiplied by at a step, counted from 0."""
    warm = min(1.0, (step + 1) / min(WARMUP, max(1, total // 4)))
    t = min(1.0, step / total)
    return warm * (LEAST_LR + (1 - LEAST_LR) * (1 + math.cos(math.pi * t)) / 2)


def run_steps(stage: Stage, request: StopRequest) -> None:
    """Train to the last step; raise Stopped after a stop request, with everything saved."""
    state, keep = stage.state, stage.settings.keep
    plan = CropPlan(
        stage.crops.reader.dataset.count("train"),
        stage.settings.detail.detail_crops,
        stage.settings.train.seed,
    )
    timer = StepTimer()
    batches = cast(
        Any, training_crops(stage.crops, plan, stage.world.rank, stage.world.size, state.step)
    )
    with closing(batches):
        while state.step < stage.total:
            losses, stop_asked, save_is_due = optimizer_step(stage, batches, timer, request)
            seconds = timer.end_step()
            if state.step % keep.log_every == 0:
                log_step(stage, losses, timer)
            show_progress(stage, losses, seconds)
            is_look = state.step % stage.look_every == 0 or state.step == stage.total
            if is_look:
                look(stage)
            if stop_asked or save_is_due or is_look:
                save(stage)
                timer.saved()
            if stop_asked and state.step < stage.total:
                names = [signal for signal in gather_from_all_ranks(request.signal) if signal]
                raise Stopped(
                    f"stopped by {names[0]} at step {state.step} of {stage.total} of the detail"
                    f" stage, saved in {stage.folder}/last; the same command goes on"
                )


def optimizer_step(
    stage: Stage, batches: Iterator[CropBatch], timer: StepTimer, request: StopRequest
) -> tuple[dict[str, float], bool, bool]:
    """Take one optimizer step; return its losses, and whether to stop and to save after it."""
    state, engine = stage.state, stage.engine
    size = stage.settings.detail.detail_crops
    with timer.waiting():
        batch = next(batches)
    stage.network.train()
    sums: dict[str, Tensor] = {}
    each = micro_batch(stage.settings, stage.world)
    for first in range(0, len(batch), each):
        parts = forward(stage, batch.part(first, first + each).to(stage.world.device))
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part.detach().double().sum() / size
        engine.backward(parts["loss"].double().sum() / size)
        if first + each < len(batch):
            engine.step()
    save_is_due = stage.world.rank == 0 and timer.save_is_due(
        stage.settings.keep.interval, state.step + 1
    )
    local = [*(float(value) for value in sums.values()), bool(request.signal), save_is_due]
    *values, stop_asked, save_asked = sum_over_ranks(local)
    losses = dict(zip(sums, values))
    if not math.isfinite(losses["loss"]):
        raise ValueError(
            f"step {state.step + 1} of the detail stage: the loss is {losses['loss']}; the last"
            " saved state is from before it: try a smaller --detail-lr in a new stage"
        )
    engine.reduce_gradients()
    engine.step(lr_factor(state.step, stage.total))
    state.step += 1
    return losses, bool(stop_asked), bool(save_asked)


def forward(stage: Stage, batch: CropBatch) -> dict[str, Tensor]:
    """Return each loss (B,) of a batch of crops."""
    return score(stage, batch, predict(stage, batch))


def score(stage: Stage, batch: CropBatch, log_depth: Tensor) -> dict[str, Tensor]:
    """Return each loss (B,) of the logarithm of a refined depth (B, S, S)."""
    width = stage.crops.reader.dataset.depth_size.width
    return relief_losses(LOSS, log_depth, batch.coarse_log, batch.depth_mm, batch.mask, width)


def predict(stage: Stage, batch: CropBatch) -> Tensor:
    """Return the logarithm of the refined depth (B, S, S), computed in the stage's precision."""
    dtype = compute_dtype(stage)
    own = next(stage.network.parameters()).dtype
    with torch.autocast(stage.world.device.type, dtype, enabled=dtype != own):
        return stage.engine.forward(batch.rgb, batch.coarse_log)


def log_step(stage: Stage, losses: dict[str, float], timer: StepTimer) -> None:
    """Write a step's losses, learning rate and speed to the log and to TensorBoard."""
    step, detail = stage.state.step, stage.settings.detail
    values = {f"detail/{name}": value for name, value in losses.items()}
    values["detail/lr"] = detail.detail_lr * lr_factor(step - 1, stage.total)
    health = timer.health(stage.engine, detail.detail_crops)
    values |= {name.replace("train/", "detail/"): value for name, value in health.items()}
    stage.tracker.log(step, 0, values)


def show_progress(stage: Stage, losses: dict[str, float], seconds: float) -> None:
    """Move the progress line."""
    crops = stage.settings.detail.detail_crops / seconds
    stage.tracker.advance(
        stage.state.step,
        loss=f"{losses['loss']:.2f}",
        relief=f"{losses['relief']:.2f}",
        crops_s=f"{crops:.1f}",
    )


@torch.no_grad()
def look(stage: Stage) -> None:
    """Score fixed crops, draw some, and keep the stage where it is the best so far."""
    state, world = stage.state, stage.world
    stage.network.eval()
    dataset = stage.crops.reader.dataset
    num_images = dataset.count(stage.split)
    draws = fixed_draws(num_images, min(MAX_LOOKED_AT, 4 * num_images), stage.settings.train.seed)
    sums = ReliefSums()
    losses = []
    for number in range(world.rank, len(draws), world.size):
        batch = stage.crops(stage.split, [draws[number]]).to(world.device)
        log_depth = predict(stage, batch)
        losses.append((number, float(score(stage, batch, log_depth)["loss"])))
        sums.add(batch, log_depth)
    for number, draw in enumerate(draws[: stage.settings.keep.pictures if world.rank == 0 else 0]):
        batch = stage.crops(stage.split, [draw]).to(world.device)
        drawn = draw_crop(batch, predict(stage, batch))
        stage.tracker.picture(f"{stage.split} crops/{number:02d}", drawn, state.step)
    everyone = sorted(entry for entries in gather_from_all_ranks(losses) for entry in entries)
    loss = math.fsum(value for _, value in everyone) / len(everyone)
    slope, correlation = sums.fit(gather_from_all_ranks)
    is_best = stage.split == "train" or state.best is None or loss < state.best
    if is_best:
        state.best, state.best_step = loss, state.step
    values = {"loss": loss, "relief_slope": slope, "relief_r": correlation}
    stage.tracker.log(state.step, 0, {f"eval/{name}": value for name, value in values.items()})
    stage.tracker.say(
        f"detail step {state.step}/{stage.total}: loss {loss:.3f} on {len(draws)} {stage.split}"
        f" crops; relief follows the camera's with slope {slope:.2f}, r {correlation:.2f}"
        f"{'  (best)' if is_best else ''}"
    )
    weights = stage.engine.masters()
    if is_best and world.rank == 0:
        camera = dataset.depth_size
        record = DetailRecord(
            adapter=stage.adapter,
            widths=stage.network.widths,
            camera=(camera.height, camera.width),
            step=state.step,
            eval_loss=loss if stage.split == "val" else None,
        )
        save_detail(weights, record, stage.folder / "best")


def save(stage: Stage) -> None:
    """Write RUN/detail/last: every rank takes part, rank 0 writes."""
    tensors, values = stage.engine.state()
    if stage.world.rank == 0:
        stage.tracker.flush()
        content = {
            "detail": asdict(stage.state),
            "engine": values,
            "settings": what_decides(stage.settings),
            "loss": asdict(LOSS),
        }
        folder, keep = stage.folder / "last", stage.settings.keep.keep
        save_state(folder, stage.state.step, tensors, content, keep)
