"""Captures to measure with: a few built-in ones at the real size, linked under other names until
there are enough.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from depthdist.core.settings import Size

MAKE_TIRES = Path(__file__).resolve().parents[1] / "make_tires.py"


@dataclass(frozen=True)
class CaptureSettings:
    """Captures"""

    work: Path = Path("data/bench")
    "Folder for all that is made to measure with, kept for the next time."
    captures: int = 16
    "Different captures, by tools/make_tires.py."
    capture_size: Size = Size(1200, 1944)
    "Their height and width."


def make_raw(settings: CaptureSettings, count: int) -> Path:
    """A folder of `count` captures in the real layout."""
    captures = settings.work / f"captures-{settings.captures}-{settings.capture_size}"
    say(f"{settings.captures} captures of {settings.capture_size} in {captures}")
    subprocess.run(
        [
            sys.executable,
            MAKE_TIRES,
            captures,
            "--pairs",
            str(settings.captures),
            "--size",
            str(settings.capture_size),
        ],
        check=True,
        capture_output=True,
    )
    raw = settings.work / f"raw-{count}-of-{captures.name}"
    pairs = list(
        zip(
            sorted(captures.glob("images/*_color.png")),
            sorted(captures.glob("depth/*_rawDepth.npy")),
        )
    )
    for number in range(count):
        for path in pairs[number % len(pairs)]:
            link = raw / f"{number // len(pairs):03d}" / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                os.link(path, link)
    return raw


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
