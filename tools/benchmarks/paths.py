"""The two ways to train, each a process that takes an optimizer step whenever it is told to.

Run by `tools/bench.py step`.

    python -m tools.benchmarks.paths ours '{"model": "data/bench/untrained-small", "shards":
    "data/mine", ...}'

`ordinary` is what the document's notebook does: transformers' Trainer around a peft model, captures
read and processed in `__getitem__`, the loss written out after F.interpolate. `ours` is depthdist's
own step, `Training.take_step`. Both begin with the loss of the first samples without dropout, so
that one can see that they compute the same.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LEARNING_RATE, STEPS = 5e-5, 10**6  # more steps than anybody waits for
STEP_MM = 0.061  # of depth in shards: their bounds may be off by half of it
CHECKED = 4  # samples whose loss is compared
EPOCHS = 2  # that our path reads for one turn of reading


class Job(NamedTuple):
    """What to train on and how.

    `shards` and `lossless` hold the captures of `raw`; in the latter pictures are not compressed.
    """

    model: str
    raw: str
    shards: str
    lossless: str
    size: tuple[int, int]
    near_mm: float
    far_mm: float
    deepspeed: str
    precision: str
    micro_batch: str
    compile: bool

    @property
    def batch(self) -> int:
        """The global batch."""
        return json.loads(Path(self.deepspeed).read_text())["train_batch_size"]


class Turns:
    """The conversation with the process that measures: a line in for each turn, a line of JSON out
    after it.

    The line in says what is wanted
        files   a step, data read as this path reads them
        memory  a step, on data that were read before
        data    only reading
        parts   a step as with files, and clocks on its parts, for which a GPU has to stop
    """

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer
        self.wanted, self.parts = "", {}

    def say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.out, flush=True)

    def begin(self) -> bool:
        """Wait until it is this path's turn. Whether there is one."""
        self.wanted, self.parts = sys.stdin.readline().strip(), {}
        self.began, self.cpu_began = time.perf_counter(), time.process_time()
        return bool(self.wanted)

    def end(self, steps: int = 1, **facts: Any) -> None:
        """Say how long this turn took, for each of its global batches."""
        wait_for_gpu()
        seconds, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu_began
        self.say(
            seconds=seconds / steps,
            cpu_seconds=cpu / steps,
            parts=self.parts,
            memory_gib=memory_gib(),
            **facts,
        )

    def clock(self, owner: Any, method: str, part: str) -> None:
        """Count the time that a method takes, where parts are wanted."""
        function = getattr(owner, method)

        def clocked(*args: Any, **kwargs: Any) -> Any:
            if self.wanted != "parts":
                return function(*args, **kwargs)
            wait_for_gpu()
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                wait_for_gpu()
                self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - began

        setattr(owner, method, clocked)


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_gib() -> float:
    """Most that was used so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# -------------------------------------------------------------------------------- the ordinary path


class Captures(torch.utils.data.Dataset):
    """The raw files, processed when they are asked for: pixel_values (3, h, w), target and mask (H,
    W), all float32.
    """

    def __init__(self, job: Job, turns: Turns):
        from transformers import AutoImageProcessor

        self.turns = turns
        self.pictures = sorted(Path(job.raw).rglob("images/*_color.png"))
        size = dict(zip(("height", "width"), job.size))
        self.processor = AutoImageProcessor.from_pretrained(
            job.model, size=size, keep_aspect_ratio=False
        )
        self.near_mm, self.far_mm = job.near_mm, job.far_mm
        self.kept = [self.read(i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.kept[i] if self.turns.wanted == "memory" else self.read(i)

    def read(self, i: int) -> dict[str, Tensor]:
        from PIL import Image

        picture = self.pictures[i]
        z = np.load(
            picture.parents[1] / "depth" / picture.name.replace("_color.png", "_rawDepth.npy")
        )[:, :, 2]
        mask = np.isfinite(z) & (z > self.near_mm - STEP_MM) & (z < self.far_mm + STEP_MM)
        inverse = 1.0 / (np.where(mask, z, self.far_mm) + 1e-6)
        target = np.clip(
            (inverse - 1.0 / self.far_mm) / (1.0 / self.near_mm - 1.0 / self.far_mm), 0.0, 1.0
        )
        pixels = self.processor(images=Image.open(picture).convert("RGB"), return_tensors="pt")[
            "pixel_values"
        ][0]
        return {
            "pixel_values": pixels,
            "target": torch.from_numpy(target.astype(np.float32)),
            "mask": torch.from_numpy(mask.astype(np.float32)),
        }


def document_loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """L1 + 3 x weighted gradient difference at the truth's own size, the mean over the images, as
    the document writes it.
    """
    target, mask = inputs["target"], inputs["mask"]
    pred = model(pixel_values=inputs["pixel_values"]).predicted_depth
    pred = F.interpolate(
        pred.unsqueeze(1).float(), size=target.shape[-2:], mode="bicubic", align_corners=False
    ).squeeze(1)
    loss = ((pred - target).abs() * mask).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)
    for d_pred, d_target, both in (
        (
            pred[:, :, 1:] - pred[:, :, :-1],
            target[:, :, 1:] - target[:, :, :-1],
            mask[:, :, 1:] * mask[:, :, :-1],
        ),
        (pred[:, 1:] - pred[:, :-1], target[:, 1:] - target[:, :-1], mask[:, 1:] * mask[:, :-1]),
    ):
        weight = 1.0 + 10.0 * (d_target.abs() > 0.02).float()
        loss = loss + 3.0 * ((d_pred - d_target).abs() * weight * both).sum((1, 2)) / (
            both.sum((1, 2)) + 1e-6
        )
    return loss.mean()


def ordinary(job: Job, turns: Turns) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForDepthEstimation,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    captures = Captures(job, turns)
    names = [
        "q_proj",
        "k_proj",
        "v_proj",
        "query",
        "key",
        "value",
    ]  # transformers' newer ones and its older ones
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", target_modules=names)
    model = get_peft_model(
        AutoModelForDepthEstimation.from_pretrained(job.model, dtype=torch.float32), lora
    )

    class OrdinaryTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            return document_loss(model, inputs)

    class InTurns(TrainerCallback):
        """Data are read before `on_step_begin`: a turn goes from one step's end to the next one's."""

        def on_train_begin(self, args, state, control, optimizer=None, **_):
            for owner, method, part in (
                (trainer, "get_batch_samples", "data"),
                (trainer, "compute_loss", "forward"),
            ):
                turns.clock(owner, method, part)
            turns.clock(trainer.accelerator, "backward", "backward")
            turns.clock(optimizer, "step", "optimizer")
            self.next_step()

        def on_step_end(self, args, state, control, **_):
            turns.end()
            control.should_training_stop = not self.next_step()

        def next_step(self) -> bool:
            while turns.begin() and turns.wanted == "data":
                for i in range(job.batch):
                    captures.read(i % len(captures))
                turns.end()
            return bool(turns.wanted)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=job.batch,
            max_steps=STEPS,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            fp16=job.precision == "fp16",
            bf16=job.precision == "bf16",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = OrdinaryTrainer(
            model=model, args=arguments, train_dataset=captures, callbacks=[InTurns()]
        )
        model.eval()
        losses = {}
        for picture, item in list(zip(captures.pictures, captures.kept))[:CHECKED]:
            with torch.no_grad():
                inputs = {
                    name: tensor.unsqueeze(0).to(arguments.device) for name, tensor in item.items()
                }
                losses[picture.name.removesuffix("_color.png")] = float(
                    document_loss(model.to(arguments.device), inputs)
                )
        turns.say(losses=losses)
        trainer.train()


# --------------------------------------------------------------------------------------------- ours


def ours(job: Job, turns: Turns) -> None:
    from depthdist.core.environment import silence_libraries
    from depthdist.distributed.process_group import start
    from depthdist.training.step_timer import StepTimer

    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        training = prepared(job, Path(folder), start())
        device, plan, nobody_asks, speed = (
            training.world.device,
            training.plan,
            SimpleNamespace(signal=""),
            StepTimer(),
        )
        kept = [packed.to(device) for packed in training.loader.train(plan, 0, 0, epochs=1)]
        batches = {"files": iter(training.loader.train(plan, 0, 0)), "memory": cycle(kept)}
        for owner, method, part in (
            (training, "forward", "forward"),
            (training.engine, "backward", "backward"),
            (training.engine, "step", "optimizer"),
        ):
            turns.clock(owner, method, part)
        losses = {
            name: first_losses(training, shards)
            for name, shards in (("losses", job.shards), ("lossless", job.lossless))
        }
        turns.say(
            **losses,
            batch=plan.global_batch,
            micro_batch=plan.micro_batch,
            device=rate(device, job.precision),
        )
        while turns.begin():
            if turns.wanted == "data":
                for packed in training.loader.train(
                    plan, 0, 0, epochs=EPOCHS
                ):  # anew, so that nothing was read ahead
                    packed.to(device)
                turns.end(EPOCHS * plan.steps_per_epoch)
                continue
            speed.saved()  # the step begins now
            training.take_step(batches.get(turns.wanted, batches["files"]), speed, nobody_asks)
            turns.parts["data"] = speed.share_waited * speed.seconds
            turns.end(waited=speed.share_waited)
        training.tracker.close()


def prepared(job: Job, run: Path, world: Any) -> Any:
    """A `Training` of the recipe, put together as `train.train` does it."""
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.loader import Loader
    from depthdist.data.sample_order import TrainPlan
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora, trained_groups
    from depthdist.models.settings import ModelSettings
    from depthdist.runs.tracker import Tracker
    from depthdist.training import micro_batch as microbatch
    from depthdist.training.deepspeed_config import EngineSettings
    from depthdist.training.engine import Engine
    from depthdist.training.loop import Training
    from depthdist.training.run_facts import training_bounds
    from depthdist.training.settings import GROUPS, KeepSettings, Settings, TrainSettings
    from depthdist.training.train_state import TrainState

    chosen = (
        DataSettings(data=(job.shards,)),
        ModelSettings(model=job.model),
        TrainSettings(run=run, lr=LEARNING_RATE, epochs=STEPS),
        KeepSettings(save_every=str(STEPS)),
        EngineSettings(
            deepspeed=Path(job.deepspeed), micro_batch=job.micro_batch, compile=job.compile
        ),
    )
    settings = Settings(
        *(next((s for s in chosen if type(s) is group), group()) for group in GROUPS)
    )
    dataset, (ds_config, _), candidates = (
        open_dataset(settings.data),
        settings.engine.resolved(),
        settings.engine.micro_batches(world.size),
    )
    bounds, model, sizes = (
        training_bounds(dataset),
        add_lora(load_base(job.model), settings.lora, settings.train.seed),
        (dataset.size, dataset.depth_size),
    )
    micro_batch = candidates[0]
    if job.micro_batch == "auto":
        micro_batch = microbatch.find_micro_batch(
            candidates,
            lambda n: microbatch.fits_in_memory(
                model, n, *sizes, settings.loss, bounds, world.device, job.precision
            ),
        )
    plan = TrainPlan(dataset.count("train"), settings.engine.global_batch, micro_batch, world.size)
    engine = Engine(
        model,
        ds_config,
        [(parameters, LEARNING_RATE) for parameters in trained_groups(model).values()],
        world,
        micro_batch,
    )
    if job.compile:
        model.compile()
    loader, tracker = (
        Loader(dataset, settings.data, settings.augment, world.device),
        Tracker(run, True, None, STEPS),
    )
    return Training(
        settings,
        world,
        dataset,
        loader,
        plan,
        bounds,
        model,
        engine,
        None,
        None,
        TrainState(),
        run,
        tracker,
    )


def first_losses(training: Any, shards: str) -> dict[str, float]:
    """Loss by capture of a dataset's first samples, without dropout."""
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.loader import Loader
    from depthdist.evaluation.predictors import network_predictor
    from depthdist.geometry.depth_range import normalize_depth
    from depthdist.losses.terms import compute_losses

    training.model.eval()
    batch = (
        Loader(open_dataset(DataSettings(data=(shards,))))
        .samples("train", range(CHECKED))
        .to(training.world.device)
    )
    with torch.no_grad():
        target, mask = normalize_depth(batch.depth_mm, training.bounds, batch.mask)
        losses = compute_losses(
            training.settings.loss,
            network_predictor(training.model)(batch),
            target,
            mask,
            training.bounds,
        )["loss"]
    return {Path(key).name: loss for key, loss in zip(batch.stems, losses.tolist())}


def rate(device: torch.device, precision: str) -> dict[str, Any]:
    """The device's name, and what it does of a large matrix product in that precision, TFLOP/s."""
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    n = 8192 if device.type == "cuda" else 1536
    a, seconds = torch.randn(n, n, device=device).to(kind), []
    for _ in range(5):
        wait_for_gpu()
        began = time.perf_counter()
        a @ a
        wait_for_gpu()
        seconds.append(time.perf_counter() - began)
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    return {"name": name, "tflops": 2 * n**3 / min(seconds) / 1e12}


PATHS: dict[str, Callable[[Job, Turns], None]] = {"ordinary": ordinary, "ours": ours}

if __name__ == "__main__":
    PATHS[sys.argv[1]](Job(**json.loads(sys.argv[2])), Turns())
