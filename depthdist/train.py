"""The main job, top to bottom: read the settings, build the parts, train, keep the best, score it.

    deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data data/tires --run runs/first

Every epoch is evaluated; rank 0 keeps the adapter with the lowest eval loss in RUN/best and the full state in RUN/last.
The global batch is the same on any number of GPUs; the learning rate falls linearly to 0 over the run.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import psutil
import torch
import transformers

from depthdist import __version__, config
from depthdist.augment import AugmentSettings
from depthdist.checkpoint import RECORD as ADAPTER
from depthdist.checkpoint import AdapterRecord, load_adapter, save_adapter
from depthdist.config import as_dict, field_names
from depthdist.dataset import DataSettings, Dataset, ReadSettings, open_dataset
from depthdist.depth import Bounds, depth_from_target, inverse_target, upsample
from depthdist.engine import DEEPSPEED_VERSION, Engine, EngineSettings, precision
from depthdist.evaluate import constant, network, score, table
from depthdist.figures import figure, pixels
from depthdist.losses import LossSettings, compute
from depthdist.model import DepthModel, ModelSettings, load_base, quiet, training_memory, with_lora
from depthdist.order import Position, TrainPlan
from depthdist.runs import RECORD, open_run
from depthdist.shards.remote import CacheSettings, is_remote
from depthdist.stream import Batch, Loader, Packed
from depthdist.tracker import Tracker, write_json
from depthdist.world import World, from_all_ranks, from_rank_0, start, stop, sum_over_ranks, world_size

HELP = """Fine-tune a Depth Anything V2 with LoRA on shards of RGB and depth.

  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data data/tires --run runs/first
  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --dry-run
  deepspeed launch/train.py --config runs/first/run.json --run runs/again       # the same once more"""
# what a resumed run may change; that data and DeepSpeed's file hold the same as before is compared by content
FREE_TO_CHANGE = {"run", "resume", "epochs", "log_every", "pictures", "dry_run", "data", "deepspeed", *field_names(ReadSettings, CacheSettings)}


@dataclass(frozen=True)
class TrainSettings:
    """Training"""

    run: Path | None = None
    "Folder of the run, made where it is missing. Default: runs/<time>."
    epochs: int = 15
    "Times that every training sample is seen."
    lr: float = 5e-5
    "Learning rate of AdamW at the start; it falls linearly to 0 over the run."
    seed: int = 0
    "Of the adapter's start, the order of the samples, and dropout."
    resume: str = "auto"
    "auto: go on where RUN stopped. never: refuse a RUN that is begun. A run's folder: go on from its last state, in RUN."
    log_every: int = 1
    "Optimizer steps from one logged step to the next."
    pictures: int = 4
    "Validation samples drawn at each evaluation, the same ones every time."
    dry_run: bool = False
    "Print everything that follows from the settings, and stop."

    def problems(self) -> list[str]:
        found = [f"--{name.replace('_', '-')} is {getattr(self, name)}: expected >= 1" for name in ("epochs", "log_every") if getattr(self, name) < 1]
        found += [f"--{name} is {getattr(self, name)}: expected 0 .. 2**63 - 1" for name in ("seed", "pictures") if not 0 <= getattr(self, name) < 2**63]
        if not 0 < self.lr < math.inf:
            found.append(f"--lr is {self.lr}: expected > 0")
        if self.run is not None and self.run.exists() and not self.run.is_dir():
            found.append(f"--run {self.run}: is a file; expected a folder or a new name")
        elif self.run is not None:
            parent = next(p for p in (self.run, *self.run.absolute().parents) if p.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK) or str(parent.resolve()).startswith(("/proc", "/sys")):
                found.append(f"--run {self.run}: {parent} cannot be written")
        begun = self.run is not None and (self.run / RECORD).exists()
        if self.resume == "never" and begun:
            found.append(f"--run {self.run}: a run is there already; take another name, or --resume auto to go on")
        if self.resume not in ("auto", "never"):
            if not (Path(self.resume) / "last" / "latest").exists():
                found.append(f"--resume {self.resume}: expected auto, never, or the folder of a run that has a last/ state")
            elif begun:
                found.append(f"--run {self.run}: a run is there already; --resume PATH starts a new one")
        return found


@dataclass
class TrainState:
    """All that changes during training and is not a weight; it survives a restart.

    step, epoch         optimizer steps taken, epochs finished
    position            where in the data training goes on, as Position.token gives it
    best_loss           lowest eval loss so far, at the end of best_epoch
    before              scores of the model before training
    """

    step: int = 0
    epoch: int = 0
    position: dict[str, Any] = field(default_factory=dict)
    best_loss: float = math.inf
    best_epoch: int = 0
    before: dict[str, float] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> None:
    """Command line of launch/train.py."""
    quiet()
    groups = (DataSettings, AugmentSettings, ModelSettings, LossSettings, TrainSettings, EngineSettings)
    given = config.parse(HELP, *groups, argv=argv, together=check_together)
    if given[4].dry_run:
        return dry_run(*given)
    train(*given, start())
    stop()  # not after an error: under NCCL it would wait for ranks that wait for this one


def check_together(data: DataSettings, augment: AugmentSettings, model: ModelSettings, loss: LossSettings, settings: TrainSettings, hardware: EngineSettings) -> list[str]:
    """What is wrong with settings that are right one by one."""
    dataset = open_dataset(data)
    try:
        dataset.count("val")
        TrainPlan(dataset.order(settings.seed).num_samples, hardware.global_batch, hardware.micro_batch, world_size())
        hardware.resolved()
    except ValueError as err:
        return [str(err)]
    source = settings.run if settings.resume in ("auto", "never") else Path(settings.resume)
    if source is None or not (source / RECORD).exists():
        return []
    begun, now = open_run(source).record, as_dict(data, augment, model, loss, settings, hardware)
    changed = {n: (begun["settings"].get(n), v) for n, v in now.items() if n not in FREE_TO_CHANGE and begun["settings"].get(n) != v}
    found = [f"--{n.replace('_', '-')} is {new}, but the run in {source} began with {old}: give that, or begin anew in another --run" for n, (old, new) in changed.items()]
    before, after = begun["deepspeed_config"], hardware.resolved()[0]
    differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    found += [f"{hardware.deepspeed}: {key} is {after.get(key)}, but the run in {source} began with {before.get(key)}" for key in differing]
    if begun["derived"]["data_sha256"] != dataset.sha256:
        found.append(f"--data {dataset.place}: the data changed since the run in {source} began; begin anew in another --run")
    return found


def train(
    data: DataSettings, augment: AugmentSettings, model_settings: ModelSettings, loss: LossSettings, settings: TrainSettings, hardware: EngineSettings, world: World
) -> None:
    """Train as the settings say. Every rank calls it; rank 0 writes."""
    dataset = open_dataset(data)
    plan = TrainPlan(dataset.order(settings.seed).num_samples, hardware.global_batch, hardware.micro_batch, world.size)
    bounds = training_bounds(dataset)
    total = plan.steps_per_epoch * settings.epochs
    run = from_rank_0(settings.run or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S"))
    ds_config, remarks = hardware.resolved()
    if from_rank_0((dataset.sha256, total)) != (dataset.sha256, total):
        raise ValueError(f"--data {dataset.place}: rank {world.rank} sees other data than rank 0; every node needs the same shards")

    model = with_lora(load_base(model_settings.model), model_settings, settings.seed)
    engine = Engine(model, ds_config, settings.lr, lambda step: max(0.0, 1 - step / total), world, model.frozen_float32())
    if world.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
    state = resume(engine, run, settings.resume)
    if state.best_epoch and not from_rank_0((run / "best" / ADAPTER).exists()):
        raise ValueError(f"{run}/best: the best adapter so far is gone; remove {run} to begin anew, or put it back")
    position = Position.from_token(state.position, dataset.sha256, settings.seed, plan.num_samples) if state.position else Position()
    tracker = Tracker(run, world.rank == 0, state.step, total)
    loader = Loader(dataset, data, augment, world.device, lambda damage: quarantined(damage, run))
    facts = derived(dataset, plan, loader, model, settings, engine.precision)
    finished = state.epoch >= settings.epochs
    if world.rank == 0 and not (finished and (run / RECORD).exists()):
        write_json(run / RECORD, record(as_dict(data, augment, model_settings, loss, settings, hardware), facts, ds_config, remarks, world))
    for line in [*describe(facts), *remarks]:
        tracker.say(line)
    if finished and from_rank_0(tracker.holds("best/loss")):
        tracker.say(f"{run} is finished: {state.epoch} epochs, best eval loss {state.best_loss:.4f} at epoch {state.best_epoch}. More --epochs would go on")
        return tracker.close()

    def evaluation() -> dict[str, float]:
        model.eval()
        scores = evaluate(network(model), loader, plan, bounds, loss, world)
        tracker.log(state.step, state.epoch, {f"eval/{name}": value for name, value in scores.items() if name not in ("images", "damaged")})
        draw(tracker, model, loader, bounds, settings.pictures, state.step, world)
        return scores

    try:
        if state.epoch == 0:
            if world.rank == 0:
                tracker.text("settings", describe_markdown(facts))
            state.before = evaluation()
            tracker.say(f"before training: {brief(state.before)}")
        batches = iter(loader.train(plan, settings.seed, world.rank, position, settings.epochs))
        while state.epoch < settings.epochs:
            train_one_epoch(engine, batches, dataset.sha256, plan, bounds, loss, settings, state, tracker)
            if lost := set().union(*from_all_ranks(loader.damaged["train"])):
                tracker.log(state.step, state.epoch, {"data/damaged": len(lost)})
            if engine.grad_norm == 0:
                tracker.say("WARNING      the gradient is 0: the network gives the same everywhere and learns no more; start again with a smaller --lr")
            scores = evaluation()
            better = scores["loss"] < state.best_loss  # the reduced value: the same on every rank
            if better:
                state.best_loss, state.best_epoch = scores["loss"], state.epoch
            tracker.say(f"epoch {state.epoch}/{settings.epochs}: {brief(scores)}{'  (best)' if better else ''}")
            keep(engine, model, state, better, run, AdapterRecord(model.name, *bounds, *dataset.size, state.step, state.epoch, scores["loss"]))
        finish(run, loader, plan, bounds, loss, state, tracker, world)
    finally:
        tracker.close()


def train_one_epoch(
    engine: Engine, batches: Iterator[Packed], data_sha256: str, plan: TrainPlan, bounds: Bounds, loss: LossSettings, settings: TrainSettings, state: TrainState, tracker: Tracker
) -> None:
    """The rest of an epoch. Leaves `state` after its last optimizer step."""
    engine.model.train()
    world, device = engine.world, engine.world.device
    sums: dict[str, torch.Tensor] = {}
    keys: list[str] = []
    waited, began, epoch = 0.0, time.perf_counter(), state.epoch
    while state.epoch == epoch:
        asked = time.perf_counter()
        batch = next(batches).to(device)
        waited += time.perf_counter() - asked
        group = batch.group
        parts = forward(engine, batch, bounds, loss, settings.seed)
        weighted = {name: (batch.weight * part).sum() / group.num_real for name, part in parts.items()}
        # DeepSpeed divides by accumulation and by ranks; what counts is the number of real images of the global batch
        engine.backward(weighted["loss"] * (plan.accumulation * world.size))
        sums = {name: sums.get(name, 0.0) + value.detach() for name, value in weighted.items()}
        keys += batch.keys
        lr = engine.lr  # of this step; engine.step() moves on to the next one's
        engine.step()
        if not group.last:
            continue
        state.step, state.epoch = state.step + 1, group.position.epoch
        state.position = group.position.token(data_sha256, settings.seed)
        values = dict(zip(sums, sum_over_ranks(float(v) for v in sums.values())))
        if not math.isfinite(values["loss"]):
            raise ValueError(f"step {state.step}: the loss is {values['loss']}; samples of rank {world.rank}: {', '.join(keys)}")
        seconds, began = time.perf_counter() - began, time.perf_counter()
        if state.step % settings.log_every == 0:
            tracker.log(state.step, epoch, {**{f"train/{n}": v for n, v in values.items()}, "train/lr": lr, **health(engine, group.num_real, seconds, waited)})
        tracker.advance(state.step, loss=f"{values['loss']:.4f}", lr=f"{lr:.1e}", images_s=f"{group.num_real / seconds:.2f}")
        sums, keys, waited = {}, [], 0.0


def quarantined(damage: dict[str, Any], run: Path) -> None:
    """Say what was set aside, and keep it in RUN/quarantine.jsonl, which all ranks write."""
    print(f"WARNING      set aside: {damage['split']} sample {damage['key']} ({damage['stem']}) of {damage['shard']}: {damage['member']}: {damage['reason']}", flush=True)
    with open(run / "quarantine.jsonl", "a") as file:
        file.write(json.dumps(damage) + "\n")


def forward(engine: Engine, batch: Batch, bounds: Bounds, loss: LossSettings, seed: int) -> dict[str, torch.Tensor]:
    """Each loss of a micro-batch, (B,), at the truth's own size. Dropout is drawn from (seed, epoch, sample)."""
    torch.manual_seed(int(np.random.SeedSequence([seed, batch.group.epoch, batch.samples[0]]).generate_state(1)[0]))
    target, mask = inverse_target(batch.depth_mm, bounds, batch.mask)
    return compute(loss, upsample(engine.forward(batch.rgb), target.shape[-2:]), target, mask)


def health(engine: Engine, num_images: int, seconds: float, waited: float) -> dict[str, float]:
    """What a person watches besides the loss."""
    values = {
        "train/grad_norm": engine.grad_norm,
        "train/loss_scale": engine.loss_scale,
        "train/skipped_steps": engine.skipped_steps,
        "speed/images_per_s": num_images / seconds,
        "speed/data_wait_share": waited / seconds,
        "memory/process_gib": resident_bytes() / 2**30,
    }
    if engine.world.device.type == "cuda":
        values["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return values


def evaluate(predict, loader: Loader, plan: TrainPlan, bounds: Bounds, loss: LossSettings, world: World, split: str = "val") -> dict[str, float]:
    """Scores over the split, every sample once over all ranks."""
    batches = loader.evaluate(split, plan.micro_batch, world.rank, world.size)
    return score(predict, batches, loader.dataset.count(split), bounds, loss, world.device, sum_over_ranks)


@torch.no_grad()
def draw(tracker: Tracker, model: DepthModel, loader: Loader, bounds: Bounds, count: int, step: int, world: World) -> None:
    """RGB | truth | prediction | error of the same validation samples, evenly spread, in TensorBoard."""
    num = loader.dataset.count("val")
    for i in sorted({k * num // max(count, 1) for k in range(min(count, num))}):
        batch = loader.samples("val", [i]).to(world.device)
        pred_mm = depth_from_target(network(model)(batch), bounds)  # every rank: under ZeRO 3 they need each other
        if world.rank == 0:
            arrays = batch.rgb[0].cpu().numpy(), pred_mm[0].cpu().numpy(), batch.depth_mm[0].cpu().numpy()
            tracker.picture(f"validation/{i:03d} {batch.keys[0]}", pixels(figure(*arrays, title=f"{batch.keys[0]}, step {step}", columns=2)), step)


def keep(engine: Engine, model: DepthModel, state: TrainState, better: bool, run: Path, adapter: AdapterRecord) -> None:
    """Write last/ (every rank takes part), and best/ where this epoch is the best so far."""
    masters = engine.masters()
    if better and engine.world.rank == 0:
        save_adapter(model, masters, adapter, run / "best")
    tag = f"step-{state.step:06d}"
    engine.save(run / "last", tag, asdict(state))
    sum_over_ranks([0.0])  # all have written
    if engine.world.rank == 0:
        for old in (run / "last").glob("step-*"):
            if old.name != tag:
                shutil.rmtree(old)


def resume(engine: Engine, run: Path, how: str) -> TrainState:
    """The state to go on from: of `run`, of another run, or a new one."""
    source = run if how in ("auto", "never") else Path(how)
    latest = source / "last" / "latest"
    tag = from_rank_0(latest.read_text().strip() if how != "never" and latest.exists() else None)  # one rank's disk decides
    if tag is None:
        return TrainState()
    state = TrainState(**engine.load(source / "last", tag))
    if source != run and engine.world.rank == 0 and (source / "best").exists():
        shutil.copytree(source / "best", run / "best", dirs_exist_ok=True)
    return state


def finish(run: Path, loader: Loader, plan: TrainPlan, bounds: Bounds, loss: LossSettings, state: TrainState, tracker: Tracker, world: World) -> None:
    """Restore the best adapter from the disk, as a later user will, score it, and print the table."""
    best, _ = load_adapter(run / "best")
    mean_mm = loader.dataset.stats("train")["mean_mm"]
    rows = {
        f"constant {mean_mm:.0f} mm": evaluate(constant(mean_mm, bounds), loader, plan, bounds, loss, world),
        "before training": state.before,
        f"best adapter, epoch {state.best_epoch}": evaluate(network(best.to(world.device)), loader, plan, bounds, loss, world),
    }
    tracker.log(state.step, state.epoch, {f"best/{name}": value for name, value in rows[f"best adapter, epoch {state.best_epoch}"].items() if name not in ("images", "damaged")})
    tracker.say(f"\n{table(rows)}\n(means over the validation images, at the truth's own size, no alignment; * best)\n")
    tracker.say(f"adapter      {run}/best\ncurves       tensorboard --logdir {run.parent}\nnext         python launch/evaluate.py --run {run}")


# ------------------------------------------------------------------------------------ what follows from the settings


def training_bounds(dataset: Dataset) -> Bounds:
    """The bounds of the normalisation: nearest and farthest valid Z of the training set, mm."""
    stats = dataset.stats("train")
    return Bounds(stats["min_mm"], stats["max_mm"]).checked()


def derived(dataset: Dataset, plan: TrainPlan, loader: Loader, model: DepthModel, settings: TrainSettings, precision: str) -> dict[str, Any]:
    """Everything computed from the settings, the data and the model."""
    trained, total = model.parameter_counts()
    bounds = training_bounds(dataset)
    return {
        "model": model.name + (" (no pretrained decoder: a fresh one is trained too)" if model.fresh_decoder else ""),
        "trained_parameters": trained,
        "all_parameters": total,
        "train_samples": dataset.count("train"),
        "epoch_samples": plan.num_samples,
        "val_samples": dataset.count("val"),
        "picture_size": str(dataset.size),
        "truth_size": str(dataset.depth_size),
        "near_mm": bounds.near_mm,
        "far_mm": bounds.far_mm,
        "data": [place if is_remote(place) else str(Path(place).resolve()) for place in (part.place for part in dataset.parts)],
        "data_sha256": dataset.sha256,
        "data_buffers_mib": round(loader.memory_bytes(plan.micro_batch) / 2**20, 1),
        "precision": precision,
        "world_size": plan.world,
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": plan.steps_per_epoch * settings.epochs,
    }


def describe(facts: dict[str, Any]) -> list[str]:
    """The derived facts as lines for the terminal."""
    share = 100 * facts["trained_parameters"] / facts["all_parameters"]
    return [
        f"model        {facts['model']}",
        f"trains       {facts['trained_parameters']:,} of {facts['all_parameters']:,} parameters ({share:.4f} %), in {facts['precision']}",
        f"data         {facts['train_samples']} training, {facts['val_samples']} validation samples; pictures {facts['picture_size']}, truth {facts['truth_size']}",
        f"reading      {facts['data_buffers_mib']:.0f} MiB of buffers a rank at most",
        f"depth        {facts['near_mm']:.2f} .. {facts['far_mm']:.2f} mm, of the training set",
        f"batch        {facts['global_batch']} = {facts['world_size']} ranks x micro-batch {facts['micro_batch']} x {facts['accumulation']} accumulated",
        f"steps        {facts['steps']}, {facts['steps_per_epoch']} an epoch",
    ]


def describe_markdown(facts: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def dry_run(data: DataSettings, augment: AugmentSettings, model_settings: ModelSettings, loss: LossSettings, settings: TrainSettings, hardware: EngineSettings) -> None:
    """Print all that follows from the settings; compute and write nothing."""
    if int(os.environ.get("RANK", 0)):
        return
    dataset = open_dataset(data)
    plan = TrainPlan(dataset.order(settings.seed).num_samples, hardware.global_batch, hardware.micro_batch, world_size())
    ds_config, remarks = hardware.resolved()
    model = with_lora(load_base(model_settings.model), model_settings, settings.seed)
    facts = derived(dataset, plan, Loader(dataset, data, augment), model, settings, precision(ds_config))
    memory = training_memory(model, dataset.size, plan.micro_batch, facts["precision"])
    truth = 12 * 4 * plan.micro_batch * dataset.depth_size.height * dataset.depth_size.width  # maps of the loss at the truth's size
    memory["loss at the truth's size"] = truth
    lines = [*describe(facts), f"memory       about {sum(memory.values()) / 2**30:.2f} GiB a rank: " + ", ".join(f"{n} {b / 2**20:.0f} MiB" for n, b in memory.items())]
    lines += [f"setting      {name} = {value}" for name, value in as_dict(data, augment, model_settings, loss, settings, hardware).items() if value is not None]
    print("\n".join([*lines, *remarks, "dry run: nothing was computed or written"]))


def record(settings: dict[str, Any], facts: dict[str, Any], ds_config: dict[str, Any], remarks: list[str], world: World) -> dict[str, Any]:
    """The content of run.json."""
    git = shutil.which("git")
    describe_head = [git, "describe", "--always", "--dirty"]
    revision = subprocess.run(describe_head, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip() if git else ""
    gpu = torch.cuda.get_device_name() if world.device.type == "cuda" else platform.processor() or platform.machine()
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft, np)}
    return {
        "settings": settings,
        "derived": facts,
        "deepspeed_config": ds_config,
        "remarks": remarks,
        "device": gpu,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": revision,
        "versions": {"depthdist": __version__, "python": platform.python_version(), "deepspeed": DEEPSPEED_VERSION, **versions},
    }


def brief(scores: dict[str, float]) -> str:
    return f"eval loss {scores['loss']:.4f}, AbsRel {scores['abs_rel']:.4f}, delta1 {scores['delta1']:.3f}, RMSE {scores['rmse_mm']:.1f} mm, MAE {scores['mae_mm']:.1f} mm"


def resident_bytes() -> int:
    """Memory of this process."""
    return psutil.Process().memory_info().rss
