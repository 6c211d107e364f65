"""The adapter on disk: plain peft files, from fp32 weights, that load under either naming of the attention layers.

    best/adapter_model.safetensors    LoRA (and the decoder where it was trained), every key in both of transformers' spellings
    best/adapter_config.json          peft's own; target_modules is one regex that fits both
    best/depthdist.json               what depth in mm needs besides: base model, bounds, picture size, and where it came from

`PeftModel.from_pretrained(base, "best")` alone loads it. `load_adapter("best")` also proves that it really went in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from depthdist.depth import Bounds
from depthdist.model import DepthModel, freeze_idle, load_base, respelled

RECORD = "depthdist.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterRecord:
    """What an adapter needs besides its weights to give millimetres, and where it came from.

    model            what `--model` named
    near_mm, far_mm  bounds of the normalisation, mm
    height, width    size of the pictures that the network saw, pixels
    step, epoch      when it was saved
    eval_loss        of that moment
    """

    model: str
    near_mm: float
    far_mm: float
    height: int
    width: int
    step: int
    epoch: int
    eval_loss: float

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.near_mm, self.far_mm).checked()

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; on leaving without an error it takes `folder`'s place, else it goes and `folder` stays."""
    fresh, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    recover(folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    for file in (f for f in fresh.rglob("*") if f.is_file()):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put the previous folder back where a crash came between the two renames of `replacing`."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        os.rename(old, folder)


def save_adapter(model: DepthModel, weights: Mapping[str, Tensor], record: AdapterRecord, folder: Path) -> None:
    """Write the adapter so that it is in `folder` whole or not at all.

    weights  fp32 masters of what trains, by `model.named_parameters()` name
    """
    named = {name.removeprefix("net."): tensor for name, tensor in weights.items()}
    state = {**{n: t for n, t in model.net.state_dict().items() if "residual_layer1" in n}, **named}
    state = get_peft_model_state_dict(model.net, state_dict=state)
    both = {respelled(name, new): t.detach().float().cpu().contiguous().clone() for new in (True, False) for name, t in state.items()}
    with replacing(folder) as fresh:
        try:
            model.net.peft_config["default"].save_pretrained(fresh)
            save_file(both, fresh / WEIGHTS, metadata={"format": "pt"})
            (fresh / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n")
        except (OSError, SafetensorError) as err:
            raise ValueError(f"{folder}: the adapter cannot be written (is the disk full?): {err}") from err


def read_record(folder: Path) -> AdapterRecord:
    """The record of an adapter's folder. ValueError where there is none or it is not one of ours."""
    recover(folder)
    path = folder / RECORD
    if not path.exists():
        raise ValueError(f"{folder}: no adapter here: expected {RECORD} and {WEIGHTS}, as a run's best/ holds them")
    try:
        record = AdapterRecord(**json.loads(path.read_text()))
        assert isinstance(record.model, str) and isinstance(record.height, int) and isinstance(record.width, int), "types"
        return record if record.bounds else record
    except (AssertionError, TypeError, ValueError) as err:
        raise ValueError(f"{path}: not an adapter's record ({err})") from None


def load_adapter(folder: Path) -> tuple[DepthModel, AdapterRecord]:
    """The base model with the adapter of `folder` in it, in evaluation mode, on the CPU, in float32.

    raises ValueError when something is missing, or when the adapter did not really enter the model: peft only warns then
    """
    record = read_record(folder)
    model = load_base(record.model)
    try:
        model.net = PeftModel.from_pretrained(model.net, str(folder))
        stored = load_file(folder / WEIGHTS)
    except Exception as err:  # safetensors, peft and json each have their own; all of them mean this
        raise ValueError(f"{folder}: the adapter cannot be loaded: {' '.join(str(err).split())[:300]}") from err
    inside = get_peft_model_state_dict(model.net)
    mine = any("q_proj" in n for n, _ in model.net.named_parameters())  # which spelling this transformers has
    wanted = inside.keys() | {respelled(n, new=mine) for n in stored}
    lost = sorted(n for n in wanted if n not in inside or n not in stored or not torch.equal(inside[n], stored[n]))
    if lost or not any("lora_" in n for n in inside):
        raise ValueError(f"{folder}: the adapter did not enter {record.model}: {len(lost)} of {len(wanted)} tensors are missing or differ, e.g. {lost[:1]}")
    freeze_idle(model)
    return model.eval(), record
