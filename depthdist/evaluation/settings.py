"""Settings of depthdist evaluate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from depthdist.evaluation.metrics.alignment import ALIGNMENTS
from depthdist.evaluation.metrics.registry import BINS_MM, TREAD_LIMIT_MM
from depthdist.models.settings import Refinement


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluation."""

    run: Path | None = None
    "Folder of the run."
    compare: tuple[Path, Path] | None = None
    """Two runs instead of one: which is better on the same images, by how much, and how sure
    that is."""
    data: tuple[str, ...] | None = None
    """Folder of shards, or its URL, or a folder of captures, which is sharded as the run's was.
    Default: the run's own."""
    split: str = "val"
    "Split of the data to score: val, test or train."
    include_seen: bool = False
    """Also score images of val or test that the run learned from: such scores say how well it fits,
    not how good it is on new images."""
    micro_batch: int = 1
    "Samples at a time."
    align: tuple[str, ...] = ()
    """Also score the adapter with scale or scale and shift fitted to each image's ground truth:
    median, depth, disparity (comma-separated)."""
    raw: Path | None = None
    """Folder of the captures that the shards were made from: for --refine, where the shards do not
    keep images at the camera's size. Default: the captures that the run was trained on."""
    refine: tuple[Refinement, ...] | None = None
    """Also score the adapter with detail from the full-size image, as in depthdist predict:
    detail, guided, tiles (comma-separated), or plain for the adapter alone. Default: detail where
    the run has it and the images are at hand."""
    flip: bool = False
    "Also score the adapter averaged with the prediction of the mirrored image."
    details: bool = True
    """Also measure metrics by depth range, and edges, surfaces and grooves; takes seconds an image
    at full size."""
    workers: int = 0
    "Processes that measure details. 0: one a core."
    bins_mm: tuple[float, ...] = BINS_MM
    "Ends of the depth ranges that are measured separately, mm."
    tread_limit: float = TREAD_LIMIT_MM
    "Smallest groove depth that still counts as good, mm."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one line each."""
        found = []
        if self.micro_batch < 1:
            found.append(f"--micro-batch is {self.micro_batch}: expected >= 1")
        if self.workers < 0:
            found.append(f"--workers is {self.workers}: expected >= 0")
        if self.run is None and self.compare is None:
            found.append("--run is missing: the folder of the run")
        if self.run is not None and self.compare is not None:
            found.append("--run and --compare: expected one of them")
        alignments = [name for name in ALIGNMENTS if name != "none"]
        found += [
            f"--align is {name}: expected {', '.join(alignments)}"
            for name in self.align
            if name not in alignments
        ]
        if self.raw is not None and not self.raw.is_dir():
            found.append(f"--raw {self.raw}: no such folder")
        is_rising = all(low < high for low, high in pairwise(self.bins_mm))
        if len(self.bins_mm) < 2 or self.bins_mm[0] < 0 or not is_rising:
            found.append(
                f"--bins-mm is {','.join(f'{b:g}' for b in self.bins_mm)}: expected two or more"
                " rising depths >= 0, mm"
            )
        if not 0 < self.tread_limit < math.inf:
            found.append(f"--tread-limit is {self.tread_limit:g}: expected > 0 mm")
        return found
