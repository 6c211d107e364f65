"""Our way to train: depthdist's own optimizer step, `Training.take_step`."""

from __future__ import annotations

import tempfile
import time
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from depthdist.core.environment import silence_libraries
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from depthdist.distributed.process_group import World, start
from depthdist.evaluation.scoring import network_predictor
from depthdist.geometry.depth_range import normalize_depth
from depthdist.losses import LossSettings, compute_losses
from depthdist.models.base_model import ModelSettings, load_base
from depthdist.models.lora import LoraSettings, add_lora, trained_groups
from depthdist.runs.tracker import Tracker
from depthdist.training import micro_batch as microbatch
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.engine import Engine
from depthdist.training.loop import Training, TrainState
from depthdist.training.run_facts import training_bounds
from depthdist.training.schedule import ScheduleSettings
from depthdist.training.settings import KeepSettings, Settings, TrainSettings
from depthdist.training.step_timer import StepTimer
from tools.benchmarks.turns import LEARNING_RATE, NUM_COMPARED, STEPS, Job, Turns, wait_for_gpu

EPOCHS = 2  # read in one turn of reading


def train(job: Job, turns: Turns) -> None:
    """Send the first losses and what was computed with, then take a step a turn."""
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        training = build_training(job, Path(folder), start())
        device = training.world.device
        plan = training.plan
        no_request: Any = SimpleNamespace(signal="")
        timer = StepTimer()
        kept = [encoded.to(device) for encoded in training.loader.train(plan, 0, 0, epochs=1)]
        from_files = iter(training.loader.train(plan, 0, 0))
        from_memory: Any = cycle(kept)
        turns.clock(training, "forward", "forward")
        turns.clock(training.engine, "backward", "backward")
        turns.clock(training.engine, "step", "optimizer")
        turns.send(
            losses=first_losses(training, job.shards),
            lossless=first_losses(training, job.lossless),
            batch=plan.global_batch,
            micro_batch=plan.micro_batch,
            device=device_speed(device, job.precision),
        )
        while turns.begin():
            if turns.wanted == "data":
                # a new iterator, so that nothing was read ahead
                for encoded in training.loader.train(plan, 0, 0, epochs=EPOCHS):
                    encoded.to(device)
                turns.end(EPOCHS * plan.steps_per_epoch)
                continue
            timer.saved()  # the step begins now
            batches = from_memory if turns.wanted == "memory" else from_files
            training.take_step(batches, timer, no_request)
            turns.parts["data"] = timer.share_waited * timer.seconds
            turns.end(waited=timer.share_waited)
        training.tracker.close()


def build_training(job: Job, run: Path, world: World) -> Training:
    """Return a `Training` of the recipe, built as depthdist.training.train does it."""
    settings = Settings(
        data=DataSettings(data=(job.shards,)),
        augment=AugmentSettings(),
        model=ModelSettings(model=job.model),
        lora=LoraSettings(),
        loss=LossSettings(),
        train=TrainSettings(run=run, lr=LEARNING_RATE, epochs=STEPS),
        schedule=ScheduleSettings(),
        keep=KeepSettings(save_every=str(STEPS)),
        engine=EngineSettings(
            deepspeed=Path(job.deepspeed), micro_batch=job.micro_batch, compile=job.compile
        ),
    )
    dataset = open_dataset(settings.data)
    bounds = training_bounds(dataset)
    model = add_lora(load_base(job.model), settings.lora, settings.train.seed)

    def fits(micro_batch: int) -> bool:
        return microbatch.fits_in_memory(
            model,
            micro_batch,
            dataset.size,
            dataset.depth_size,
            settings.loss,
            bounds,
            world.device,
            job.precision,
        )

    candidates = settings.engine.micro_batches(world.size)
    micro_batch = candidates[0]
    if job.micro_batch == "auto":
        micro_batch = microbatch.find_micro_batch(candidates, fits)
    groups = [(parameters, LEARNING_RATE) for parameters in trained_groups(model).values()]
    ds_config, _ = settings.engine.resolved()
    engine = Engine(model, ds_config, groups, world, micro_batch)
    if job.compile:
        model.compile()
    return Training(
        settings=settings,
        world=world,
        dataset=dataset,
        loader=Loader(dataset, settings.data, settings.augment, world.device),
        plan=TrainPlan(
            dataset.count("train"), settings.engine.global_batch, micro_batch, world.size
        ),
        bounds=bounds,
        model=model,
        engine=engine,
        ema=None,
        check=None,
        state=TrainState(),
        run=run,
        tracker=Tracker(run, True, None, STEPS),
    )


@torch.no_grad()
def first_losses(training: Training, shards: str) -> dict[str, float]:
    """Return the loss of a dataset's first samples by stem, without dropout."""
    training.model.eval()
    loader = Loader(open_dataset(DataSettings(data=(shards,))))
    batch = loader.samples("train", range(NUM_COMPARED)).to(training.world.device)
    target, mask = normalize_depth(batch.depth_mm, training.bounds, batch.mask)
    pred = network_predictor(training.model)(batch)
    losses = compute_losses(training.settings.loss, pred, target, mask, training.bounds)["loss"]
    return {Path(key).name: loss for key, loss in zip(batch.keys, losses.tolist())}


def device_speed(device: torch.device, precision: str) -> dict[str, Any]:
    """Return the device's name, and its TFLOP/s in a large matrix product of that precision."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    n = 8192 if device.type == "cuda" else 1536
    matrix = torch.randn(n, n, device=device).to(dtype)
    seconds = []
    for _ in range(5):
        wait_for_gpu()
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        wait_for_gpu()
        seconds.append(time.perf_counter() - began)
    name = f"{torch.get_num_threads()} CPU threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    return {"name": name, "tflops": 2 * n**3 / min(seconds) / 1e12}
