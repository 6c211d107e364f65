"""What a person watches besides the loss: speed, waiting, memory, the state of fp16."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from depthdist.training.engine import Engine


class StepTimer:
    """Clocks of the steps: how long one took and waited for data; when the state was saved."""

    def __init__(self) -> None:
        self.waited = 0.0
        self.seconds = 0.0
        self.share_waited = 0.0
        self.began = 0.0
        self.saved()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time while entered as waiting for data."""
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    def end_step(self) -> float:
        """End a step and return the seconds since the last step's end."""
        now = time.perf_counter()
        self.seconds = now - self.began
        self.began = now
        self.share_waited = self.waited / self.seconds
        self.waited = 0.0
        return self.seconds

    def save_is_due(self, interval: tuple[int, float], step: int) -> bool:
        """Return whether the state after `step` should be saved.

        interval  (steps, seconds) since the last time, of which one is 0
        """
        steps, seconds = interval
        if steps:
            return step % steps == 0
        return time.perf_counter() - self.saved_at >= seconds

    def saved(self) -> None:
        """Note that the state was saved just now; the next step begins."""
        self.saved_at = time.perf_counter()
        self.began = self.saved_at

    def health(self, engine: Engine, num_images: int) -> dict[str, float]:
        """Return speed, memory and gradients of the last step, by their names in the log."""
        values = {
            "train/grad_norm": engine.grad_norm,
            "train/loss_scale": engine.loss_scale,
            "train/skipped_steps": engine.skipped_steps,
            "speed/images_per_s": num_images / self.seconds,
            "speed/data_wait_share": self.share_waited,
            "memory/process_gib": psutil.Process().memory_info().rss / 2**30,
        }
        if engine.precision != "fp32":
            values["train/underflow_share"] = engine.underflow_share
        if engine.world.device.type == "cuda":
            values["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values
