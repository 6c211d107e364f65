"""The machine that was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def describe_machine() -> dict[str, str]:
    """Return what the results depend on: cores, processor, load, versions."""
    packages = ("torch", "numpy", "webdataset", "simplejpeg", "pillow", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0))
    return {
        "machine": f"{cores} cores, {_processor_name()}, {format_load()} at the start",
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def print_machine(machine: dict[str, str]) -> None:
    """Print what `describe_machine` returned, a line each."""
    print("\n".join(f"{name:<10}{value}" for name, value in machine.items()), flush=True)


def format_load() -> str:
    """Return the load average of the last minute as text."""
    return f"load {os.getloadavg()[0]:.1f}"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
