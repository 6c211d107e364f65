"""Adapters on disk: plain peft files with float32 weights.

    best/adapter_model.safetensors  LoRA (and the decoder where it was trained), each tensor under
                                    both names that versions of transformers have for its layer
    best/adapter_config.json        peft's own; target_modules is one regex that matches both
    best/depthdist.json             the AdapterRecord: what depth in mm needs besides

    save_adapter(model, engine.masters(), AdapterRecord.of(model, ...), run / "best")
    model, record = load_adapter(run / "best")
    print(describe_model(model, record))

`PeftModel.from_pretrained(base, "best")` alone loads it; `load_adapter` also proves that every
tensor arrived in the model.

Of a network that was trained as a whole (--lora none) all weights are kept instead, in the format
of the hub's models: config.json, model.safetensors, preprocessor_config.json. Such a folder is a
base model like any other: `--model RUN/best`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from depthdist.core.errors import CannotWrite, one_line
from depthdist.core.files import replace_folder
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.adapter_record import ADAPTER_FILE, WEIGHTS, AdapterRecord, read_record
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel, Normalization
from depthdist.models.lora import finalize_lora_precision, translate_layer_name

# the tensors of an adapter; "auto" would ask the hub on each call
adapter_state_dict = partial(get_peft_model_state_dict, save_embedding_layers=False)


def save_adapter(
    model: DepthModel, weights: Mapping[str, Tensor], record: AdapterRecord, folder: Path
) -> None:
    """Write the adapter, so that `folder` is always complete: either the old one or the new one.

    weights  fp32 masters of what trains, by `model.named_parameters()` name
    """
    if not isinstance(model.net, PeftModel):
        return save_full_model(model, weights, record, folder)
    frozen = {
        name: tensor for name, tensor in model.net.state_dict().items() if "modules_to_save" in name
    }
    state = adapter_state_dict(model.net, state_dict={**frozen, **_without_prefix(weights)})
    tensors = {}
    for new in (True, False):
        for name, tensor in state.items():
            tensors[translate_layer_name(name, new)] = _detached_copy(tensor, torch.float32)
    with _replace_folder(folder, "adapter") as fresh:
        model.net.peft_config["default"].save_pretrained(str(fresh))
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        _write_json(fresh / ADAPTER_FILE, asdict(record))


def save_full_model(
    model: DepthModel,
    weights: Mapping[str, Tensor],
    record: AdapterRecord | None,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a whole DA-V2 in Hugging Face format, with the tensor names of the hub's models.

    As with `save_adapter`, `folder` is always complete.
    """
    state = {**model.net.state_dict(), **_without_prefix(weights)}
    tensors = {
        translate_layer_name(name, new=False): _detached_copy(tensor, dtype)
        for name, tensor in state.items()
    }
    config = model.net.config.to_dict() | {"architectures": ["DepthAnythingForDepthEstimation"]}
    for part in (config, config["backbone_config"]):
        for name in ("dtype", "torch_dtype", "transformers_version", "_name_or_path"):
            part.pop(name, None)
    height, width = record.size if record else (518, 518)
    with _replace_folder(folder, "model") as fresh:
        save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
        _write_json(fresh / "config.json", config)
        processor = processor_config(model.normalization, height, width)
        _write_json(fresh / "preprocessor_config.json", processor)
        if record:
            _write_json(fresh / ADAPTER_FILE, asdict(record))


def _without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights by their names in `DepthModel.net`."""
    return {name.removeprefix("net."): tensor for name, tensor in weights.items()}


def _detached_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous copy on the CPU that shares no storage, as safetensors needs it."""
    return tensor.detach().to("cpu", dtype).contiguous().clone()


@contextmanager
def _replace_folder(folder: Path, content: str) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder`; raise CannotWrite if it cannot be written."""
    with replace_folder(folder) as fresh:
        try:
            yield fresh
        except (OSError, SafetensorError) as err:
            raise CannotWrite(
                f"{folder}: the {content} cannot be written (is the disk full?): {one_line(err)}"
            ) from err


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def processor_config(normalization: Normalization, height: int, width: int) -> dict[str, object]:
    """Return the settings of transformers' DPT processor that resizes images as we do.

    That is bicubic, to exactly (height, width).
    """
    mean, std = normalization
    return {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "keep_aspect_ratio": False,
        "ensure_multiple_of": PATCH_SIZE,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_pad": False,
    }


def load_adapter(folder: Path, base: str | None = None) -> tuple[DepthModel, AdapterRecord]:
    """Load the base model with an adapter in it, in evaluation mode, on the CPU, in float32.

    base    where the base model is now; by default where it was in training

    Raises ValueError if something is missing, or if a tensor did not arrive in the model: peft only
    warns about that.
    """
    record = read_record(folder)
    if (folder / "model.safetensors").exists():
        model = load_base(str(folder))
        model.upsampling = record.upsampling
        return model.eval(), record
    model = load_base(base or record.model)
    try:
        model.net = PeftModel.from_pretrained(model.net, str(folder))
        stored = load_file(folder / WEIGHTS)
    except Exception as err:  # safetensors, peft and json have errors of their own
        raise ValueError(f"{folder}: the adapter cannot be loaded: {one_line(err)}") from err
    _check_loaded(model, stored, record, folder)
    model.set_normalization((record.mean, record.std))
    model.upsampling = record.upsampling
    return finalize_lora_precision(model).eval().requires_grad_(False), record


def _check_loaded(
    model: DepthModel, stored: dict[str, Tensor], record: AdapterRecord, folder: Path
) -> None:
    """Raise ValueError unless the stored tensors are the adapter's tensors in the model."""
    loaded = adapter_state_dict(model.net)
    is_new = any("q_proj" in name for name, _ in model.net.named_parameters())
    expected = loaded.keys() | {translate_layer_name(name, new=is_new) for name in stored}
    wrong = sorted(
        name
        for name in expected
        if name not in loaded or name not in stored or not torch.equal(loaded[name], stored[name])
    )
    if wrong or not any("lora_" in name for name in loaded):
        raise ValueError(
            f"{folder}: the adapter did not enter {record.model}: {len(wrong)} of {len(expected)}"
            f" tensors are missing or differ, e.g. {wrong[:1]}"
        )


def describe_model(model: DepthModel, record: AdapterRecord) -> str:
    """Return one line on what `load_adapter` loaded."""
    saved_at = f"epoch {record.epoch}, step {record.step}"
    depth_range = f"{record.near_mm:.1f} .. {record.far_mm:.1f} mm"
    if not isinstance(model.net, PeftModel):
        return f"whole network of {saved_at}, begun from {record.model}; {depth_range}"
    tensors = adapter_state_dict(model.net).values()
    size = f"{len(tensors)} tensors, {sum(t.numel() for t in tensors):,} parameters"
    return f"adapter of {saved_at}, {size}, into {record.model}; {depth_range}"
