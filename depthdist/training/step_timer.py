"""What a person watches besides the loss: speed, waiting, memory, the state of fp16.

And damaged samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from depthdist.training.engine import Engine


class StepTimer:
    """Clocks of the steps: how long one took, how much of it was waiting for data, and when the
    state was last saved.
    """

    def __init__(self):
        self.waited = self.seconds = self.share_waited = 0.0
        self.saved()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While entered, the step waits for data."""
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    def end_step(self) -> float:
        """Seconds since the last step's end."""
        now = time.perf_counter()
        self.seconds, self.began = now - self.began, now
        self.share_waited, self.waited = self.waited / self.seconds, 0.0
        return self.seconds

    def save_is_due(self, interval: tuple[int, float], step: int) -> bool:
        """Whether the state after `step` should be saved: every so many steps, or so many seconds
        after the last time.
        """
        steps, seconds = interval
        return step % steps == 0 if steps else time.perf_counter() - self.saved_at >= seconds

    def saved(self) -> None:
        """The state was saved just now; the next step begins."""
        self.saved_at = self.began = time.perf_counter()

    def health(self, engine: Engine, num_images: int) -> dict[str, float]:
        """Of the last step."""
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
