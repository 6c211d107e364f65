"""The training state on disk: all that a run needs to go on bit for bit, and proof that it is
whole.

    RUN/last/step-000123/state.safetensors    tensors: fp32 masters of what trains, the optimizer's
                                              moments, averages
    RUN/last/step-000123/state.json           values: step, epoch, position in the data, loss scaler
    RUN/last/step-000123/manifest.json        bytes and sha256 of both; what it does not prove is
                                              not used

    save_state(run / "last", step, tensors, values, keep=2)
    found = load_state(run / "last", say=print)  # (tensors, values, folder of the state), or None

A state is written under a name that ends in .tmp and takes its own in one rename, when it is whole
and on the disk. One process writes. The same step saved again is step-000123.2. A folder of another
name is left alone: to keep a state for good, copy it to one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from depthdist.core.files import sync_folder

TENSORS, VALUES, MANIFEST = "state.safetensors", "state.json", "manifest.json"
VERSION = 1  # of the manifest
NAME = re.compile(r"step-(\d{6,})(?:\.(\d+))?")  # the step, and which saving of it


def states(folder: Path) -> list[Path]:
    """The states in a folder, whole or not, oldest first: by step, and within one step as they were
    saved.
    """
    there = (
        folder.iterdir() if folder.is_dir() else ()
    )  # what may not be read is an error, not an empty folder
    return sorted(
        (path for path in there if NAME.fullmatch(path.name) and path.is_dir()), key=_order
    )


def save_state(
    folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], keep: int
) -> Path:
    """Write the state of a step, then delete all but the newest `keep` whole ones.

    Returns the new one's folder.

    tensors  of any shape, type and device; equal bits come back, on the CPU
    values   whatever JSON holds; a float comes back exactly, NaN and infinity too, a tuple as a
             list
    raises ValueError where the disk is full or cannot be written: what was there before is
    untouched
    """
    assert keep >= 1, keep
    before = states(folder)
    again = [number for old, number in map(_order, before) if old == step]
    state = folder / (f"step-{step:06d}" + (f".{max(again) + 1}" if again else ""))
    fresh = folder / f"step-{step:06d}.tmp"
    dense = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, t in tensors.items()
    }  # each with memory of its own
    contents = {TENSORS: save(dense), VALUES: json.dumps(dict(values), indent=1).encode()}
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    contents[MANIFEST] = json.dumps(
        {"version": VERSION, "files": files}, indent=1
    ).encode()  # written last
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        for name, content in contents.items():
            with open(fresh / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(fresh)
        os.rename(fresh, state)
        sync_folder(folder)
        sync_folder(folder.parent)  # the folder may be new
    except OSError as err:
        whole = [path for path in before if _is_whole(path)]
        left = (
            f"the state before it, {whole[-1].name}, is whole"
            if whole
            else "there is no state before it"
        )
        raise ValueError(
            f"{folder}: the training state of step {step} cannot be written: {err.strerror}; {left}"
        ) from err
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _prune(folder, state, keep)
    return state


def load_state(
    folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any], Path] | None:
    """Tensors by name (on the CPU), values, and the folder of the newest state that its manifest
    proves; None where there is no state.

    say     is told of every newer one that is cut off, damaged or of another kind, in one line
    raises  ValueError where there are states and none is whole
    """
    lost: list[str] = []
    for state in reversed(states(folder)):
        try:
            tensors, values = _read(state)
        except ValueError as err:
            lost.append(str(err))
            continue
        for line in lost:
            say(f"{line}; going on from {state.name}")
        return tensors, values, state
    if lost:
        raise ValueError(
            f"{folder}: no state is whole; remove it to begin anew ({'; '.join(lost)})"
        )
    return None


def _order(state: Path) -> tuple[int, int]:
    step, number = NAME.fullmatch(state.name).groups(default="1")
    return int(step), int(number)


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Delete every state but `newest` and the keep - 1 whole ones before it.

    A later step is one that the run did not go on from.
    """
    earlier = [
        state
        for state in states(folder)
        if _order(state)[0] < _order(newest)[0] and _is_whole(state)
    ]
    for old in set(states(folder)) - {newest, *earlier[::-1][: keep - 1]}:
        gone = old.rename(
            old.with_name(old.name + ".tmp")
        )  # so that a crash leaves no half of a state
        shutil.rmtree(
            gone, ignore_errors=True
        )  # what is in use on a network disk goes with the next saving


def _is_whole(state: Path) -> bool:
    """By the sizes alone: hashing each at every saving would cost more than it tells."""
    try:
        return bool(_hashes(state))
    except ValueError:
        return False


def _hashes(state: Path) -> dict[str, str]:
    """The sha256 that the manifest gives each file.

    ValueError where there is no manifest, or a file has another size.
    """
    try:
        manifest = json.loads((state / MANIFEST).read_bytes())
        version = manifest["version"]
        wanted = {
            name: manifest["files"][name]
            for name in ((TENSORS, VALUES) if version == VERSION else ())
        }
        sizes = {
            name: ((state / name).stat().st_size, int(file["bytes"]))
            for name, file in wanted.items()
        }
        hashes = {name: str(file["sha256"]) for name, file in wanted.items()}
    except FileNotFoundError as err:
        raise ValueError(
            f"{state} is cut off, or no state of depthdist: it has no {Path(err.filename).name}"
        ) from None
    except OSError as err:
        raise ValueError(f"{state} cannot be read: {err.strerror}") from None
    except (ValueError, LookupError, TypeError, RecursionError) as err:
        raise ValueError(
            f"{state} is damaged: {MANIFEST} is no manifest ({type(err).__name__})"
        ) from None
    if version != VERSION:
        raise ValueError(
            f"{state} is of another depthdist: its manifest has version {version!r}; expected"
            f" {VERSION}"
        )
    for name, (found, expected) in sizes.items():
        if found != expected:
            raise ValueError(
                f"{state} is {'cut off' if found < expected else 'damaged'}: {name} has {found}"
                f" bytes, its manifest says {expected}"
            )
    return hashes


def _read(state: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` was given. ValueError says in one line why this is not it."""
    contents = {}
    for name, sha256 in _hashes(state).items():
        try:
            contents[name] = (state / name).read_bytes()
        except OSError as err:
            raise ValueError(f"{state} cannot be read: {name}: {err.strerror}") from None
        if (found := hashlib.sha256(contents[name]).hexdigest()) != sha256:
            raise ValueError(
                f"{state} is damaged: the sha256 of {name} is {found[:16]}..., its manifest says"
                f" {sha256[:16]}..."
            )
    try:
        tensors = load(contents[TENSORS])
        return {name: tensors[name] for name in sorted(tensors)}, json.loads(contents[VALUES])
    except (SafetensorError, ValueError, KeyError) as err:
        raise ValueError(
            f"{state} is whole, but no state of depthdist: {' '.join(str(err).split())[:200]}"
        ) from None
