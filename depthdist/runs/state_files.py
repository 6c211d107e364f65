"""The files of training states: written whole or not at all, and proven when they are read.

    RUN/last/step-000123/state.safetensors    tensors
    RUN/last/step-000123/state.json           values
    RUN/last/step-000123/manifest.json        size and sha256 of both; what it does not prove is
                                              not used

A state is written into a folder whose name ends in .tmp, which is renamed once it is complete and
on the disk. Only one process may write. The same step saved again is step-000123.2. Folders with
other names are left alone: to keep a state for good, copy it to one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from depthdist.core.errors import CannotWrite
from depthdist.core.files import parse_json, sync_folder

TENSORS = "state.safetensors"
VALUES = "state.json"
MANIFEST = "manifest.json"
VERSION = 1  # of the manifest
NAME = re.compile(r"step-(\d{6,})(?:\.(\d+))?")  # the step, and the number of its saving


def states(folder: Path) -> list[Path]:
    """Return the states in a folder, complete or not, oldest first: by step, then by saving."""
    # a folder that may not be read is an error, not an empty one
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (path for path in entries if NAME.fullmatch(path.name) and path.is_dir()), key=_order
    )


@contextmanager
def trial_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside the states, which is removed on leaving.

    After a crash the next saving removes it.
    """
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    trial = folder / "step-trial.tmp"
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir()
    try:
        yield trial
    finally:
        shutil.rmtree(trial, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # a state was saved meanwhile, or the disk is gone
                folder.rmdir()


def write_state(folder: Path, step: int, contents: Mapping[str, bytes], keep: int) -> Path:
    """Write the files of a step's state, then delete all but the newest `keep` complete states.

    contents  of TENSORS and VALUES
    Return the folder of the new state. Raise CannotWrite if the disk is full or cannot be written;
    earlier states are then unchanged.
    """
    assert keep >= 1, keep
    before = states(folder)
    state = folder / _next_name(step, before)
    unfinished = folder / f"step-{step:06d}.tmp"
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    manifest = json.dumps({"version": VERSION, "files": files}, indent=1).encode()
    try:
        folder.mkdir(exist_ok=True)  # not its parents: a run's folder that is gone stays gone
        for leftover in folder.glob("step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished.mkdir()
        for name, content in {**contents, MANIFEST: manifest}.items():  # the manifest comes last
            _write_file(unfinished / name, content)
        sync_folder(unfinished)
        os.rename(unfinished, state)
        sync_folder(folder)
        sync_folder(folder.parent)  # the folder may be new
    except OSError as err:
        complete = [path for path in before if _is_complete(path)]
        left = (
            f"the state before it, {complete[-1].name}, is whole"
            if complete
            else "there is no state before it"
        )
        raise CannotWrite(
            f"{folder}: the training state of step {step} cannot be written: {err.strerror}; {left}"
        ) from err
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _delete_old_states(folder, state, keep)
    return state


def read_state(state: Path) -> dict[str, bytes]:
    """Return the contents of TENSORS and VALUES, and raise ValueError if a file is not as written.

    The error says in one line what is wrong.
    """
    contents = {}
    for name, sha256 in _manifest_hashes(state).items():
        try:
            contents[name] = (state / name).read_bytes()
        except OSError as err:
            raise ValueError(f"{state} cannot be read: {name}: {err.strerror}") from None
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != sha256:
            raise ValueError(
                f"{state} is damaged: the sha256 of {name} is {found[:16]}..., its manifest says"
                f" {sha256[:16]}..."
            )
    return contents


def _order(state: Path) -> tuple[int, int]:
    """Return step and number of the saving."""
    match = NAME.fullmatch(state.name)
    assert match is not None, state  # `states` lists only such names
    step, number = match.groups(default="1")
    return int(step), int(number)


def _next_name(step: int, before: list[Path]) -> str:
    """Return the folder name for a step, with a number if it was saved before."""
    numbers = [number for old, number in map(_order, before) if old == step]
    return f"step-{step:06d}" + (f".{max(numbers) + 1}" if numbers else "")


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _delete_old_states(folder: Path, newest: Path, keep: int) -> None:
    """Delete every state but `newest` and the keep - 1 complete ones before it.

    States of later steps go too: the run was not resumed from them.
    """
    earlier = [
        state
        for state in states(folder)
        if _order(state)[0] < _order(newest)[0] and _is_complete(state)
    ]
    for old in set(states(folder)) - {newest, *earlier[::-1][: keep - 1]}:
        # renamed first, so that a crash leaves no half of a state
        leftover = old.rename(old.with_name(old.name + ".tmp"))
        # files in use on a network disk are removed at the next saving
        shutil.rmtree(leftover, ignore_errors=True)


def _is_complete(state: Path) -> bool:
    """Return whether the files have the sizes of the manifest; hashing them would take too long."""
    try:
        return bool(_manifest_hashes(state))
    except ValueError:
        return False


def _manifest_hashes(state: Path) -> dict[str, str]:
    """Return the sha256 of each file by the manifest.

    Raise ValueError if there is no manifest, or if a file has another size.
    """
    try:
        manifest = parse_json((state / MANIFEST).read_bytes())
        version = manifest["version"]
        names = (TENSORS, VALUES) if version == VERSION else ()
        files = {name: manifest["files"][name] for name in names}
        sizes = {
            name: ((state / name).stat().st_size, int(file["bytes"]))
            for name, file in files.items()
        }
        hashes = {name: str(file["sha256"]) for name, file in files.items()}
    except FileNotFoundError as err:
        raise ValueError(
            f"{state} is cut off, or no state of depthdist: it has no {Path(err.filename).name}"
        ) from None
    except OSError as err:
        raise ValueError(f"{state} cannot be read: {err.strerror}") from None
    except (ValueError, LookupError, TypeError, OverflowError) as err:
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
