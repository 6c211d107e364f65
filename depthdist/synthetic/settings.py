"""Settings that the commands for both kinds of synthetic captures share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from depthdist.core.settings import Size, positional


@dataclass(frozen=True)
class OutputSettings:
    """Output."""

    out: Path = positional()
    "The folder to write to."
    workers: int = 0
    "Number of processes; 0: one for each CPU core. The bytes do not depend on it."

    def problems(self) -> list[str]:
        """Return one sentence for each wrong value."""
        return [f"--workers is {self.workers}; it must be 0 or more"] if self.workers < 0 else []


def size_and_seed_problems(size: Size, seed: int) -> list[str]:
    """Return one sentence for each wrong value of --size and --seed."""
    problems = []
    if not all(16 <= pixels <= 8192 for pixels in size):
        problems.append(f"--size is {size[0]}x{size[1]}; both must be 16 to 8192 pixels")
    if seed < 0:
        problems.append(f"--seed is {seed}; it must be 0 or more")
    return problems
