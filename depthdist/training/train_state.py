"""What changes during training and is not a weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainState:
    """All that changes during training and is not a weight; it survives a restart.

    step, epoch     optimizer steps taken, epochs finished
    position        where in the data training resumes, as Position.token gives it
    line            scale, shift and explained share of the calibrated start, where there was one
    best            best score so far of --best-by, and best_epoch, at whose end; without
                    validation there is no score, and the last epoch is the best
    before          scores of the model before training, as it is and by alignment
    losses          eval loss of every evaluation
    is_learned      whether --overfit reached its goal
    threads         CPU threads of a rank; 0: a GPU's, or not known
    evaluation_is_due  an epoch is trained, and not evaluated yet
    """

    step: int = 0
    epoch: int = 0
    position: dict[str, Any] = field(default_factory=dict)
    line: list[float] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    is_learned: bool = False
    threads: int = 0
    evaluation_is_due: bool = False
