"""The training state: all that a run needs to resume bit for bit.

RUN/last/step-000123/state.safetensors    tensors: fp32 masters of what trains, the optimizer's
                                          moments, averages
RUN/last/step-000123/state.json           values: step, epoch, position in the data, loss scaler

save_state(run / "last", step, tensors, values, keep=2)
found = load_state(run / "last", say=print)  # (tensors, values, folder of the state), or None
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from depthdist.core.errors import one_line
from depthdist.core.files import parse_json
from depthdist.runs.state_files import TENSORS, VALUES, read_state, states, write_state


def save_state(
    folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], keep: int
) -> Path:
    """Write the state of a step, then delete all but the newest `keep` complete ones.

    tensors  of any shape, type and device; equal bits come back, on the CPU
    values   whatever JSON holds; a float comes back exactly, NaN and infinity too, a tuple as a
             list
    Return the folder of the new state. Raise CannotWrite if the disk is full or cannot be written;
    earlier states are then unchanged.
    """
    # each with memory of its own
    dense = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    contents = {TENSORS: save(dense), VALUES: json.dumps(dict(values), indent=1).encode()}
    return write_state(folder, step, contents, keep)


def load_state(
    folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any], Path] | None:
    """Return tensors (on the CPU) and values of the newest undamaged state, and its folder.

    None if there is no state. Raise ValueError if there are states and all are damaged.

    say  gets one line for every newer state that is cut off, damaged or of another kind
    """
    problems: list[str] = []
    for state in reversed(states(folder)):
        try:
            tensors, values = _decode(state, read_state(state))
        except ValueError as err:
            problems.append(str(err))
            continue
        for line in problems:
            say(f"{line}; resuming from {state.name}")
        return tensors, values, state
    if problems:
        raise ValueError(
            f"{folder}: no state is whole; remove it to start again ({'; '.join(problems)})"
        )
    return None


def _decode(state: Path, contents: Mapping[str, bytes]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and values, and raise ValueError if the files hold something else."""
    try:
        tensors = load(contents[TENSORS])
        values = parse_json(contents[VALUES])
        if not isinstance(values, dict):
            raise ValueError(f"{VALUES} is not an object")
        return {name: tensors[name] for name in sorted(tensors)}, values
    except (SafetensorError, ValueError, KeyError) as err:
        raise ValueError(f"{state} is whole, but no state of depthdist: {one_line(err)}") from None
