"""The main job, top to bottom: read the settings, build the parts, train, keep the best, score it.

    deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data data/tires --run runs/first

Every epoch is evaluated; rank 0 keeps the best adapter in RUN/best and all that a restart needs in RUN/last. What comes out
depends on the data, the settings and the seed alone: not on ranks, micro-batches, or where the run was stopped.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from depthdist import advice, config
from depthdist.augment import AugmentSettings
from depthdist.calibrate import fit
from depthdist.checkpoint import RECORD as ADAPTER
from depthdist.checkpoint import AdapterRecord, load_adapter, save_adapter
from depthdist.config import Stopped, as_dict, field_names
from depthdist.dataset import DataSettings, Dataset, ReadSettings, open_dataset
from depthdist.depth import Bounds, depth_from_target, inverse_target, upsample
from depthdist.dropout import draw_keys
from depthdist.engine import Engine, EngineSettings, precision
from depthdist.evaluate import Predictor, constant, network, score, table
from depthdist.facts import derived, describe, markdown, record, training_bounds
from depthdist.figures import figure, pixels
from depthdist.float32 import LIMIT_MM, Float32Check
from depthdist.health import Speed, brief, quarantined
from depthdist.lora import LoraSettings, trained_groups, with_lora
from depthdist.losses import LossSettings, compute
from depthdist.microbatch import fits, largest, step_memory
from depthdist.model import DepthModel, ModelSettings, load_base, quiet
from depthdist.order import Position, TrainPlan
from depthdist.runs import RECORD, open_run
from depthdist.schedule import Ema, ScheduleSettings, better, rate
from depthdist.shards.remote import CacheSettings
from depthdist.state import load_state, save_state, states
from depthdist.stream import Batch, Loader, Packed
from depthdist.tracker import Tracker, write_json
from depthdist.world import StopRequest, World, from_all_ranks, from_rank_0, start, stop, sum_over_ranks, world_size

HELP = """Fine-tune a Depth Anything V2 with LoRA on shards of RGB and depth.

  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data data/tires --run runs/first
  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --dry-run
  deepspeed launch/train.py --config runs/first/run.json --run runs/again       # the same once more"""
RECIPES: dict[str, dict[str, Any]] = {"document": {}, "near": {"calibrate": True}}
"""What each --recipe sets; other flags win over it."""


@dataclass(frozen=True)
class TrainSettings:
    """Training"""

    run: Path | None = None
    "Folder of the run, made where it is missing. Default: runs/<time>."
    recipe: Literal["document", "near"] = "document"
    "Defaults of the other settings: the published recipe's, or those that came out best near the camera."
    epochs: int = 15
    "Times that every training sample is seen."
    lr: float = 5e-5
    "Highest learning rate of LoRA."
    decoder_lr: float | None = None
    "Highest learning rate of what trains beside LoRA. Default: --lr."
    calibrate: bool = False
    "Begin with the scale and shift that fit the untrained model to the training set; they go into the adapter."
    seed: int = 0
    "Of the adapter's start, the order of the samples, augmentation and dropout."

    def problems(self) -> list[str]:
        found = [f"--epochs is {self.epochs}: expected >= 1"] if self.epochs < 1 else []
        found += [f"--seed is {self.seed}: expected 0 .. 2**63 - 1"] if not 0 <= self.seed < 2**63 else []
        for name, value in (("lr", self.lr), ("decoder-lr", self.decoder_lr)):
            if value is not None and not 0 < value < math.inf:
                found.append(f"--{name} is {value}: expected > 0")
        return found + ([] if self.run is None else unwritable(self.run))


@dataclass(frozen=True)
class KeepSettings:
    """Keeping, going on, and looking"""

    resume: str = "auto"
    "auto: go on where RUN stopped. never: refuse a RUN that is begun. A run's folder: go on from its last state, in RUN."
    save_every: str = "10min"
    "Keep all that a restart needs after so many optimizer steps (50) or so much time (10min), and after every epoch."
    keep: int = 2
    "How many of the last states are kept."
    log_every: int = 1
    "Optimizer steps from one logged step to the next."
    watch_every: int = 50
    "Optimizer steps from one look at what the precision costs to the next: a validation sample in float32 beside it; 0: never."
    pictures: int = 4
    "Validation samples drawn at each evaluation, the same ones every time."
    dry_run: bool = False
    "Print everything that follows from the settings, and stop."

    def problems(self) -> list[str]:
        limits = (("keep", self.keep, 1), ("log-every", self.log_every, 1), ("watch-every", self.watch_every, 0), ("pictures", self.pictures, 0))
        found = [f"--{name} is {value}: expected >= {least}" for name, value, least in limits if not least <= value < 2**63]
        try:
            self.interval
        except ValueError as err:
            found.append(str(err))
        if self.resume not in ("auto", "never") and not states(Path(self.resume) / "last"):
            found.append(f"--resume {self.resume}: expected auto, never, or the folder of a run that has a last/ state")
        return found

    @property
    def interval(self) -> tuple[int, float]:
        """(steps, seconds) of --save-every, of which one is 0."""
        text = self.save_every.strip()
        number = text.removesuffix("min")
        try:
            value = float(number) if number != text else int(number)
        except ValueError:
            value = 0
        if not 0 < value < 2**63:
            raise ValueError(f"--save-every is {self.save_every}: expected optimizer steps, such as 50, or minutes, such as 10min")
        return (0, 60.0 * value) if number != text else (int(value), 0.0)


GROUPS = (DataSettings, AugmentSettings, ModelSettings, LoraSettings, LossSettings, TrainSettings, ScheduleSettings, KeepSettings, EngineSettings)
# what a resumed run may change; that data and DeepSpeed's file hold the same as before is compared by content
FREE_TO_CHANGE = {"run", "recipe", "epochs", "patience", "data", *field_names(KeepSettings, EngineSettings, ReadSettings, CacheSettings)}


@dataclass(frozen=True)
class Settings:
    """All of them, a group a field."""

    data: DataSettings
    augment: AugmentSettings
    model: ModelSettings
    lora: LoraSettings
    loss: LossSettings
    train: TrainSettings
    schedule: ScheduleSettings
    keep: KeepSettings
    engine: EngineSettings

    def as_dict(self) -> dict[str, Any]:
        return as_dict(*vars(self).values())


@dataclass
class TrainState:
    """All that changes during training and is not a weight; it survives a restart.

    step, epoch     optimizer steps taken, epochs finished
    position        where in the data training goes on, as Position.token gives it
    line            scale, shift and explained share of the calibrated start, where there was one
    best            best score so far of --best-by, and best_epoch, at whose end
    before          scores of the model before training
    losses          eval loss of every evaluation
    """

    step: int = 0
    epoch: int = 0
    position: dict[str, Any] = field(default_factory=dict)
    line: list[float] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    before: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


def main(argv: list[str] | None = None) -> None:
    """Command line of launch/train.py."""
    quiet()
    settings = Settings(*config.parse(HELP, *GROUPS, argv=argv, together=lambda *groups: check_together(Settings(*groups)), presets=("recipe", RECIPES)))
    if settings.keep.dry_run:
        return dry_run(settings)
    train(settings, start())
    stop()  # not after an error: under NCCL it would wait for ranks that wait for this one


def check_together(settings: Settings) -> list[str]:
    """What is wrong with settings that are right one by one."""
    run, resume, found = settings.train.run, settings.keep.resume, []
    if resume != "auto" and run is not None and (run / RECORD).exists():
        found.append(f"--run {run}: a run is there already; {'take another name, or --resume auto to go on' if resume == 'never' else '--resume PATH starts a new one'}")
    try:
        dataset = open_dataset(settings.data)
        dataset.count("val")
        for micro_batch in settings.engine.micro_batches(world_size()):
            plan = TrainPlan(dataset.order(settings.train.seed).num_samples, settings.engine.global_batch, micro_batch, world_size())
        if settings.schedule.warmup >= (total := plan.steps_per_epoch * settings.train.epochs):
            found.append(f"--warmup is {settings.schedule.warmup}: expected fewer than the run's {total} optimizer steps")
        ds_config, _ = settings.engine.resolved()
        if settings.schedule.ema and ds_config.get("zero_optimization", {}).get("stage", 0) == 3:
            found.append("--ema with ZeRO 3: the weights lie in pieces; use stage 0, 1 or 2")
    except ValueError as err:
        return [*found, str(err)]
    source = run if resume in ("auto", "never") else Path(resume)
    if found or source is None or not (source / RECORD).exists():
        return found
    begun, now = open_run(source).record, settings.as_dict()
    changed = {n: (begun["settings"].get(n), v) for n, v in now.items() if n not in FREE_TO_CHANGE and begun["settings"].get(n) != v}
    found = [f"--{n.replace('_', '-')} is {new}, but the run in {source} began with {old}: give that, or begin anew in another --run" for n, (old, new) in changed.items()]
    differing = sorted(key for key in begun["deepspeed_config"].keys() | ds_config.keys() if begun["deepspeed_config"].get(key) != ds_config.get(key))
    differing = [key for key in differing if key != "zero_optimization"]  # a state fits every stage
    found += [f"{settings.engine.deepspeed}: {key} is {ds_config.get(key)}, but the run in {source} began with {begun['deepspeed_config'].get(key)}" for key in differing]
    if begun["derived"]["data_sha256"] != dataset.sha256:
        found.append(f"--data {dataset.place}: the data changed since the run in {source} began; begin anew in another --run")
    return found


def unwritable(run: Path) -> list[str]:
    """Why a run cannot be written there."""
    if run.exists() and not run.is_dir():
        return [f"--run {run}: is a file; expected a folder or a new name"]
    parent = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK) or str(parent.resolve()).startswith(("/proc", "/sys")):
        return [f"--run {run}: {parent} cannot be written"]
    return []


def dry_run(settings: Settings) -> None:
    """Print all that follows from the settings; compute and write nothing."""
    if int(os.environ.get("RANK", 0)):
        return
    dataset = open_dataset(settings.data)
    ds_config, remarks = settings.engine.resolved()
    plan = TrainPlan(dataset.order(settings.train.seed).num_samples, settings.engine.global_batch, settings.engine.micro_batches(world_size())[0], world_size())
    model = with_lora(load_base(settings.model.model), settings.lora, settings.train.seed)
    facts = derived(dataset, plan, Loader(dataset, settings.data, settings.augment), model, settings.train.epochs, precision(ds_config))
    memory = step_memory(model, plan.micro_batch, dataset.size, dataset.depth_size, facts["precision"])
    lines = [*describe(facts), f"memory       about {sum(memory.values()) / 2**30:.2f} GiB a rank: " + ", ".join(f"{n} {b / 2**20:.0f} MiB" for n, b in memory.items())]
    if settings.engine.micro_batch == "auto":
        lines.append("micro-batch  the largest that fits is found when training starts; shown is the largest that the global batch allows")
    lines += [f"setting      {name} = {value}" for name, value in settings.as_dict().items() if value is not None]
    print("\n".join([*lines, *remarks, "dry run: nothing was computed or written"]))


# ------------------------------------------------------------------------------------------------------- the job


def train(settings: Settings, world: World) -> None:
    """Train as the settings say. Every rank calls it; rank 0 writes."""
    dataset = open_dataset(settings.data)
    if from_rank_0(dataset.sha256) != dataset.sha256:
        raise ValueError(f"--data {dataset.place}: rank {world.rank} sees other data than rank 0; every node needs the same shards")
    bounds, (ds_config, remarks) = training_bounds(dataset), settings.engine.resolved()
    run = from_rank_0(settings.train.run or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
    if world.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
    tensors, engine_state, state = resume(run, settings.keep.resume, world)
    loader = Loader(dataset, settings.data, settings.augment, world.device, lambda damage: quarantined(damage, run))

    base = load_base(settings.model.model)
    if settings.train.calibrate:
        state.line = state.line or list(from_rank_0(fit(base, loader, bounds, world)))
        base.cpu().rescale(*state.line[:2])
    model = with_lora(base, settings.lora, settings.train.seed)
    if settings.engine.checkpointing:
        model.checkpoint_activations()
    sizes, candidates = (dataset.size, dataset.depth_size), settings.engine.micro_batches(world.size)
    micro_batch = candidates[0]
    if settings.engine.micro_batch == "auto":
        micro_batch = largest(candidates, lambda n: fits(model, n, *sizes, settings.loss, bounds, world.device, precision(ds_config)))
    plan = TrainPlan(dataset.order(settings.train.seed).num_samples, settings.engine.global_batch, micro_batch, world.size)
    check = None
    if settings.keep.watch_every and precision(ds_config) != "fp32":
        check = Float32Check(model, loader.samples("val", [0]).to(world.device), bounds)
    rates = {"lora": settings.train.lr, "decoder": settings.train.decoder_lr or settings.train.lr}
    engine = Engine(model, ds_config, [(parameters, rates[name]) for name, parameters in trained_groups(model).items()], world, micro_batch)
    if settings.engine.compile:
        model.compile()
    ema = Ema(settings.schedule.ema) if settings.schedule.ema else None
    if engine_state:
        engine.restore({n: t for n, t in tensors.items() if not n.startswith("ema/")}, engine_state)
        if ema:
            ema.load({n.removeprefix("ema/"): t.to(world.device) for n, t in tensors.items() if n.startswith("ema/")})
    if state.best_epoch and not from_rank_0((run / "best" / ADAPTER).exists()):
        raise ValueError(f"{run}/best: the best adapter so far is gone; remove {run} to begin anew, or put it back")

    facts = derived(dataset, plan, loader, model, settings.train.epochs, engine.precision)
    tracker = Tracker(run, world.rank == 0, state.step if engine_state else None, facts["steps"])
    training = Training(settings, world, dataset, loader, plan, bounds, model, engine, ema, check, state, run, tracker)
    finished = training.over
    if world.rank == 0 and not (finished and (run / RECORD).exists()):
        write_json(run / RECORD, record(settings.as_dict(), facts, ds_config, remarks, world.device))
    for line in [*describe(facts), *(["calibrated   output x {:.4g} + {:.4g}, which explains {:.0%} of the targets' variance".format(*state.line)] if state.line else []), *remarks]:
        tracker.say(line)
    try:
        if finished and from_rank_0(tracker.holds("best/loss")):
            tracker.say(f"{run} is finished: {state.epoch} epochs, best eval {settings.schedule.best_by} {state.best:.4f} at epoch {state.best_epoch}. More --epochs would go on")
            return
        if not engine_state:
            tracker.text("settings", markdown(facts))
            training.warn(training.near_duplicates())
        with StopRequest() as request:
            training.run_to_the_end(request)
        training.finish()
    except torch.OutOfMemoryError as err:
        raise ValueError(f"out of memory with micro-batches of {plan.micro_batch}: try --micro-batch auto, --checkpointing, or smaller pictures ({str(err)[:120]})") from err
    finally:
        tracker.close()


def resume(run: Path, how: str, world: World) -> tuple[dict[str, Tensor], dict[str, Any], TrainState]:
    """What to go on from: of `run`, of another run, or nothing. Rank 0's disk decides."""
    source = run if how in ("auto", "never") else Path(how)
    found = load_state(source / "last", lambda line: print(f"WARNING      {line}", flush=True)) if world.rank == 0 and how != "never" else None
    tensors, values = from_rank_0(found[:2] if found else ({}, {}))
    if not values:
        return {}, {}, TrainState()
    if world.rank == 0:
        print(f"going on     from {found[2]}: step {values['train']['step']}, {values['train']['epoch']} epochs finished, {len(tensors)} tensors", flush=True)
        if source != run and (source / "best").exists():
            shutil.copytree(source / "best", run / "best", dirs_exist_ok=True)
    return tensors, values["engine"], TrainState(**values["train"])


@dataclass
class Training:
    """The parts of one run, and what is done with them. Every rank does the same; rank 0 writes."""

    settings: Settings
    world: World
    dataset: Dataset
    loader: Loader
    plan: TrainPlan
    bounds: Bounds
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
        """Whether nothing is left to train: the epochs are done, or there was no new best for --patience of them."""
        waited = self.state.epoch - self.state.best_epoch
        return self.state.epoch >= self.settings.train.epochs or bool(self.state.best_epoch and 0 < self.settings.schedule.patience <= waited)

    def run_to_the_end(self, request: StopRequest) -> None:
        """Epoch after epoch, from where the state is; an evaluation after each."""
        state, settings = self.state, self.settings
        if not state.before:
            state.before = self.evaluate()
            self.tracker.say(f"before training: {brief(state.before)}")
        position = Position.from_token(state.position, self.dataset.sha256, settings.train.seed, self.plan.num_samples) if state.position else Position()
        batches = iter(self.loader.train(self.plan, settings.train.seed, self.world.rank, position, settings.train.epochs))
        start_weights = {name: tensor.clone() for name, tensor in self.engine.masters().items()} if state.epoch == 0 else None
        speed = Speed()
        while not self.over:
            epoch = state.epoch
            while state.epoch == epoch:
                self.take_step(batches, speed, request)
            if lost := set().union(*from_all_ranks(self.loader.damaged["train"])):
                self.tracker.log(state.step, state.epoch, {"data/damaged": len(lost)})
            if self.engine.grad_norm == 0:
                self.warn("the gradient is 0: the network gives the same everywhere and learns no more; start again with a smaller --lr")
            if start_weights and state.step > 1:
                self.warn(advice.nothing_moved(start_weights, self.engine.masters()))
                start_weights = None
            self.end_epoch()
            speed.saved()
            if not self.over:
                self.leave_if_asked(request)

    def take_step(self, batches: Iterator[Packed], speed: Speed, request: StopRequest) -> None:
        """One optimizer step: all micro-batches of a global batch. Leaves `state` after it, and saved where that is due."""
        state, engine, settings = self.state, self.engine, self.settings.keep
        self.model.train()
        logged = (state.step + 1) % settings.log_every == 0
        sums, seen = {}, []
        while True:
            with speed.waiting():
                batch = next(batches).to(self.world.device)
            group, parts = batch.group, self.forward(batch)
            weighted = {name: (batch.weight * part).double().sum() / group.num_real for name, part in parts.items()}
            engine.backward(weighted["loss"], watch=logged and not seen)
            sums = {name: sums.get(name, 0.0) + value.detach() for name, value in weighted.items()}
            seen.append((batch.keys, parts["loss"].detach()))
            if group.last:
                break
            engine.step()
            if self.world.device.type == "cpu":  # a step takes long there; a GPU would have to be waited for
                self.leave_if_asked(request)
        due = self.world.rank == 0 and speed.save_is_due(settings.interval, state.step + 1)
        *values, asked, due = sum_over_ranks([*(float(v) for v in sums.values()), bool(request.signal), due])
        values, factor = dict(zip(sums, values)), rate(self.settings.schedule, state.step, self.total)
        self.stop_unless_finite(values["loss"], seen)
        engine.step(factor)
        self.stop_unless_finite(0.0 if engine.precision == "fp16" else engine.grad_norm, [])
        state.step, state.epoch = state.step + 1, group.position.epoch
        state.position = group.position.token(self.dataset.sha256, self.settings.train.seed)
        if self.ema:
            self.ema.update(engine.masters())
        seconds, lr = speed.end_step(), engine.lrs[0] * factor
        if logged:
            self.tracker.log(state.step, group.epoch, {**{f"train/{n}": v for n, v in values.items()}, "train/lr": lr, **speed.health(engine, group.num_real)})
        self.tracker.advance(state.step, loss=f"{values['loss']:.4f}", lr=f"{lr:.1e}", images_s=f"{group.num_real / seconds:.2f}")
        if self.check and state.step % settings.watch_every == 0:
            self.look_at_precision(self.check)
        if state.epoch == group.epoch:  # at an epoch's end it is saved after the evaluation
            if due and not asked:
                self.save()
                speed.saved()
            if asked:
                self.leave(request)

    def stop_unless_finite(self, value: float, seen: list[tuple[list[str], Tensor]]) -> None:
        """ValueError, before any weight is saved, where a loss or a gradient is no number; it names the samples."""
        if math.isfinite(value):
            return
        mine = [key for keys, losses in seen for key, loss in zip(keys, losses.tolist()) if not math.isfinite(loss)]
        keys = [key for keys in from_all_ranks(mine) for key in keys]
        what = f"the loss is {value} for {', '.join(keys)}" if keys else f"the gradient is {value} although the loss is finite"
        raise ValueError(f"step {self.state.step + 1}: {what}; the last saved state is from before it. Look at these samples, or try a smaller --lr")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of a micro-batch, (B,), at the truth's own size. Dropout is drawn from (seed, epoch, sample)."""
        target, mask = inverse_target(batch.depth_mm, self.bounds, batch.mask)
        draws = draw_keys(self.settings.train.seed, batch.group.epoch, batch.samples).to(batch.rgb.device)
        pred = upsample(self.engine.forward(batch.rgb, draws), target.shape[-2:])
        return compute(self.settings.loss, pred, target, mask, self.bounds)

    # ---- looking

    def predictor(self) -> Predictor:
        """The network as it is evaluated now."""
        self.model.eval()
        return network(self.model)

    def scores(self, predict: Predictor) -> dict[str, float]:
        """Over the validation split, every sample once over all ranks."""
        batches = self.loader.evaluate("val", self.plan.micro_batch, self.world.rank, self.world.size)
        return score(predict, batches, self.dataset.count("val"), self.bounds, self.settings.loss, self.world.device, sum_over_ranks)

    def evaluate(self) -> dict[str, float]:
        """Scores and pictures of now, logged."""
        with self.engine.holding(self.ema.weights if self.ema else None):
            found = self.scores(self.predictor())
            self.tracker.log(self.state.step, self.state.epoch, {f"eval/{name}": value for name, value in found.items() if name not in ("images", "damaged")})
            self.draw()
        self.state.losses.append(found["loss"])
        return found

    @torch.no_grad()
    def draw(self) -> None:
        """RGB | truth | prediction | error of the same validation samples, evenly spread, in TensorBoard."""
        num, count = self.dataset.count("val"), self.settings.keep.pictures
        for i in sorted({k * num // max(count, 1) for k in range(min(count, num))}):
            batch = self.loader.samples("val", [i]).to(self.world.device)
            pred_mm = depth_from_target(self.predictor()(batch), self.bounds)  # every rank: under ZeRO 3 they need each other
            if self.world.rank == 0:
                arrays = batch.rgb[0].cpu().numpy(), pred_mm[0].cpu().numpy(), batch.depth_mm[0].cpu().numpy()
                title = f"{batch.keys[0]}, step {self.state.step}"
                self.tracker.picture(f"validation/{i:03d} {batch.keys[0]}", pixels(figure(*arrays, title=title, columns=2)), self.state.step)

    def look_at_precision(self, check: Float32Check) -> None:
        off_mm = check.difference_mm(self.engine.masters(), self.predictor())
        self.tracker.log(self.state.step, self.state.epoch, {"eval/precision_mm": off_mm})
        if off_mm > LIMIT_MM:
            self.warn(f"{self.engine.precision} moves a depth by up to {off_mm:.2f} mm against float32 (step {self.state.step}, one validation sample)")

    def near_duplicates(self) -> str | None:
        """What rank 0 says of validation pictures that the training set has too, of 256 and 64 pictures at most."""
        if self.world.rank:
            return None
        seen = {}
        for split, most in (("train", 256), ("val", 64)):
            num = self.dataset.count(split)
            batches = [self.loader.samples(split, [i]).to("cpu") for i in sorted({k * num // most for k in range(most)} if num > most else range(num))]
            seen[split] = torch.stack([advice.thumbnail(b.rgb[0]) for b in batches]), [b.keys[0] for b in batches]
        return advice.resembles(seen["train"][0], seen["val"][0], seen["train"][1], seen["val"][1])

    def warn(self, line: str | None) -> None:
        if line:
            self.tracker.say(f"WARNING      {line}")

    # ---- keeping

    def end_epoch(self) -> None:
        """Evaluate; keep the adapter where it is the best so far, and all that a restart needs."""
        state, name = self.state, self.settings.schedule.best_by
        scores = self.evaluate()
        is_best = better(name, scores[name], state.best)  # the reduced value: the same on every rank
        if is_best:
            state.best, state.best_epoch = scores[name], state.epoch
        self.tracker.say(f"epoch {state.epoch}/{self.settings.train.epochs}: {brief(scores)}{'  (best)' if is_best else ''}")
        weights = self.ema.weights if self.ema else self.engine.masters()
        if is_best and self.world.rank == 0:
            adapter = AdapterRecord.of(self.model, self.bounds, self.dataset.size, step=state.step, epoch=state.epoch, eval_loss=scores["loss"])
            save_adapter(self.model, weights, adapter, self.run / "best")
        self.save()

    def save(self) -> None:
        """Write RUN/last: every rank takes part, rank 0 writes. The frozen model is not in it."""
        tensors, values = self.engine.state()
        if self.ema:
            tensors |= {f"ema/{name}": tensor for name, tensor in self.ema.state().items()}
        if self.world.rank == 0:
            self.tracker.flush()  # first what is seen of these steps
            save_state(self.run / "last", self.state.step, tensors, {"train": asdict(self.state), "engine": values}, self.settings.keep.keep)

    def leave_if_asked(self, request: StopRequest) -> None:
        if sum_over_ranks([bool(request.signal)])[0]:
            self.leave(request)

    def leave(self, request: StopRequest) -> None:
        """Save and end, as somebody asked for by a signal."""
        self.save()
        name = next(signal for signal in from_all_ranks(request.signal) if signal)
        raise Stopped(f"stopped by {name} at step {self.state.step} of {self.total}, saved in {self.run}/last; the same command goes on")

    def finish(self) -> None:
        """Restore the best adapter from the disk, as a later user will, score it, and print the table."""
        state, run = self.state, self.run
        best, _ = load_adapter(run / "best")
        best.to(self.world.device)
        mean_mm = self.dataset.stats("train")["mean_mm"]
        row = f"best adapter, epoch {state.best_epoch}"
        rows = {f"constant {mean_mm:.0f} mm": self.scores(constant(mean_mm, self.bounds)), "before training": state.before, row: self.scores(network(best))}
        self.tracker.log(state.step, state.epoch, {f"best/{name}": value for name, value in rows[row].items() if name not in ("images", "damaged")})
        self.tracker.say(f"\n{table(rows)}\n(means over the validation images, at the truth's own size, no alignment; * best)\n")
        if state.epoch < self.settings.train.epochs:
            self.tracker.say(f"stopped early: no better eval {self.settings.schedule.best_by} for {state.epoch - state.best_epoch} epochs (--patience)")
        batch = self.loader.samples("val", [0]).to(self.world.device)
        target, mask = inverse_target(batch.depth_mm, self.bounds, batch.mask)
        with torch.no_grad():
            self.warn(advice.dominated((network(best)(batch) - target)[0].abs(), mask[0]))
        self.warn(advice.budget_exhausted(state.losses[1:], [self.engine.lrs[0] * rate(self.settings.schedule, step, self.total) for step in range(state.step)]))
        self.tracker.say(f"adapter      {run}/best\ncurves       tensorboard --logdir {run.parent}\nnext         python launch/evaluate.py --run {run}")
