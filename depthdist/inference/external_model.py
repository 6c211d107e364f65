"""Load the model that `--run` names: a run, an adapter's folder, a whole model, or a hub id.

    model, record = load_model("runs/mine")
    model, record = load_model(
        "owner/adapter-of-plain-peft",
        ExternalAdapterSettings(near_mm=250, far_mm=3900, size=Size(756, 1260)),
    )

An adapter that depthdist saved records everything itself (depthdist.json). One saved by plain peft,
under either naming of the attention layers, or a whole DA-V2, has no scale in mm: the depth range
of its normalization has to be given.
"""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from depthdist.core.errors import one_line
from depthdist.core.files import parse_json
from depthdist.inference.model_folder import find_model_folder
from depthdist.inference.settings import ExternalAdapterSettings
from depthdist.models.adapter import adapter_state_dict, describe_model, load_adapter
from depthdist.models.adapter_record import ADAPTER_FILE, WEIGHTS, AdapterRecord
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel
from depthdist.models.lora import finalize_lora_precision, translate_layer_name
from depthdist.models.refiner import Refiner, load_refiner
from depthdist.models.settings import Refinement

CONFIG = "adapter_config.json"
PROBE = Path(__file__).with_name("probe.png")  # a rendered room, (112, 182): for quick checks
MAX_MEDIAN = 2  # of normalized depth; relative depth, as the published models give it, is 0..10
NO_EXTERNAL = ExternalAdapterSettings()

ModelKind = Literal["adapter", "run", "peft adapter", "full model", "unknown"]


def load_model(
    name: str, external: ExternalAdapterSettings = NO_EXTERNAL
) -> tuple[DepthModel, AdapterRecord]:
    """Load the model that `name` is and the record of its scale in mm.

    The model is in evaluation mode, on the CPU, in float32. ValueError says what is wrong.
    """
    folder = find_model_folder(name)
    kind = model_kind(folder)
    if kind == "adapter":
        return load_own_adapter(name, folder, external)
    if kind == "run":
        return load_own_adapter(name, folder / "best", external)
    if kind == "unknown":  # a run whose best/ can be recovered after a crash, else a ValueError
        return load_adapter(folder / "best")
    if kind == "peft adapter":
        model, base = load_peft_adapter(folder, external.base)
    else:
        model, base = load_full_model(name, folder)
    model.eval()
    return model, make_record(name, model, base, external)


def load_refined(
    name: str, refinement: Refinement | None, external: ExternalAdapterSettings = NO_EXTERNAL
) -> tuple[DepthModel, AdapterRecord, Refiner]:
    """Load what `load_model` does and how its predictions are refined, and print both.

    refinement  as --refine
    """
    refiner = load_refiner(refinement, find_model_folder(name))
    model, record = load_model(name, external)
    print(describe_model(model, record))
    if refiner.refinement != "plain":
        print(f"refine       {refiner}")
    return model, record, refiner


def model_kind(folder: Path) -> ModelKind:
    """Return what kind of model is in a folder, judged by its files alone."""
    if (folder / ADAPTER_FILE).exists():
        return "adapter"
    if (folder / "best" / ADAPTER_FILE).exists():
        return "run"
    if (folder / CONFIG).exists():
        return "peft adapter"
    if (folder / "config.json").exists():
        return "full model"
    return "unknown"


def load_own_adapter(
    name: str, folder: Path, external: ExternalAdapterSettings
) -> tuple[DepthModel, AdapterRecord]:
    """Load an adapter that depthdist saved; ValueError if a scale in mm is given as well."""
    if external != ExternalAdapterSettings(base=external.base):
        raise ValueError(
            f"{name}: its {ADAPTER_FILE} says what its output is in mm; --near-mm, --far-mm,"
            " --size and --target are for adapters without one"
        )
    return load_adapter(folder, external.base)


def load_full_model(name: str, folder: Path) -> tuple[DepthModel, str]:
    """Load a whole DA-V2 and return it with the name of its folder as its base."""
    model = load_base(str(folder))
    if model.fresh_decoder:
        raise ValueError(f"{name}: a backbone alone, without a decoder: it predicts no depth")
    return model, str(folder)


def make_record(
    name: str, model: DepthModel, base: str, external: ExternalAdapterSettings
) -> AdapterRecord:
    """Return the record of a model that has none, from the settings.

    ValueError if they lack the depth range, or if the model's output is not normalized depth.
    """
    if external.near_mm is None or external.far_mm is None:
        raise ValueError(
            f"{name}: it has no {ADAPTER_FILE}, so nothing says what its output is in mm: give"
            " --near-mm and --far-mm, the nearest and farthest depth of its training, mm (and"
            " --size and --target where they are not 756x1260 and inverse)"
        )
    check_output_range(name, model, load_probe())
    mean, std = model.normalization
    return AdapterRecord(
        base,
        external.near_mm,
        external.far_mm,
        *external.size,
        mean,
        std,
        step=0,
        epoch=0,
        eval_loss=math.nan,
        target=external.target,
    )


def load_probe() -> np.ndarray:
    """Return the stored test image, (112, 182, 3) uint8."""
    with Image.open(PROBE) as image:
        return np.array(image)


@torch.no_grad()
def check_output_range(name: str, model: DepthModel, rgb: np.ndarray) -> None:
    """Raise ValueError if the model's output for an image (h, w, 3) is not normalized depth."""
    config: Any = model.net.config
    if config.depth_estimation_type == "metric" and config.max_depth != 1:
        raise ValueError(
            f"{name}: it predicts depth itself, up to {config.max_depth:g}, not normalized"
            " depth of 0..1: expected a model that was trained as depthdist trains"
        )
    median = model(torch.from_numpy(rgb)[None]).median().item()
    if median > MAX_MEDIAN:
        raise ValueError(
            f"{name}: it does not predict normalized depth of 0..1: half of a test image is above"
            f" {median:.1f}; expected a model or an adapter that was trained on normalized depth"
        )


def load_peft_adapter(folder: Path, base: str | None) -> tuple[DepthModel, str]:
    """Load a base model with the adapter that plain peft saved; return it with the base's name.

    The adapted layers are those whose weights are stored, whatever pattern the adapter's
    configuration selected them by. ValueError if the adapter does not fit its base.
    """
    config, stored, base = read_peft_adapter(folder, base)
    model = load_base(base)
    if model.fresh_decoder and not any(".head." in name for name in stored):
        raise ValueError(
            f"{folder}: its base {base} has no decoder, and the adapter holds none: it predicts no"
            " depth"
        )
    new = any("q_proj" in name for name, _ in model.net.named_parameters())
    stored_layers = sorted(
        {
            name.partition(".lora_")[0].removeprefix("base_model.model.")
            for name in stored
            if ".lora_" in name
        }
    )
    layers = {name: translate_layer_name(name, new) for name in stored_layers}
    check_layers_exist(folder, base, list(layers.values()), model)
    stored = {translate_layer_name(name, new): tensor for name, tensor in stored.items()}
    try:
        model.net = get_peft_model(model.net, lora_config(config, layers))
        set_peft_model_state_dict(model.net, stored)
    except Exception as err:
        raise ValueError(f"{folder}: the adapter does not fit {base}: {one_line(err)}") from err
    check_weights_loaded(folder, base, adapter_state_dict(model.net), stored)
    return finalize_lora_precision(model).requires_grad_(False), base


def read_peft_adapter(
    folder: Path, base: str | None
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Return an adapter's configuration, its tensors by name, and the name of its base model."""
    try:
        config = parse_json((folder / CONFIG).read_bytes())
        stored = load_file(folder / WEIGHTS)
        if config["peft_type"] != "LORA":
            raise ValueError(f"it is of the kind {config['peft_type']}; expected LORA")
        base = base or config["base_model_name_or_path"]
        if not isinstance(base, str):
            raise ValueError("it names no base model; give --base")
    except Exception as err:
        raise ValueError(
            f"{folder}: not an adapter of peft's that can be read: {one_line(err)}"
        ) from err
    return config, stored, base


def check_layers_exist(folder: Path, base: str, layers: list[str], model: DepthModel) -> None:
    """Raise ValueError if there are no layers, or if the model lacks one of them."""
    if not layers:
        raise ValueError(f"{folder}: it holds no LoRA weights")
    known = dict(model.net.named_modules())
    missing = [name for name in layers if name not in known]
    if missing:
        raise ValueError(
            f"{folder}: it changes {missing[0]} and {len(missing) - 1} more layers that {base} has"
            " not"
        )


def lora_config(config: dict[str, Any], layers: dict[str, str]) -> LoraConfig:
    """Return an adapter's configuration for exactly these layers, {stored name: model's name}.

    Ranks and alphas that its patterns give are resolved per layer by the stored names.
    """
    known = inspect.signature(LoraConfig).parameters
    values = {name: value for name, value in config.items() if name in known}
    for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        by_pattern: dict[str, Any] = values.get(pattern) or {}
        values[pattern] = {
            f"^{re.escape(layer)}": by_pattern.get(
                get_pattern_key(list(by_pattern), stored_name), values.get(default)
            )
            for stored_name, layer in layers.items()
        }
    return LoraConfig(
        **{
            **values,
            "target_modules": list(layers.values()),
            "inference_mode": True,
            "layers_to_transform": None,
            "layers_pattern": None,
        }
    )


def check_weights_loaded(
    folder: Path, base: str, loaded: dict[str, Tensor], stored: dict[str, Tensor]
) -> None:
    """Raise ValueError if the model's adapter differs from the stored one: peft only warns."""
    wrong = sorted(
        name
        for name in loaded.keys() | stored.keys()
        if name not in loaded or name not in stored or not loaded[name].equal(stored[name])
    )
    if wrong:
        raise ValueError(
            f"{folder}: the adapter did not enter {base}: {len(wrong)} of {len(stored)} tensors are"
            f" missing or differ, e.g. {wrong[0]}"
        )
