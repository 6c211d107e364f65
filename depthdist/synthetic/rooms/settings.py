"""Settings of a set of rooms, and the scenes' names."""

from __future__ import annotations

from dataclasses import dataclass

from depthdist.core.settings import Size
from depthdist.synthetic.settings import size_and_seed_problems

DEFAULT_SIZE = Size(336, 546)


@dataclass(frozen=True)
class Settings:
    """Scenes."""

    scenes: int = 100
    "Number of scenes."
    size: Size = DEFAULT_SIZE
    "Height and width of the images, pixels."
    seed: int = 0
    "The same seed gives the same bytes."

    def problems(self) -> list[str]:
        """Return one sentence for each wrong value."""
        problems = [] if self.scenes >= 1 else [f"--scenes is {self.scenes}; at least 1 is needed"]
        return problems + size_and_seed_problems(self.size, self.seed)


def scene_stem(settings: Settings, index: int) -> str:
    """Return the stem of the files of scene number `index`."""
    return f"room-{settings.seed}-{index:06d}"
