"""What `--run` may name: a run, an adapter's folder, somebody else's adapter or whole model, on
disk or on the hub.

    model, record = load_model("runs/mine")
    model, record = load_model("owner/adapter-of-plain-peft", Given(near_mm=250, far_mm=3900,
    size=Size(756, 1260)))

An adapter that depthdist saved says all itself (depthdist.json). One saved by plain peft, under
either naming of the attention layers, or a whole DA-V2, knows no millimetres: the bounds of its
normalisation have to be given.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from depthdist.core.settings import Size, expand_user
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.adapter import adapter_state_dict, load_adapter
from depthdist.models.adapter_record import ADAPTER_FILE, WEIGHTS, AdapterRecord
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel
from depthdist.models.lora import finalize_lora_precision, translate_layer_name
from depthdist.synthetic.rooms import render as rooms

CONFIG = "adapter_config.json"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class ExternalAdapterSettings:
    """What an adapter made elsewhere does not say"""

    near_mm: float | None = None
    "Depth at which its normalised inverse depth is 1: the nearest of its training, mm."
    far_mm: float | None = None
    "Depth at which it is 0: the farthest of its training, mm."
    size: Size = Size(756, 1260)
    "Height and width of the pictures that it saw; multiples of 14."
    target: Literal["inverse", "linear"] = "inverse"
    "What it learned: normalised 1/depth, or normalised depth."
    base: str | None = None
    """Its base model, as launch/train.py takes it. Default: the one that its adapter_config.json
    names."""

    def problems(self) -> list[str]:
        found = []
        for name, value in (("--near-mm", self.near_mm), ("--far-mm", self.far_mm)):
            if value is not None and not 0 < value < math.inf:
                found.append(f"{name} is {value:g}: expected > 0 mm")
        if (self.near_mm is None) != (self.far_mm is None):
            found.append("--near-mm and --far-mm: expected both or neither")
        elif self.near_mm is not None and not found and self.near_mm >= self.far_mm:
            found.append(
                f"--near-mm is {self.near_mm:g}, --far-mm is {self.far_mm:g}: expected near < far"
            )
        if (
            self.size.height % PATCH_SIZE
            or self.size.width % PATCH_SIZE
            or min(self.size) < PATCH_SIZE
        ):
            found.append(f"--size is {self.size}: expected multiples of {PATCH_SIZE}")
        return found


def load_model(
    name: str, given: ExternalAdapterSettings = ExternalAdapterSettings()
) -> tuple[DepthModel, AdapterRecord]:
    """The model that `name` means and what its millimetres need, in evaluation mode, on the CPU, in
    float32. ValueError says what is wrong.
    """
    folder = find_adapter(name)
    for own in (folder, folder / "best"):
        if (own / ADAPTER_FILE).exists():
            if given != ExternalAdapterSettings(base=given.base):
                raise ValueError(
                    f"{name}: its {ADAPTER_FILE} says what its output is in mm; --near-mm, --far-mm,"
                    " --size and --target are for adapters without one"
                )
            return load_adapter(own, given.base)
    if (folder / CONFIG).exists():
        model, base = _adapter(folder, given.base)
    elif (folder / "config.json").exists():
        model, base = load_base(str(folder)), str(folder)
        if model.fresh_decoder:
            raise ValueError(f"{name}: a backbone alone, without a decoder: it says no depth")
    else:
        return load_adapter(folder / "best")  # which says what it misses
    if given.near_mm is None:
        raise ValueError(
            f"{name}: it has no {ADAPTER_FILE}, so nothing says what its output is in mm: give --near-mm"
            " and --far-mm, the nearest and farthest depth of its training, mm (and --size and"
            " --target where they are not 756x1260 and inverse)"
        )
    if model.net.config.depth_estimation_type == "metric" and model.net.config.max_depth != 1:
        raise ValueError(
            f"{name}: it says depth itself, up to {model.net.config.max_depth:g}, not normalised"
            " depth of 0..1: expected a model that was trained as depthdist trains"
        )
    model.eval()
    with torch.no_grad():
        middle = (
            model(torch.from_numpy(rooms.render(rooms.Settings(1, (112, 182), 7), 0).rgb)[None])
            .median()
            .item()
        )
    if middle > 2:  # relative depth, as the published models give it, is 0..10
        raise ValueError(
            f"{name}: it does not say normalised depth of 0..1: half of a test picture is above"
            f" {middle:.1f}; expected a model or an adapter that was trained on normalised depth"
        )
    mean, std = model.normalization
    return model, AdapterRecord(
        base,
        given.near_mm,
        given.far_mm,
        *given.size,
        mean,
        std,
        step=0,
        epoch=0,
        eval_loss=math.nan,
        target=given.target,
    )


def find_adapter(name: str) -> Path:
    """The folder that `name` is, or the hub's copy here of what it names.

    ValueError where it is neither.
    """
    path = expand_user(name)
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(name):
        raise ValueError(
            f"--run {name}: no such folder, and not a hub id (owner/name): expected a run, an"
            " adapter's folder or a hub id"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as err:  # the hub's client has a dozen kinds
        raise ValueError(
            f"--run {name}: no such folder, and the hub has no such model or cannot be reached"
            f" ({str(err).splitlines()[0][:160]})"
        ) from err


def _adapter(folder: Path, base: str | None) -> tuple[DepthModel, str]:
    """A base model with plain peft's adapter of `folder` in it, and the base's name.

    The layers are those whose weights are stored, whatever pattern the adapter's configuration
    chose them by.
    """
    try:
        written = json.loads((folder / CONFIG).read_text())
        stored = load_file(folder / WEIGHTS)
        if written["peft_type"] != "LORA":
            raise ValueError(f"it is of the kind {written['peft_type']}; expected LORA")
        base = base or written["base_model_name_or_path"]
        if not isinstance(base, str):
            raise ValueError("it names no base model; give --base")
    except Exception as err:
        raise ValueError(
            f"{folder}: not an adapter of peft's that can be read:"
            f" {' '.join(str(err).split())[:300]}"
        ) from err
    model = load_base(base)
    if model.fresh_decoder and not any(".head." in name for name in stored):
        raise ValueError(
            f"{folder}: its base {base} has no decoder, and the adapter holds none: it says no"
            " depth"
        )
    new = any("q_proj" in name for name, _ in model.net.named_parameters())
    known = {
        name: value
        for name, value in written.items()
        if name in inspect.signature(LoraConfig).parameters
    }
    theirs = sorted(
        {
            name.partition(".lora_")[0].removeprefix("base_model.model.")
            for name in stored
            if ".lora_" in name
        }
    )
    layers = [translate_layer_name(name, new) for name in theirs]
    for pattern, usual in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        values = known.get(pattern) or {}
        known[pattern] = {
            f"^{re.escape(layer)}": values.get(get_pattern_key(values, name), known.get(usual))
            for layer, name in zip(layers, theirs)
        }
    stored = {translate_layer_name(name, new): tensor for name, tensor in stored.items()}
    lost = [name for name in layers if name not in dict(model.net.named_modules())]
    if lost or not layers:
        raise ValueError(
            f"{folder}:"
            f" {f'it changes {lost[0]} and {len(lost) - 1} more layers that {base} has not' if lost else 'it holds no LoRA weights'}"
        )
    try:
        model.net = get_peft_model(
            model.net,
            LoraConfig(
                **{
                    **known,
                    "target_modules": layers,
                    "inference_mode": True,
                    "layers_to_transform": None,
                    "layers_pattern": None,
                }
            ),
        )
        set_peft_model_state_dict(model.net, stored)
    except Exception as err:
        raise ValueError(
            f"{folder}: the adapter does not fit {base}: {' '.join(str(err).split())[:300]}"
        ) from err
    inside = adapter_state_dict(model.net)
    wrong = sorted(
        name
        for name in inside.keys() | stored.keys()
        if name not in inside or name not in stored or not inside[name].equal(stored[name])
    )
    if wrong:
        raise ValueError(
            f"{folder}: the adapter did not enter {base}: {len(wrong)} of {len(stored)} tensors are"
            f" missing or differ, e.g. {wrong[0]}"
        )
    return finalize_lora_precision(model).requires_grad_(False), base
