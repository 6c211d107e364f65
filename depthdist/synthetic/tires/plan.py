"""Which captures a set contains: settings, sessions, poses within them, file stems.

Like a robot's recordings, a set is one long session that returns to a few poses, and a few short
sessions. Each session has its own crate, exposure and color cast; each pose its own pile of tires
and view; captures of one pose differ by a small camera motion and by noise: near-duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from depthdist.core.settings import Size
from depthdist.synthetic.settings import size_and_seed_problems

FIRST_CAPTURE = datetime(2021, 12, 3, 18, 50, 31)
# How the captures are divided among the sessions: the real set has 58, 30 of them in one session.
SHARES = (30, 12, 9, 7)
REPEATS = (6.5, 1.5, 1.2, 1.0)  # captures of each pose, by session
NATIVE_SIZE = Size(1200, 1944)


@dataclass(frozen=True)
class Settings:
    """Captures."""

    pairs: int = 58
    "Number of captures."
    size: Size = NATIVE_SIZE
    "Height and width of the images, pixels; 1200x1944 is the real camera's."
    seed: int = 0
    "The same seed gives the same bytes."
    faults: bool = True
    """Add a real camera's depth errors: noise, holes, shadows, flying pixels. Without: exact Z
    wherever a ray hits."""
    groove_depth: float = 1.0
    """Scale of every groove's depth, 0 to 1: the same scenes with shallower treads; 0: no relief at
    all."""

    def problems(self) -> list[str]:
        """Return one sentence for each wrong value."""
        problems = [] if self.pairs >= 1 else [f"--pairs is {self.pairs}; at least 1 is needed"]
        if not 0.0 <= self.groove_depth <= 1.0:
            problems.append(f"--groove-depth is {self.groove_depth}; it must be 0 to 1")
        return problems + size_and_seed_problems(self.size, self.seed)


@dataclass(frozen=True)
class PlannedCapture:
    """One capture to be rendered."""

    stem: str  # its time, as the camera names its files
    session: int
    pose: int  # counted over the whole set; same pose: same pile, same view
    take: int  # which capture of that pose


def random_stream(settings: Settings, *key: int) -> np.random.Generator:
    """Return the random numbers for one purpose; they depend only on the seed and `key`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((settings.seed, *key))))


def captures_per_session(num_captures: int) -> list[int]:
    """Return the number of captures in each session; they sum to `num_captures`."""
    ends = [round(num_captures * sum(SHARES[: i + 1]) / sum(SHARES)) for i in range(len(SHARES))]
    return [end - start for start, end in zip([0, *ends], ends)]


def plan_captures(settings: Settings) -> list[PlannedCapture]:
    """Return every capture of the set in the order of its stems."""
    captures = []
    first_pose = 0
    start = FIRST_CAPTURE
    sessions = zip(captures_per_session(settings.pairs), REPEATS)
    for session, (num_captures, repeats) in enumerate(sessions):
        rng = random_stream(settings, 0, session)
        num_poses = min(num_captures, max(1, round(num_captures / repeats)))
        step_s = min(100.0, 1000.0 / max(num_captures, 1))
        time = start
        for i in range(num_captures):
            stem = f"{time:%y-%m-%d-%H-%M-%S}_Zivid_acquisition"
            pose = first_pose + i % num_poses
            captures.append(PlannedCapture(stem, session, pose, take=i // num_poses))
            time += timedelta(seconds=max(1, int(step_s * rng.uniform(0.6, 1.0))))
        first_pose += num_poses
        start = max(time, start) + timedelta(seconds=int(rng.uniform(3, 60) * 3600))
    return captures
