"""The adapter on disk: plain peft files, from fp32 weights, that load under either naming of the
attention layers.

    best/adapter_model.safetensors    LoRA (and the decoder where it was trained), every key in both
                                      of transformers' spellings
    best/adapter_config.json          peft's own; target_modules is one regex that fits both
    best/depthdist.json               what depth in mm needs besides: base model, bounds, picture
                                      size and normalization, and where it came from

Of a network that trained as a whole (--lora none) all of it is kept instead, as the hub's models
are: config.json, model.safetensors, preprocessor_config.json. Such a folder is a base model like
any other: `--model RUN/best`.

`PeftModel.from_pretrained(base, "best")` alone loads it. `load_adapter("best")` also proves that it
really went in.

    save_adapter(model, engine.masters(), AdapterRecord.of(model, bounds, size, step=18, epoch=3,
    eval_loss=0.11), run / "best") model, record = load_adapter(run / "best") print(loaded(model,
    record))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from depthdist.core.files import replace_folder
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.adapter_record import ADAPTER_FILE, WEIGHTS, AdapterRecord, read_record
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel, Normalization
from depthdist.models.lora import finalize_lora_precision, translate_layer_name

adapter_state_dict = partial(
    get_peft_model_state_dict, save_embedding_layers=False
)  # what an adapter holds; "auto" would ask the hub each time


def save_adapter(
    model: DepthModel, weights: Mapping[str, Tensor], record: AdapterRecord, folder: Path
) -> None:
    """Write the adapter so that it is in `folder` whole or not at all.

    weights  fp32 masters of what trains, by `model.named_parameters()` name
    """
    if not isinstance(model.net, PeftModel):
        return save_full_model(model, weights, record, folder)
    frozen = {
        name: tensor for name, tensor in model.net.state_dict().items() if "modules_to_save" in name
    }
    state = adapter_state_dict(
        model.net,
        state_dict={**frozen, **{name.removeprefix("net."): t for name, t in weights.items()}},
    )
    both = {
        translate_layer_name(name, new): t.detach().float().cpu().contiguous().clone()
        for new in (True, False)
        for name, t in state.items()
    }
    with replace_folder(folder) as fresh:
        try:
            model.net.peft_config["default"].save_pretrained(fresh)
            save_file(both, fresh / WEIGHTS, metadata={"format": "pt"})
            (fresh / ADAPTER_FILE).write_text(json.dumps(asdict(record), indent=1) + "\n")
        except (OSError, SafetensorError) as err:
            raise ValueError(
                f"{folder}: the adapter cannot be written (is the disk full?): {err}"
            ) from err


def save_full_model(
    model: DepthModel,
    weights: Mapping[str, Tensor],
    record: AdapterRecord | None,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a whole DA-V2 in Hugging Face format, named as the hub's are, so that it is in `folder`
    whole or not at all.
    """
    state = {
        **model.net.state_dict(),
        **{name.removeprefix("net."): tensor for name, tensor in weights.items()},
    }
    state = {
        translate_layer_name(name, new=False): tensor.detach().to("cpu", dtype).contiguous().clone()
        for name, tensor in state.items()
    }
    config = model.net.config.to_dict() | {"architectures": ["DepthAnythingForDepthEstimation"]}
    for part in (config, config["backbone_config"]):
        for name in ("dtype", "torch_dtype", "transformers_version", "_name_or_path"):
            part.pop(name, None)
    height, width = record.size if record else (518, 518)
    with replace_folder(folder) as fresh:
        try:
            save_file(state, fresh / "model.safetensors", metadata={"format": "pt"})
            (fresh / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            (fresh / "preprocessor_config.json").write_text(
                json.dumps(processor_config(model.normalization, height, width), indent=1) + "\n"
            )
            if record:
                (fresh / ADAPTER_FILE).write_text(json.dumps(asdict(record), indent=1) + "\n")
        except (OSError, SafetensorError) as err:
            raise ValueError(
                f"{folder}: the model cannot be written (is the disk full?): {err}"
            ) from err


def processor_config(normalization: Normalization, height: int, width: int) -> dict[str, object]:
    """The settings of transformers' DPT processor that sizes pictures as ours are: bicubic, to
    exactly (height, width).
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
    """The base model with the adapter of `folder` in it, in evaluation mode, on the CPU, in
    float32.

    base    where the base model is now; by default where it was in training
    raises ValueError when something is missing, or when the adapter did not really enter the model:
    peft only warns then
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
    except (
        Exception
    ) as err:  # safetensors, peft and json each have their own; all of them mean this
        raise ValueError(
            f"{folder}: the adapter cannot be loaded: {' '.join(str(err).split())[:300]}"
        ) from err
    inside = adapter_state_dict(model.net)
    mine = any(
        "q_proj" in n for n, _ in model.net.named_parameters()
    )  # which spelling this transformers has
    wanted = inside.keys() | {translate_layer_name(n, new=mine) for n in stored}
    lost = sorted(
        n
        for n in wanted
        if n not in inside or n not in stored or not torch.equal(inside[n], stored[n])
    )
    if lost or not any("lora_" in n for n in inside):
        raise ValueError(
            f"{folder}: the adapter did not enter {record.model}: {len(lost)} of {len(wanted)}"
            f" tensors are missing or differ, e.g. {lost[:1]}"
        )
    model.set_normalization((record.mean, record.std))
    model.upsampling = record.upsampling
    return finalize_lora_precision(model).eval().requires_grad_(False), record


def describe_model(model: DepthModel, record: AdapterRecord) -> str:
    """One line on what `load_adapter` put into the model."""
    if not isinstance(model.net, PeftModel):
        return (
            f"whole network of epoch {record.epoch}, step {record.step}, begun from {record.model};"
            f" {record.near_mm:.1f} .. {record.far_mm:.1f} mm"
        )
    tensors = adapter_state_dict(model.net).values()
    size = f"{len(tensors)} tensors, {sum(t.numel() for t in tensors):,} parameters"
    return (
        f"adapter of epoch {record.epoch}, step {record.step}, {size}, into {record.model};"
        f" {record.near_mm:.1f} .. {record.far_mm:.1f} mm"
    )
