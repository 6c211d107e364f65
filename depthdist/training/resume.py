"""What a run resumes from: its last state, or that of another run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from depthdist.core.files import replace_folder
from depthdist.distributed.process_group import World, broadcast_from_rank_0
from depthdist.distributed.tensor_exchange import broadcast_tensors
from depthdist.models.adapter_record import ADAPTER_FILE
from depthdist.runs.state_files import states
from depthdist.runs.training_state import load_state
from depthdist.training.parts import Learner
from depthdist.training.train_state import TrainState


@dataclass
class Saved:
    """What a run resumes from; empty where it begins.

    tensors  weights, optimizer moments and averages, by name
    engine   the engine's numbers beside them
    """

    state: TrainState = field(default_factory=TrainState)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)


def read_saved(run: Path, resume: str, world: World) -> Saved:
    """Return what to resume from: `run`, another run, or nothing. Rank 0's disk decides."""
    source = run if resume in ("auto", "never") else Path(resume)
    found = None
    if world.rank == 0 and resume != "never":
        found = load_state(source / "last", _print_warning)
    values = broadcast_from_rank_0(found[1] if found else {})
    if not values:
        return Saved()
    tensors = broadcast_tensors(found[0] if found else {})
    if found:
        train = values["train"]
        print(
            f"going on     from {found[2]}: step {train['step']}, {train['epoch']} epochs finished,"
            f" {len(tensors)} tensors",
            flush=True,
        )
        if source != run and (source / "best").exists():
            with replace_folder(run / "best") as fresh:
                shutil.copytree(source / "best", fresh, dirs_exist_ok=True)
    return Saved(TrainState(**values["train"]), tensors, values["engine"])


def describe_saved(run: Path) -> str:
    """Return what is left of a run that had to stop, as the end of its error line."""
    try:
        names = [state.name for state in states(run / "last")]
    except OSError:
        names = []
    if not names:
        return "no state is saved: once that is mended, the same command begins anew"
    return f"once that is mended, the same command goes on from {run}/last/{names[-1]}"


def _print_warning(line: str) -> None:
    print(f"WARNING      {line}", flush=True)


def restore(learner: Learner, saved: Saved, world: World, run: Path) -> None:
    """Put saved weights, moments and averages back.

    raises ValueError if the best adapter so far is gone
    """
    if saved.engine:
        weights = {n: t for n, t in saved.tensors.items() if not n.startswith("ema/")}
        learner.engine.restore(weights, saved.engine)
        if learner.ema:
            averages = {
                name.removeprefix("ema/"): tensor.to(world.device)
                for name, tensor in saved.tensors.items()
                if name.startswith("ema/")
            }
            learner.ema.load(averages)
    if saved.state.best_epoch and not broadcast_from_rank_0((run / "best" / ADAPTER_FILE).exists()):
        raise ValueError(
            f"{run}/best: the best adapter so far is gone; remove {run} to begin anew, or put it"
            " back"
        )
