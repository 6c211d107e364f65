"""Our way to train: depthdist's own optimizer step."""

from __future__ import annotations

import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from depthdist.core.environment import silence_libraries
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.distributed.process_group import World, start
from depthdist.distributed.shared_folder import SharedFolder
from depthdist.evaluation.predictors import network_predictor
from depthdist.geometry.depth_range import normalize_depth
from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import compute_losses
from depthdist.models.settings import LoraSettings, ModelSettings
from depthdist.runs.tracker import Tracker
from depthdist.training import loop
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.learner import build_learner, build_model
from depthdist.training.parts import Output, Run
from depthdist.training.schedule import ScheduleSettings
from depthdist.training.settings import KeepSettings, Settings, TrainSettings
from depthdist.training.step_timer import StepTimer
from depthdist.training.train_state import TrainState
from depthdist.training.training_data import build_data
from tools.benchmarks.turns import LEARNING_RATE, NUM_COMPARED, STEPS, Job, Turns, wait_for_gpu

EPOCHS = 2  # read in one turn of reading


def train(job: Job, turns: Turns) -> None:
    """Send the first losses and what was computed with, then take a step a turn."""
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(job, Path(folder), start())
        device = run.world.device
        loader, plan = run.data.loader, run.data.plan
        timer = StepTimer()
        kept = [encoded.to(device) for encoded in loader.train(plan, 0, 0, epochs=1)]
        from_files = iter(loader.train(plan, 0, 0))
        from_memory: Any = cycle(kept)
        turns.clock(loop, "forward", "forward")
        turns.clock(run.learner.engine, "backward", "backward")
        turns.clock(run.learner.engine, "reduce_gradients", "optimizer")
        turns.clock(run.learner.engine, "step", "optimizer")
        turns.send(
            losses=first_losses(run, job.shards),
            lossless=first_losses(run, job.lossless),
            batch=plan.global_batch,
            micro_batch=plan.micro_batch,
            device=device_speed(device, job.precision),
        )
        while turns.begin():
            if turns.wanted == "data":
                # a new iterator, so that nothing was read ahead
                for encoded in loader.train(plan, 0, 0, epochs=EPOCHS):
                    encoded.to(device)
                turns.end(EPOCHS * plan.steps_per_epoch)
                continue
            timer.saved()  # the step begins now
            batches = from_memory if turns.wanted == "memory" else from_files
            loop.optimizer_step(run, batches, timer)
            turns.parts["data"] = timer.share_waited * timer.seconds
            turns.end(waited=timer.share_waited)
        run.output.tracker.close()


def build_run(job: Job, folder: Path, world: World) -> Run:
    """Return a run of the recipe, built as depthdist.training.train does it."""
    settings = Settings(
        data=DataSettings(data=(job.shards,)),
        augment=AugmentSettings(),
        model=ModelSettings(model=job.model),
        lora=LoraSettings(),
        loss=LossSettings(),
        train=TrainSettings(run=folder, lr=LEARNING_RATE, epochs=STEPS, calibrate=False),
        schedule=ScheduleSettings(),
        keep=KeepSettings(save_every=str(STEPS), watch_every=0),
        engine=EngineSettings(
            deepspeed=Path(job.deepspeed), micro_batch=job.micro_batch, compile=job.compile
        ),
    )
    state = TrainState()
    data = build_data(open_dataset(settings.data), settings, world, folder)
    model = build_model(settings, data, world, state)
    ds_config, _ = settings.engine.resolved()
    learner = build_learner(settings, data, model, world, ds_config)
    output = Output(SharedFolder.alone(folder), Tracker(folder, True, None, STEPS))
    return Run(settings, world, data, learner, state, output)


@torch.no_grad()
def first_losses(run: Run, shards: str) -> dict[str, float]:
    """Return the loss of a dataset's first samples by stem, without dropout."""
    run.learner.model.eval()
    loader = Loader(open_dataset(DataSettings(data=(shards,))))
    batch = loader.samples("train", range(NUM_COMPARED)).to(run.world.device)
    target, mask = normalize_depth(batch.depth_mm, run.data.depth_range, batch.mask)
    pred = network_predictor(run.learner.model)(batch)
    losses = compute_losses(run.settings.loss, pred, target, mask, run.data.depth_range)["loss"]
    return {Path(stem).name: loss for stem, loss in zip(batch.stems, losses.tolist())}


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
