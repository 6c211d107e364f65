"""The main job, top to bottom: read the settings, build the parts, train, keep the best, score it.

    deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data data/tires --run runs/first

Every epoch is evaluated; rank 0 keeps the best adapter in RUN/best and all that a restart needs in
RUN/last. What comes out depends on the data, the settings and the seed alone: not on ranks,
micro-batches, or where the run was stopped.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthdist.core.environment import silence_libraries
from depthdist.core.files import write_json
from depthdist.core.settings import parse
from depthdist.data.dataset import open_dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from depthdist.distributed.process_group import (
    StopRequest,
    World,
    broadcast_from_rank_0,
    start,
    stop,
    world_size,
)
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.adapter_record import ADAPTER_FILE as ADAPTER
from depthdist.models.base_model import load_base
from depthdist.models.lora import add_lora, trained_groups
from depthdist.runs.run_folder import RUN_FILE, earlier_starts
from depthdist.runs.tracker import Tracker, record_damage
from depthdist.runs.training_state import load_state
from depthdist.training.calibration import fit_calibration
from depthdist.training.deepspeed_config import precision
from depthdist.training.engine import Engine
from depthdist.training.loop import Training, TrainState
from depthdist.training.micro_batch import find_micro_batch, fits_in_memory, step_memory
from depthdist.training.precision_check import Float32Check
from depthdist.training.run_facts import (
    derive_facts,
    describe_facts,
    facts_table,
    run_record,
    training_bounds,
)
from depthdist.training.schedule import Ema
from depthdist.training.settings import GROUPS, RECIPES, Settings, check_together

HELP = """Fine-tune a Depth Anything V2 with LoRA on shards of RGB and depth.

  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data data/tires --run runs/first
  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --dry-run
  deepspeed launch/train.py --config runs/first/run.json --run runs/again       # the same once more"""


def main(argv: list[str] | None = None) -> None:
    """Command line of launch/train.py."""
    silence_libraries()
    settings = Settings(
        *parse(
            HELP,
            *GROUPS,
            argv=argv,
            together=lambda *groups: check_together(Settings(*groups)),
            presets=("recipe", RECIPES),
        )
    )
    if settings.keep.dry_run:
        return dry_run(settings)
    train(settings, start())
    stop()  # not after an error: under NCCL it would wait for ranks that wait for this one


def dry_run(settings: Settings) -> None:
    """Print all that follows from the settings; compute and write nothing."""
    if int(os.environ.get("RANK", 0)):
        return
    dataset = open_dataset(settings.data)
    ds_config, remarks = settings.engine.resolved()
    plan = TrainPlan(
        dataset.order(settings.train.seed).num_samples,
        settings.engine.global_batch,
        settings.engine.micro_batches(world_size())[0],
        world_size(),
    )
    model = add_lora(load_base(settings.model.model), settings.lora, settings.train.seed)
    facts = derive_facts(
        dataset,
        plan,
        Loader(dataset, settings.data, settings.augment),
        model,
        settings.train.epochs,
        precision(ds_config),
    )
    memory = step_memory(
        model, plan.micro_batch, dataset.size, dataset.depth_size, facts["precision"]
    )
    lines = [
        *describe_facts(facts),
        f"memory       about {sum(memory.values()) / 2**30:.2f} GiB a rank: "
        + ", ".join(f"{n} {b / 2**20:.0f} MiB" for n, b in memory.items()),
    ]
    if settings.engine.micro_batch == "auto":
        lines.append(
            "micro-batch  the largest that fits is found when training starts; shown is the largest"
            " that the global batch allows"
        )
    lines += [
        f"setting      {name} = {value}"
        for name, value in settings.as_dict().items()
        if value is not None
    ]
    print("\n".join([*lines, *remarks, "dry run: nothing was computed or written"]))


# ------------------------------------------------------------------------------------------ the job


def train(settings: Settings, world: World) -> None:
    """Train as the settings say. Every rank calls it; rank 0 writes."""
    dataset = open_dataset(settings.data)
    if broadcast_from_rank_0(dataset.sha256) != dataset.sha256:
        raise ValueError(
            f"--data {dataset.place}: rank {world.rank} sees other data than rank 0; every node"
            " needs the same shards"
        )
    bounds, (ds_config, remarks) = (
        training_bounds(dataset)._replace(scale=settings.model.target),
        settings.engine.resolved(),
    )
    run = broadcast_from_rank_0(
        settings.train.run or Path("runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    )
    if world.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
    tensors, engine_state, state = resume(run, settings.keep.resume, world)
    loader = Loader(
        dataset,
        settings.data,
        settings.augment,
        world.device,
        lambda damage: record_damage(damage, run),
    )

    base = load_base(settings.model.model)
    base.upsampling = settings.model.upsampling
    if settings.train.calibrate:
        state.line = state.line or list(
            broadcast_from_rank_0(fit_calibration(base, loader, bounds, world))
        )
        base.cpu().rescale(*state.line[:2])
    model = add_lora(base, settings.lora, settings.train.seed)
    if settings.engine.checkpointing:
        model.checkpoint_activations()
    sizes, candidates = (
        (dataset.size, dataset.depth_size),
        settings.engine.micro_batches(world.size),
    )
    micro_batch = candidates[0]
    if settings.engine.micro_batch == "auto":
        micro_batch = find_micro_batch(
            candidates,
            lambda n: fits_in_memory(
                model, n, *sizes, settings.loss, bounds, world.device, precision(ds_config)
            ),
        )
    plan = TrainPlan(
        dataset.order(settings.train.seed).num_samples,
        settings.engine.global_batch,
        micro_batch,
        world.size,
    )
    check = None
    if settings.keep.watch_every and precision(ds_config) != "fp32":
        check = Float32Check(model, loader.samples("val", [0]).to(world.device), bounds)
    rates = {"lora": settings.train.lr, "decoder": settings.train.decoder_lr or settings.train.lr}
    engine = Engine(
        model,
        ds_config,
        [(parameters, rates[name]) for name, parameters in trained_groups(model).items()],
        world,
        micro_batch,
    )
    if (
        world.device.type == "cpu"
        and engine.precision == "bf16"
        and dataset.size[0] * dataset.size[1] <= 1000 * PATCH_SIZE**2
    ):
        model.use_eager_attention()
    if settings.engine.compile:
        model.compile()
    ema = Ema(settings.schedule.ema) if settings.schedule.ema else None
    if engine_state:
        engine.restore({n: t for n, t in tensors.items() if not n.startswith("ema/")}, engine_state)
        if ema:
            ema.load(
                {
                    n.removeprefix("ema/"): t.to(world.device)
                    for n, t in tensors.items()
                    if n.startswith("ema/")
                }
            )
    if state.best_epoch and not broadcast_from_rank_0((run / "best" / ADAPTER).exists()):
        raise ValueError(
            f"{run}/best: the best adapter so far is gone; remove {run} to begin anew, or put it"
            " back"
        )

    facts = derive_facts(dataset, plan, loader, model, settings.train.epochs, engine.precision)
    tracker = Tracker(run, world.rank == 0, state.step if engine_state else None, facts["steps"])
    training = Training(
        settings,
        world,
        dataset,
        loader,
        plan,
        bounds,
        model,
        engine,
        ema,
        check,
        state,
        run,
        tracker,
    )
    finished = training.over
    if world.rank == 0 and not (finished and (run / RUN_FILE).exists()):
        starts = [
            *earlier_starts(run),
            {"step": state.step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
        ]
        write_json(
            run / RUN_FILE,
            {
                **run_record(settings.as_dict(), facts, ds_config, remarks, world.device),
                "starts": starts,
            },
        )
    for line in [
        *describe_facts(facts),
        *(
            [
                "calibrated   output x {:.4g} + {:.4g}, which explains {:.0%} of the targets'"
                " variance".format(*state.line)
            ]
            if state.line
            else []
        ),
        *remarks,
    ]:
        tracker.say(line)
    try:
        if finished and broadcast_from_rank_0(tracker.holds("best/loss")):
            tracker.say(
                f"{run} is finished: {state.epoch} epochs, best eval {settings.schedule.best_by}"
                f" {state.best:.4f} at epoch {state.best_epoch}. More --epochs would go on"
            )
            return
        if not engine_state:
            tracker.text("settings", facts_table(facts))
            training.warn(training.near_duplicates())
        with StopRequest() as request:
            training.run_to_the_end(request)
        training.finish()
    except torch.OutOfMemoryError as err:
        raise ValueError(
            f"out of memory with micro-batches of {plan.micro_batch}: try --micro-batch auto,"
            f" --checkpointing, or smaller pictures ({str(err)[:120]})"
        ) from err
    finally:
        tracker.close()


def resume(
    run: Path, how: str, world: World
) -> tuple[dict[str, Tensor], dict[str, Any], TrainState]:
    """What to go on from: of `run`, of another run, or nothing. Rank 0's disk decides."""
    source = run if how in ("auto", "never") else Path(how)
    found = (
        load_state(source / "last", lambda line: print(f"WARNING      {line}", flush=True))
        if world.rank == 0 and how != "never"
        else None
    )
    tensors, values = broadcast_from_rank_0(found[:2] if found else ({}, {}))
    if not values:
        return {}, {}, TrainState()
    if world.rank == 0:
        print(
            f"going on     from {found[2]}: step {values['train']['step']},"
            f" {values['train']['epoch']} epochs finished, {len(tensors)} tensors",
            flush=True,
        )
        if source != run and (source / "best").exists():
            shutil.copytree(source / "best", run / "best", dirs_exist_ok=True)
    return tensors, values["engine"], TrainState(**values["train"])
