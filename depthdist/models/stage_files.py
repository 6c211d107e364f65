"""The files of a trained second stage, beside the adapter that it belongs to.

    stage = load_stage("detail", DetailRecord, build, folder, adapter)

NAME.safetensors  the network's weights, float32
NAME.json         a record: the SHA-256 of the adapter on whose predictions it was trained, and how

A stage learned how that adapter errs: on predictions of another one it makes things worse, so
loading it beside another adapter is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from depthdist.core.errors import one_line
from depthdist.core.files import parse_json, recover_folder, replace_folder, write_json
from depthdist.core.settings import from_dict
from depthdist.models.adapter_record import ADAPTER_FILE, WEIGHTS

FULL_WEIGHTS = "model.safetensors"  # of a network that trained as a whole, or was exported
NOT_A_STAGE = (
    *(AttributeError, KeyError, TypeError, ValueError),  # its record
    *(OSError, RuntimeError, SafetensorError),  # its weights
)


class StageRecord(Protocol):
    """What every record of a stage has: `adapter`, the SHA-256 of its adapter's weights."""

    @property
    def adapter(self) -> str:
        """SHA-256 of the adapter's weights."""


Record = TypeVar("Record", bound=StageRecord)
Network = TypeVar("Network", bound=nn.Module)


def adapter_sha256(folder: Path) -> str:
    """Return the SHA-256 of an adapter's weights, or of those of a whole model.

    raises ValueError where there are none
    """
    for name in (WEIGHTS, FULL_WEIGHTS):
        path = folder / name
        if path.exists():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    raise ValueError(f"{folder}: no adapter here: expected {WEIGHTS} or {FULL_WEIGHTS}")


def has_stage(run: Path, name: str) -> bool:
    """Return whether a run's folder holds a trained stage."""
    return (run / name / "best" / f"{name}.json").exists()


def find_stage(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the folders of an adapter and of its stage, which need not be there.

    folder  a run; its best/, whose stage is the run's; or an adapter that was exported, with the
            stage's files beside its own
    """
    folder = folder if folder.name else folder.resolve()
    recover_folder(folder / "best")
    if (folder / "best" / ADAPTER_FILE).exists():
        adapter, run = folder / "best", folder
    else:
        adapter, run = folder, folder.parent if folder.name == "best" else folder
    recover_folder(run / name / "best")
    return adapter, folder if (folder / f"{name}.json").exists() else run / name / "best"


def save_stage(name: str, weights: dict[str, Tensor], record: Any, folder: Path) -> None:
    """Write a stage into `folder`, in place of what is there; all of it or nothing."""
    with replace_folder(folder) as fresh:
        write_stage(name, weights, record, fresh)


def write_stage(name: str, weights: dict[str, Tensor], record: Any, folder: Path) -> None:
    """Write the two files of a stage beside what is in `folder`."""
    dense = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    (folder / f"{name}.safetensors").write_bytes(save(dense))
    write_json(folder / f"{name}.json", asdict(record))


def load_stage(
    name: str,
    record_type: type[Record],
    build: Callable[[Record], Network],
    folder: Path,
    adapter: Path,
    without: str,
) -> tuple[Network, Record]:
    """Return the network and the record of the stage in `folder` for the adapter in another.

    build    returns the network of a record, with any weights
    without  how to do without it, for the error

    raises ValueError: none there, damaged, or trained on another adapter
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise ValueError(
            f"{folder}: no {name} stage here: expected {name}.json and {name}.safetensors;"
            f" `depthdist train --{name}` makes it"
        )
    try:
        record = from_dict(record_type, parse_json(path.read_bytes()))
        network = build(record)
        network.load_state_dict(load_file(folder / f"{name}.safetensors"))
    except NOT_A_STAGE as err:
        raise ValueError(f"{path}: not a {name} stage ({one_line(err)})") from None
    found, expected = adapter_sha256(adapter), record.adapter
    if found != expected:
        raise ValueError(
            f"{folder}: was trained on another adapter ({expected[:12]}) than that in {adapter}"
            f" ({found[:12]}); train it anew with `depthdist train --{name}`, or use {without}"
        )
    return network.eval(), record
