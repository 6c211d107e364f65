"""Captures to measure with: a few rendered ones at the real size, linked under many names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from depthdist.core.settings import Size
from tools.benchmarks.processes import print_progress, run_tool

CAPTURE_SIZE = Size(1200, 1944)
IMAGE_SIZE = Size(756, 1260)


@dataclass(frozen=True)
class CaptureSettings:
    """Captures."""

    work: Path = Path("data/bench")
    "Folder for everything that is made to measure with; it is kept for the next time."
    captures: int = 16
    "Number of different captures, by tools/make_tires.py."
    capture_size: Size = CAPTURE_SIZE
    "Their height and width."


def make_raw(settings: CaptureSettings, count: int) -> Path:
    """Return a folder of `count` captures in the real layout; the different ones repeat."""
    captures = settings.work / f"captures-{settings.captures}-{settings.capture_size}"
    print_progress(f"{settings.captures} captures of {settings.capture_size} in {captures}")
    size = ["--size", settings.capture_size]
    run_tool("make_tires.py", captures, "--pairs", settings.captures, *size)
    raw = settings.work / f"raw-{count}-of-{captures.name}"
    images = sorted(captures.glob("images/*_color.png"))
    depths = sorted(captures.glob("depth/*_rawDepth.npy"))
    for number in range(count):
        repeat, which = divmod(number, len(images))
        for path in (images[which], depths[which]):
            link = raw / f"{repeat:03d}" / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                os.link(path, link)
    return raw


def check_lowest(settings: object, lowest: dict[str, int]) -> list[str]:
    """Return a problem for each setting that is below its lowest value."""
    return [
        f"--{name.replace('_', '-')} is {getattr(settings, name)}: expected {low} or more"
        for name, low in lowest.items()
        if getattr(settings, name) < low
    ]
