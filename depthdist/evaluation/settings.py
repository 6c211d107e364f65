"""Settings of launch/evaluate.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from depthdist.evaluation.metrics.alignment import ALIGNMENTS
from depthdist.evaluation.metrics.registry import BINS_MM, TREAD_LIMIT_MM
from depthdist.models.refinement import REFINEMENTS as REFINED


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluation"""

    run: Path | None = None
    "Folder of the run."
    compare: tuple[Path, Path] | None = None
    """Two runs instead of one: which is better on the same images, by how much, and how sure
    that is."""
    data: tuple[str, ...] | None = None
    "Folder of shards, or its URL. Default: the run's own."
    split: str = "val"
    "Which part of the data: val or train."
    micro_batch: int = 1
    "Samples at a time."
    align: tuple[str, ...] = ()
    """Also score the adapter with scale or scale and shift fitted to each image's truth: median,
    depth, disparity (with commas between)."""
    raw: Path | None = None
    """Folder of the captures that the shards were made of: for --refine, which needs pictures at
    their full size."""
    refine: tuple[str, ...] = ()
    """Also score the adapter with detail from the full picture, as launch/predict.py has it:
    guided, tiles (with commas between)."""
    flip: bool = False
    "Also score the adapter averaged with the mirror image's prediction."
    details: bool = True
    "Also measure near and far apart, edges, surfaces and grooves; seconds an image at full size."
    workers: int = 0
    "Processes that measure details. 0: one a core."
    bins_mm: tuple[float, ...] = BINS_MM
    "Ends of the depth ranges that are measured apart, mm."
    tread_limit: float = TREAD_LIMIT_MM
    "Least groove depth that still counts as good, mm."

    def problems(self) -> list[str]:
        found = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}: expected >= {low}"
            for name, low in (("micro_batch", 1), ("workers", 0))
            if getattr(self, name) < low
        ]
        if (self.run is None) == (self.compare is None):
            found.append(
                "--run is missing: the folder of the run"
                if self.run is None
                else "--run and --compare: expected one of them"
            )
        found += [
            f"--align is {way}: expected {', '.join(w for w in ALIGNMENTS if w != 'none')}"
            for way in self.align
            if way not in ALIGNMENTS or way == "none"
        ]
        found += [
            f"--refine is {way}: expected guided or tiles"
            for way in self.refine
            if way not in REFINED or way == "plain"
        ]
        if self.refine and self.raw is None:
            found.append(
                "--raw is missing: --refine needs the folder of the captures that the shards were"
                " made of"
            )
        if self.raw is not None and not self.raw.is_dir():
            found.append(f"--raw {self.raw}: no such folder")
        if (
            len(self.bins_mm) < 2
            or self.bins_mm[0] < 0
            or any(a >= b for a, b in zip(self.bins_mm, self.bins_mm[1:]))
        ):
            found.append(
                f"--bins-mm is {','.join(f'{b:g}' for b in self.bins_mm)}: expected two or more"
                " rising depths >= 0, mm"
            )
        if not 0 < self.tread_limit < math.inf:
            found.append(f"--tread-limit is {self.tread_limit:g}: expected > 0 mm")
        return found
