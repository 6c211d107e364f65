"""This machine: device, usable cores, worker processes, versions."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import subprocess
import threading
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdist import __version__

if TYPE_CHECKING:
    import torch


def pick_device() -> torch.device:
    """Where a single process computes: the GPU where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def silence_libraries() -> None:
    """Keep the libraries' progress bars and remarks off the terminal.

    What matters is said by us.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Where, when and with what something was computed."""
    git = shutil.which("git")
    revision = (
        subprocess.run(
            [git, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
        if git
        else ""
    )
    import torch

    versions = {name: version(name) for name in ("transformers", "peft", "numpy", "deepspeed")}
    return {
        "device": (
            torch.cuda.get_device_name()
            if device.type == "cuda"
            else platform.processor() or platform.machine()
        ),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": revision,
        "versions": {
            "depthdist": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **versions,
        },
    }


def count_workers(wanted: int, num_jobs: int, ranks: int = 1) -> int:
    """How many processes to start: `wanted`, or this rank's share of the machine's cores.

    Never more than there are jobs.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(wanted or cores // ranks, num_jobs))


def exit_with_parent() -> None:
    """In a worker process, at its start: it ends at once when the command that started it is gone."""

    def follow() -> None:
        multiprocessing.parent_process().join()  # returns when the command is gone, however it went
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
