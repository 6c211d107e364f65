"""The DeepSpeed file: which one, what it may say, what this device can run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from depthdist.core.json_text import read_json_object
from depthdist.core.settings import hidden, range_problems
from depthdist.distributed.accelerator import accelerator
from depthdist.training.deepspeed_sections import refused_sections, settle_sections

PACKAGE = Path(__file__).parents[1]  # a link in it leads to the files of ds_configs/


@dataclass(frozen=True)
class EngineSettings:
    """Hardware (precision, batch, optimizer and ZeRO stand in the DeepSpeed file)."""

    deepspeed: Path = Path("ds_configs/fp16.json")
    "DeepSpeed's own JSON; train_batch_size in it is the global batch, whatever the number of GPUs."
    global_batch: int | None = None
    "Samples of an optimizer step, over all ranks, in place of the file's train_batch_size."
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Multiply the learning rates by --global-batch over the file's train_batch_size (linear), or
    by its square root (sqrt)."""
    micro_batch: str = "1"
    """Images a rank puts through the network at a time; changes nothing but speed. auto: as many
    as fit the device's memory."""
    checkpointing: bool = False
    """Compute activations again on the way back instead of keeping them: a third slower, much
    less memory."""
    compile: bool = False
    """Let torch.compile fuse the network's kernels on a GPU: some minutes at the start, faster
    afterwards."""
    cpu_threads: int | None = None
    """CPU threads that a rank computes with; a run keeps those that it began with. Default:
    OMP_NUM_THREADS, else this machine's cores over its ranks."""
    local_rank: int = hidden(-1)
    "Set by the launcher."

    def problems(self) -> list[str]:
        """Return what is wrong with the values and in the DeepSpeed file, a line each."""
        found = []
        if not re.fullmatch("auto|[1-9][0-9]{0,5}", self.micro_batch):
            found.append(
                f"--micro-batch is {self.micro_batch}: expected a whole number >= 1, or auto"
            )
        found += range_problems(
            self,
            ("global_batch", self.global_batch is None or 1 <= self.global_batch < 2**31, ">= 1"),
            ("cpu_threads", self.cpu_threads is None or 1 <= self.cpu_threads <= 1024, "1 .. 1024"),
        )
        try:
            config = self.read()
        except ValueError as err:
            return [*found, *str(err).splitlines()]
        return found + [f"{self.deepspeed}: {problem}" for problem in config_problems(config)]

    def read(self) -> dict[str, Any]:
        """Return the file's content, "auto" and unused sections settled.

        raises ValueError where it is no JSON object
        """
        return self._settled()[0]

    def _settled(self) -> tuple[dict[str, Any], list[str]]:
        config, remarks = settle_sections(read_json_object(self._file(), "--deepspeed"))
        if self.global_batch is not None and self.global_batch >= 1:
            config["train_batch_size"] = self.global_batch
        return config, remarks

    def _file(self) -> Path:
        """Return the file; those of ds_configs/ are found from every working directory."""
        shipped = PACKAGE / self.deepspeed
        return shipped if shipped.exists() and not self.deepspeed.exists() else self.deepspeed

    @property
    def batch(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.read()["train_batch_size"]

    @property
    def file_batch(self) -> int:
        """The file's own train_batch_size; the one that is used where the file has none."""
        batch = replace(self, global_batch=None).read().get("train_batch_size")
        return batch if type(batch) is int and batch > 0 else self.batch

    @property
    def lr_factor(self) -> float:
        """What the learning rates are multiplied by."""
        ratio = self.batch / self.file_batch
        return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]

    def micro_batches(self, num_ranks: int) -> list[int]:
        """Return the micro-batches to try, in that order.

        It is one number, or with auto all that divide a rank's share of the batch, largest first.
        """
        if self.micro_batch != "auto":
            return [int(self.micro_batch)]
        batch = self.batch
        share = batch // num_ranks
        return [n for n in range(share, 0, -1) if batch % (n * num_ranks) == 0] or [1]

    def resolved(self) -> tuple[dict[str, Any], list[str]]:
        """Return the configuration that this device can run, and a remark for each change.

        raises ValueError where it cannot be run here
        """
        config, remarks = self._settled()
        device = accelerator().device_name()
        if precision(config) == "fp16" and not fp16_pays():
            config["fp16"] = {"enabled": False}
            remarks.append(f"FP16 IS NOT FOR THIS DEVICE ({device}): this run trains in FP32")
        if precision(config) == "bf16" and (why := why_no_bf16()):
            raise ValueError(f"{self.deepspeed}: {why}; use ds_configs/fp16.json")
        if self.compile and device == "cpu":
            # seen with torch 2.13: the loss is right, LoRA's gradient 0
            raise ValueError(
                "--compile: not on a CPU: torch's kernels for it lose the gradient behind a frozen"
                " decoder, and bring no speed"
            )
        return config, remarks


def config_problems(config: dict[str, Any]) -> list[str]:
    """Return what is wrong with the content of a DeepSpeed file, a line each."""
    objects = ("optimizer", "fp16", "bf16", "zero_optimization")
    found = [
        f"{key} is {config[key]!r}; expected an object"
        for key in objects
        if not isinstance(config.get(key, {}), dict)
    ]
    if found:
        return found
    found = refused_sections(config)
    batch = config.get("train_batch_size", 1)
    if type(batch) is not int or batch < 1:
        found.append(f"train_batch_size is {batch!r}; expected a whole number >= 1")
    clip = config.get("gradient_clipping", 0.0)
    if type(clip) not in (int, float) or not clip >= 0:
        found.append(f"gradient_clipping is {clip!r}; expected a number >= 0")
    every = config.get("steps_per_print", 1)
    if type(every) not in (int, float) or not every > 0:
        found.append(f"steps_per_print is {every!r}; expected a number > 0")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or stage not in range(4):
        found.append(f"zero_optimization.stage is {stage!r}; expected 0, 1, 2 or 3")
    enabled = {name: config.get(name, {}).get("enabled", False) for name in ("fp16", "bf16")}
    for name, value in enabled.items():
        if not isinstance(value, bool):
            found.append(f"{name}.enabled is {value!r}; expected true or false")
    if all(value is True for value in enabled.values()):
        found.append("fp16 and bf16 are both enabled; expected one of them, or none")
    if "train_batch_size" not in config:
        found.append("train_batch_size is missing: the global batch, 8 in the recipe")
    optimizer = config.get("optimizer", {})
    params = optimizer.get("params") or {}
    if not isinstance(params, dict):
        found.append(f"optimizer.params is {params!r}; expected an object")
    elif "lr" in params:
        found.append("optimizer.params.lr is set; leave it out: the learning rate is --lr")
    if "type" not in optimizer:
        found.append("optimizer.type is missing; see ds_configs/fp16.json")
    return found


def fp16_pays() -> bool:
    """Return whether FP16 is worth while on this device.

    Most CPUs have none, and those with AVX512-FP16 were 30 times slower in it than in FP32.
    """
    return accelerator().device_name() != "cpu" and accelerator().is_fp16_supported()


def why_no_bf16() -> str:
    """Return why this device does not compute in bf16, or nothing where it does.

    DeepSpeed's own answer also counts GPUs older than Ampere, where PyTorch only stores bf16 and
    cuBLAS and cuDNN fail with it.
    """
    if accelerator().device_name() == "cuda":
        from torch import cuda

        if cuda.is_bf16_supported(including_emulation=False):
            return ""
        name, (major, minor) = cuda.get_device_name(), cuda.get_device_capability()
        return f"{name} has no bf16 (compute capability {major}.{minor}; it begins with 8.0)"
    return "" if accelerator().is_bf16_supported() else "this device has no bf16"


def precision(config: dict[str, Any]) -> str:
    """Return "fp16", "bf16" or "fp32", as a DeepSpeed configuration has it."""
    for name in ("fp16", "bf16"):
        if config.get(name, {}).get("enabled"):
            return name
    return "fp32"
