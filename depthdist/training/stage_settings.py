"""The settings that second stages share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from depthdist.core.settings import range_problems


@dataclass(frozen=True)
class StageSettings:
    """Second stages (--detail and --completion)."""

    raw: Path | None = None
    """Folder of the captures that --data was sharded from, for --detail and --completion where the
    shards hold small images."""
    detail_folds: int = 2
    """A second stage learns on predictions of images that an adapter has not seen: so many adapters
    are trained, each without one of so many parts of the training images. 0: predictions of the
    run's own adapter, which has seen them; right where it saw very many images."""
    detail_memory: int = 4000
    "MB a rank that decoded images may take."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        return range_problems(
            self,
            (
                "detail_folds",
                0 <= self.detail_folds <= 100 and self.detail_folds != 1,
                "0, or >= 2",
            ),
            ("detail_memory", self.detail_memory >= 1, ">= 1 MB"),
        )
