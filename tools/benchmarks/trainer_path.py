"""The ordinary way to train, as the document's notebook does.

transformers' Trainer around a peft model, captures read and processed in `__getitem__`, the loss
written out after F.interpolate.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from tools.benchmarks.turns import LEARNING_RATE, NUM_COMPARED, STEPS, Job, Turns

STEP_MM = 0.061  # of depth in shards: their bounds may be off by half of it
LORA_MODULES = ["q_proj", "k_proj", "v_proj", "query", "key", "value"]
"""The names of attention layers in newer and older versions of transformers."""


class Captures(Dataset[dict[str, Tensor]]):
    """The raw files, processed when they are asked for.

    pixel_values (3, h, w), target and mask (H, W), all float32. All are read once before training,
    for the steps on data in memory.
    """

    def __init__(self, job: Job, turns: Turns):
        from transformers import AutoImageProcessor

        self.turns = turns
        self.images = sorted(Path(job.raw).rglob("images/*_color.png"))
        height, width = job.size
        self.processor: Any = AutoImageProcessor.from_pretrained(
            job.model, size={"height": height, "width": width}, keep_aspect_ratio=False
        )
        self.near_mm = job.near_mm
        self.far_mm = job.far_mm
        self.kept = [self.read(i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.kept[i] if self.turns.wanted == "memory" else self.read(i)

    def read(self, i: int) -> dict[str, Tensor]:
        """Return a sample from its files."""
        image = self.images[i]
        depth = image.name.replace("_color.png", "_rawDepth.npy")
        depth_mm = np.load(image.parents[1] / "depth" / depth)[:, :, 2]
        mask = np.isfinite(depth_mm)
        mask &= (depth_mm > self.near_mm - STEP_MM) & (depth_mm < self.far_mm + STEP_MM)
        inv_depth = 1.0 / (np.where(mask, depth_mm, self.far_mm) + 1e-6)
        inv_near = 1.0 / self.near_mm
        inv_far = 1.0 / self.far_mm
        target = np.clip((inv_depth - inv_far) / (inv_near - inv_far), 0.0, 1.0)
        rgb = Image.open(image).convert("RGB")
        return {
            "pixel_values": self.processor(images=rgb, return_tensors="pt")["pixel_values"][0],
            "target": torch.from_numpy(target.astype(np.float32)),
            "mask": torch.from_numpy(mask.astype(np.float32)),
        }


def document_loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the document's loss: L1 + 3 x weighted gradient difference, at the truth's own size.

    It is the mean over the images.
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


def train(job: Job, turns: Turns) -> None:
    """Send the first losses, then train with transformers' Trainer, a step a turn."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForDepthEstimation,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    captures = Captures(job, turns)
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, bias="none", target_modules=LORA_MODULES
    )
    base = AutoModelForDepthEstimation.from_pretrained(job.model, dtype=torch.float32)
    model = get_peft_model(base, lora)

    class OrdinaryTrainer(Trainer):
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Tensor:
            return document_loss(model, inputs)

    class InTurns(TrainerCallback):
        """A turn goes from one step's end to the next one's: data are read before a step begins."""

        def on_train_begin(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
        ) -> None:
            turns.clock(trainer, "get_batch_samples", "data")
            turns.clock(trainer, "compute_loss", "forward")
            turns.clock(trainer.accelerator, "backward", "backward")
            turns.clock(optimizer, "step", "optimizer")
            self.next_step()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
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
        turns.send(losses=first_losses(model.to(arguments.device).eval(), captures))
        trainer.train()


@torch.no_grad()
def first_losses(model: Any, captures: Captures) -> dict[str, float]:
    """Return the loss of the first captures by stem, without dropout."""
    losses = {}
    for image, sample in list(zip(captures.images, captures.kept))[:NUM_COMPARED]:
        inputs = {name: tensor.unsqueeze(0).to(model.device) for name, tensor in sample.items()}
        losses[image.name.removesuffix("_color.png")] = float(document_loss(model, inputs))
    return losses
