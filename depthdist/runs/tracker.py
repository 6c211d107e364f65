"""The log of a run: metrics.jsonl, TensorBoard with images, and one progress line.

Rank 0 writes, the other ranks do nothing. Each method raises CannotWrite where the disk is full or
the folder gone. Other trackers (log_services.py) get the same numbers and images; where one fails,
that is a warning.

    runs/NAME/run.json         settings, what was derived from them, versions
    runs/NAME/metrics.jsonl    one JSON object for each logged step or evaluation:
                               {"step": 6, "epoch": 1, "eval/loss": 0.11, ...}
    runs/NAME/tensorboard/     the same numbers, and the images
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import image as image_summary
from torch.utils.tensorboard.summary import scalar, text
from tqdm import tqdm

from depthdist.core.errors import CannotWrite
from depthdist.core.files import append, parse_json, write_atomic
from depthdist.runs.log_services import LogService
from depthdist.runs.tensorboard_file import EventFile

EVALUATION = "eval/loss"  # the line of an evaluation has it
SECONDS_BETWEEN_LINES = 10  # of progress, where the output is not a terminal
SECONDS_TO_SEND = (120.0, 10.0)  # that other trackers get at the end, and after an error


class Tracker:
    """The log of one run.

    active  whether this rank writes; all methods of another rank's tracker do nothing
    step    where a resumed run continues: later lines of the interrupted one are dropped; None for
            a run from the start
    total   optimizer steps of the whole run, for the progress line's remaining time
    log_to  other trackers, names in SERVICES
    evaluates_again  an interrupted evaluation of `step` begins anew: what it wrote is dropped too
    """

    def __init__(
        self,
        run: Path,
        active: bool,
        step: int | None,
        total: int,
        log_to: Sequence[str] = (),
        evaluates_again: bool = False,
    ):
        self.active = active
        if not active:
            return
        self.lines = run / "metrics.jsonl"
        kept = self._drop_lines_after(step, evaluates_again)
        first_step = 0 if step is None else step + 1 - evaluates_again
        self.board = EventFile(run / "tensorboard", first_step)
        if step is not None and evaluates_again:
            for values in kept:
                if values["step"] == step:  # its points are hidden with those of the evaluation
                    self._add_points(_curves_of(values), step)
        self.services = [LogService(name, run, resumed=step is not None) for name in log_to]
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

    def _drop_lines_after(
        self, step: int | None, evaluates_again: bool
    ) -> list[dict[str, float | None]]:
        """Remove the lines of later steps, and lines that a crash cut off; all where it is None.

        evaluates_again  also the line of that step's evaluation
        returns          the values of the lines that stay
        """
        if not self.lines.exists():
            return []
        lines = [] if step is None else self.lines.read_text(encoding="utf-8").splitlines()
        kept, found = [], []
        for line in lines:
            values = _values_of(line)
            is_again = evaluates_again and values["step"] == step and EVALUATION in values
            if values["step"] <= step and not is_again:
                kept.append(line + "\n")
                found.append(values)
        write_atomic(self.lines, "".join(kept).encode())
        return found

    def log(
        self,
        step: int,
        epoch: int,
        values: dict[str, float],
        curves: Collection[str] | None = None,
    ) -> None:
        """Write one line of metrics.jsonl and one point of each curve.

        A value that is not finite is written as null.

        curves  names of the values that have a curve, by default all
        """
        if not self.active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **finite}
        append(self.lines, (json.dumps(line) + "\n").encode())
        shown = values if curves is None else {name: values[name] for name in curves}
        self.curves(step, shown)

    def curves(self, step: int, values: dict[str, float]) -> None:
        """Write one point of each curve, without a line in metrics.jsonl."""
        if not self.active:
            return
        self._add_points(values, step)
        for service in self._working_services():
            service.log(values, step)

    def _add_points(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.board.add(scalar(name, value), step)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Write an image (h, w, 3) uint8 to TensorBoard's images."""
        if not self.active:
            return
        self.board.add(image_summary(name, image, dataformats="HWC"), step)
        for service in self._working_services():
            service.picture(name, image, step)

    def text(self, name: str, markdown: str, step: int = 0) -> None:
        """Write Markdown to TensorBoard's text page."""
        self.summary(text(name, markdown), step)

    def summary(self, summary: Summary, step: int) -> None:
        """Write what another of TensorBoard's tabs shows (tensorboard_plugins.py)."""
        if self.active:
            self.board.add(summary, step)

    def describe(self, values: dict[str, Any]) -> None:
        """Send settings and versions to the other trackers."""
        if self.active:
            for service in self._working_services():
                service.describe(values)

    def _working_services(self) -> list[LogService]:
        """Return the other trackers that have not failed; print a warning of one that just did."""
        for service in list(self.services):
            problem = service.problem()
            if problem:
                self.services.remove(service)
                self.say(f"WARNING      {problem}")
        return self.services

    def advance(self, step: int, **shown: str) -> None:
        """Move the progress line to `step`."""
        if self.active:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(step - self.bar.n)
            if not self.live and time.monotonic() - self.shown_at > SECONDS_BETWEEN_LINES:
                self.shown_at = time.monotonic()
                print(self.bar, flush=True)

    def flush(self) -> None:
        """Write TensorBoard's curves to the disk; metrics.jsonl is always up to date."""
        if self.active:
            self.board.flush()

    def say(self, line: str) -> None:
        """Print a line above the progress line."""
        if self.active:
            tqdm.write(line)
            sys.stdout.flush()

    def close(self, seconds: float = SECONDS_TO_SEND[0]) -> None:
        """Close the progress line, write TensorBoard's last points, and send what is left.

        seconds  that each of the other trackers gets at most
        """
        if self.active:
            self.bar.close()
            for service in self._working_services():
                service.close(seconds)
            self._working_services()
            self.board.flush()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Close; after an error, which is what will be shown, whatever the disk says."""
        with suppress(CannotWrite) if kind else nullcontext():
            self.close(SECONDS_TO_SEND[bool(kind)])


def _values_of(line: str) -> dict[str, Any]:
    """Return what a line of metrics.jsonl has; a step of infinity where it cannot be read."""
    try:
        values: dict[str, Any] = parse_json(line)
        return {**values, "step": values["step"]}
    except (ValueError, KeyError, TypeError):
        return {"step": math.inf}  # a line that a crash cut off


def _curves_of(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the points of a line of metrics.jsonl."""
    named = {name: value for name, value in values.items() if "/" in name}
    return {name: math.nan if value is None else value for name, value in named.items()}


def record_damage(damage: dict[str, Any], run: Path) -> None:
    """Print a quarantined sample, and append it to RUN/quarantine.jsonl; all ranks write there."""
    print(
        f"WARNING      quarantined: {damage['split']} sample {damage['key']} ({damage['stem']}) of"
        f" {damage['shard']}: {damage['member']}: {damage['reason']}",
        flush=True,
    )
    append(run / "quarantine.jsonl", (json.dumps(damage) + "\n").encode())
