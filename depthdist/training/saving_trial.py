"""Before the first step: everything that a run will save is saved once, read back and removed.

So that a state or an adapter that cannot be saved is known before hours of training; what can fail
later is the disk alone.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from depthdist.core.files import folder_bytes
from depthdist.models.adapter import load_adapter, save_adapter
from depthdist.runs.state_files import trial_folder
from depthdist.runs.training_state import load_state, save_state
from depthdist.training.keeping import adapter_record, whole_state
from depthdist.training.parts import Run

MIB = 2**20


@dataclass(frozen=True)
class SavedSizes:
    """Bytes of what a run saves: one state, and the adapter."""

    state: int
    adapter: int


def try_saving(run: Run) -> None:
    """Save, read back and remove a state with optimizer moments, and the adapter of now.

    Every rank takes part, rank 0 writes. Prints what that took, and a warning where the disk has
    too little room for the run. raises ValueError where something cannot be saved
    """
    began = time.perf_counter()
    tensors, content = whole_state(run, run.learner.engine.example_state())
    if run.world.rank:
        return
    folder = run.output.folder
    try:
        with trial_folder(folder / "last") as trial:
            sizes = _save_and_read(run, tensors, content, trial)
    except (OSError, ValueError) as err:
        raise ValueError(
            f"{folder}: what this run keeps cannot be saved, so nothing was trained: {err}"
        ) from err
    run.output.tracker.say(
        f"saving       {sizes.state / MIB:.1f} MiB a state, {sizes.adapter / MIB:.1f} MiB the"
        f" adapter: written, read back and removed in {time.perf_counter() - began:.1f} s"
    )
    run.output.warn(little_room(folder, sizes, run.settings.keep.keep))


def _save_and_read(
    run: Run, tensors: dict[str, Tensor], content: dict[str, object], trial: Path
) -> SavedSizes:
    """Return the sizes of state and adapter; raise ValueError if they come back otherwise."""
    save_state(trial / "state", run.state.step, tensors, content, keep=1)
    found = load_state(trial / "state", lambda line: None)
    if not found or not _is_same(found[0], tensors):
        raise ValueError("the training state is read otherwise than it was written")
    model = run.learner.model
    weights = {
        name.removeprefix("weights/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("weights/")
    }
    save_adapter(model, weights, adapter_record(run, eval_loss=0.0), trial / "best")
    load_adapter(trial / "best")  # proves that every tensor arrives in the model
    return SavedSizes(folder_bytes(trial / "state"), folder_bytes(trial / "best"))


def _is_same(found: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    """Return whether names, shapes, types and bits are equal."""
    return found.keys() == tensors.keys() and all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and torch.equal(_bits(found[name]), _bits(tensor.detach().cpu()))
        for name, tensor in tensors.items()
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)  # NaN is equal to itself in bits


def little_room(run: Path, sizes: SavedSizes, keep: int) -> str | None:
    """Return a warning where the disk has not the room for what a run keeps, or None.

    At worst there are keep + 1 states, and the adapter twice, while the newer one is written.
    """
    wanted = (keep + 1) * sizes.state + 2 * sizes.adapter
    wanted -= folder_bytes(run / "last") + folder_bytes(run / "best")  # are there already
    free = shutil.disk_usage(run).free
    if free >= wanted:
        return None
    return (
        f"{run}: the disk has {free / MIB:.1f} MiB of room; the run needs {wanted / MIB:.1f} MiB:"
        f" {keep + 1} states of {sizes.state / MIB:.1f} MiB and the adapter twice. Make room, or"
        " give a smaller --keep"
    )
