"""Which captures a set holds: sessions, poses within them, file stems.

And the settings all of it follows from.

A set is one long session that comes back to a few poses, as a robot does, and a few short ones.
Each session has its own crate, exposure and colour cast; each pose its own pile of tires and view;
captures of one pose differ by a nudge of the camera and by noise, so they are near-twins.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

FIRST_CAPTURE = datetime(2021, 12, 3, 18, 50, 31)
SHARES = (
    30,
    12,
    9,
    7,
)  # how the pairs are dealt to the sessions: the real set has 58, 30 of them in one session
REPEATS = (6.5, 1.5, 1.2, 1.0)  # captures of each pose
NATIVE_SIZE = (1200, 1944)


@dataclass(frozen=True)
class Settings:
    """Captures"""

    pairs: int = 58
    "How many captures to make."
    size: tuple[int, int] = NATIVE_SIZE
    "Height and width of the pictures, pixels; 1200x1944 is the real camera's."
    seed: int = 0
    "The same seed gives the same bytes."
    faults: bool = True
    """What a real camera does to depth: noise, holes, shadows, flying pixels. Without: exact Z
    wherever a ray hits."""

    def problems(self) -> list[str]:
        """What is wrong with the values, one sentence each."""
        found = [] if self.pairs >= 1 else [f"--pairs is {self.pairs}; at least 1 is needed"]
        if not all(16 <= n <= 8192 for n in self.size):
            found.append(f"--size is {self.size[0]}x{self.size[1]}; both must be 16 to 8192 pixels")
        return found if self.seed >= 0 else [*found, f"--seed is {self.seed}; it must be 0 or more"]


@dataclass(frozen=True)
class Pair:
    """One capture to be made."""

    stem: str  # its time, as the camera names its files
    session: int
    pose: int  # counted over the whole set; same pose: same pile, same view
    take: int  # which capture of that pose


def draws(settings: Settings, *key: int) -> np.random.Generator:
    """The random numbers for one thing, the same wherever and whenever they are drawn."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((settings.seed, *key))))


def deal(pairs: int) -> list[int]:
    """How many pairs each session gets; they sum to `pairs`, and none is empty that is listed."""
    ends = [round(pairs * sum(SHARES[: i + 1]) / sum(SHARES)) for i in range(len(SHARES))]
    return [b - a for a, b in zip([0, *ends], ends)]


def plan(settings: Settings) -> list[Pair]:
    """Every pair of the set in the order of its stems."""
    made, pose, start = [], 0, FIRST_CAPTURE
    for session, (num, repeats) in enumerate(zip(deal(settings.pairs), REPEATS)):
        rng = draws(settings, 0, session)
        num_poses = min(num, max(1, round(num / repeats)))
        step_s = min(100.0, 1000.0 / max(num, 1))
        time = start
        for i in range(num):
            stem = f"{time:%y-%m-%d-%H-%M-%S}_Zivid_acquisition"
            made.append(Pair(stem, session, pose + i % num_poses, i // num_poses))
            time += timedelta(seconds=max(1, int(step_s * rng.uniform(0.6, 1.0))))
        pose += num_poses
        start = max(time, start) + timedelta(seconds=int(rng.uniform(3, 60) * 3600))
    return made
