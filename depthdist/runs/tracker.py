"""What a run leaves behind for people: metrics.jsonl, TensorBoard, pictures, and one progress line.

Rank 0 writes, others do nothing.

runs/NAME/run.json         settings, what followed from them, versions
runs/NAME/metrics.jsonl    one JSON object a logged step or evaluation: {"step": 6, "epoch": 1,
                           "eval/loss": 0.11, ...}
runs/NAME/tensorboard/     the same numbers, and the pictures
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10  # of progress, where the output is a file and no terminal


class Tracker:
    """The log of one run.

    `step` is where a resumed run goes on: later lines of the interrupted one are dropped; None: it
    begins.

    total  optimizer steps of the whole run, for the progress line's ETA
    """

    def __init__(self, run: Path, active: bool, step: int | None, total: int):
        self.active = active
        if not active:
            return
        self.lines = run / "metrics.jsonl"
        if self.lines.exists():
            kept = [
                line
                for line in self.lines.read_text().splitlines()
                if step is not None and _step(line) <= step
            ]
            fresh = self.lines.with_suffix(".tmp")
            fresh.write_text("".join(line + "\n" for line in kept))
            os.replace(fresh, self.lines)
        self.board = SummaryWriter(
            str(run / "tensorboard"), purge_step=0 if step is None else step + 1
        )
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=step or 0,
            unit="step",
            desc="training",
            dynamic_ncols=self.live,
            file=None if self.live else io.StringIO(),
        )
        self.shown_at = time.monotonic()

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl and one point of each curve.

        A value that is not finite is written as null.
        """
        if not self.active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.lines, "a") as file:
            file.write(
                json.dumps({"step": step, "epoch": epoch, "time": round(time.time(), 3), **finite})
                + "\n"
            )
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def holds(self, name: str) -> bool:
        """Whether a value of that name was ever logged in this run."""
        return self.active and self.lines.exists() and f'"{name}"' in self.lines.read_text()

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """(h, w, 3) uint8 under `name` in TensorBoard's images."""
        if self.active:
            self.board.add_image(name, image, step, dataformats="HWC")

    def text(self, name: str, text: str) -> None:
        """Markdown in TensorBoard's text page."""
        if self.active:
            self.board.add_text(name, text)

    def advance(self, step: int, **shown: str) -> None:
        """Move the progress line to `step`."""
        if self.active:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(step - self.bar.n)
            if not self.live and time.monotonic() - self.shown_at > SECONDS_BETWEEN_LINES:
                self.shown_at = time.monotonic()
                print(self.bar, flush=True)

    def flush(self) -> None:
        """Bring TensorBoard's curves to the disk, as metrics.jsonl always is."""
        if self.active:
            self.board.flush()

    def say(self, line: str) -> None:
        """A line for the person at the terminal, above the progress line."""
        if self.active:
            tqdm.write(line)
            sys.stdout.flush()

    def close(self) -> None:
        if self.active:
            self.bar.close()
            self.board.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that a crash cut off


def record_damage(damage: dict[str, Any], run: Path) -> None:
    """Say what was set aside, and keep it in RUN/quarantine.jsonl, which all ranks write."""
    print(
        f"WARNING      set aside: {damage['split']} sample {damage['key']} ({damage['stem']}) of"
        f" {damage['shard']}: {damage['member']}: {damage['reason']}",
        flush=True,
    )
    with open(run / "quarantine.jsonl", "a") as file:
        file.write(json.dumps(damage) + "\n")
