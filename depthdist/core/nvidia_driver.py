"""A machine with an NVIDIA GPU that this PyTorch cannot use: what is wrong, and what to install."""

from __future__ import annotations

import os
import re
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
GPU = Path("/dev/nvidia0")
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The first driver for each CUDA, https://docs.nvidia.com/deploy/cuda-compatibility/"""
OLDER_CUDA = "pip install torch --index-url https://download.pytorch.org/whl/cu126"
ON_CPU = 'CUDA_VISIBLE_DEVICES="" in the environment trains on the CPU'


def check_driver() -> None:
    """Raise ValueError where this machine has an NVIDIA GPU and PyTorch cannot use it."""
    if problem := describe_unusable_gpu():
        raise ValueError(f"{problem}; {ON_CPU}")


def describe_unusable_gpu() -> str:
    """Return why PyTorch cannot use this machine's NVIDIA GPU, once it has found none.

    "" where the machine has none, or the CPU is meant: by whoever hides the GPUs
    (CUDA_VISIBLE_DEVICES, as SLURM does without --gres) or chooses the CPU (DS_ACCELERATOR).
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    if hidden or os.environ.get("DS_ACCELERATOR") == "cpu" or not (DRIVER.exists() or GPU.exists()):
        return ""
    import torch

    mismatch = describe_mismatch(driver_version(), torch.__version__, torch.version.cuda)
    return f"this machine has an NVIDIA GPU, and PyTorch cannot use it: {mismatch}"


def driver_version() -> str:
    """Return the version of the NVIDIA driver that the kernel has loaded, "" if none."""
    try:
        text = DRIVER.read_text()
    except OSError:
        return ""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return found[0] if found else ""


def describe_mismatch(driver: str, torch: str, cuda: str | None) -> str:
    """Return why a PyTorch for that CUDA finds no GPU with that driver, and what to do."""
    if cuda is None:
        return f"PyTorch {torch} is built without CUDA; install one that is built with it"
    oldest = OLDEST_DRIVER.get(int(cuda.partition(".")[0]), 0)
    if not driver:
        return f"the NVIDIA driver is not loaded (PyTorch {torch} needs {oldest} or newer)"
    if int(driver.partition(".")[0]) < oldest:
        return (
            f"its driver is {driver}, and PyTorch {torch} is built for CUDA {cuda}, which needs"
            f" {oldest} or newer; install a newer driver, or a PyTorch for an older CUDA: "
            f"{OLDER_CUDA}"
        )
    return (
        f"its driver {driver} suits PyTorch {torch} (CUDA {cuda}), so this process may not open it;"
        " was the container or job started with GPUs (docker --gpus all, srun --gres=gpu:1)?"
    )
