"""What trains: LoRA on chosen layers of the frozen model, and the decoder where it is wanted.

LoRA is Hu et al. 2022, through peft.

    model = add_lora(load_base("tiny"), LoraSettings(lora="linear"), seed=0)
    trained_groups(model)  # {"lora": [...], "decoder": [...]}: the optimizer's parameters

Layers are chosen by the names that transformers >= 5.18 has for them; the adapter names each in
both spellings, so that peft finds it under any version.
"""

from __future__ import annotations

import re

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from depthdist.models.depth_model import DepthModel, Float32Conv2d, to_buffers, to_parameters
from depthdist.models.sample_dropout import use_sample_dropout
from depthdist.models.settings import LoraSettings

# transformers >= 5.18 has the name on the left, those before it the one on the right
SPELLINGS = {
    f"attention.{letter}_proj": f"attention.attention.{word}"
    for letter, word in zip("qkv", ("query", "key", "value"))
}
SPELLINGS |= {"attention.o_proj": "attention.output.dense", "mlp.down_proj": "mlp.weights_out"}
PRESETS = {
    "qkv": r".*\.attention\.[qkv]_proj",
    "linear": r".*\.(attention\.[qkvo]_proj|mlp\.(fc1|fc2|down_proj))",
}
PRESETS["conv"] = PRESETS["linear"] + r"|(neck|head)\..*"
# never runs: the first fusion layer has no second input
IDLE = "fusion_stage.layers.0.residual_layer1"


def add_lora(base: DepthModel, settings: LoraSettings, seed: int) -> DepthModel:
    """Add a new adapter to `base`, or let all of it train, in place; return it.

    Raises ValueError if --lora-targets matches no layer.
    """
    if settings.is_full_training:
        return train_whole_network(base)
    torch.manual_seed(seed)
    saved_whole = _modules_saved_whole(base, settings)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        bias="none",
        target_modules=lora_target_modules(base.net, settings, saved_whole),
        modules_to_save=saved_whole or None,
    )
    base.net = get_peft_model(base.net, config)
    use_sample_dropout(base.net, base.dropout_keys)
    return finalize_lora_precision(base)


def _modules_saved_whole(base: DepthModel, settings: LoraSettings) -> list[str]:
    """Return the modules that the adapter contains as a whole, beside LoRA."""
    if base.fresh_decoder or settings.decoder == "trained":
        return ["neck", "head"]
    return ["conv3"] if base.calibrated else []


def train_whole_network(base: DepthModel) -> DepthModel:
    """Let every weight train that contributes to the output, in place; return the model."""
    for name, module in base.net.named_modules():
        if isinstance(module, Float32Conv2d):
            to_parameters(module)
        elif name.endswith(IDLE):
            to_buffers(module)
        else:
            # unused too: as a parameter it would be partitioned under ZeRO 3, and saved empty
            mask_token = module._parameters.pop("mask_token", None)
            if mask_token is not None:
                module.register_buffer("mask_token", mask_token.data)
    base.net.requires_grad_(True)
    return base


def lora_target_modules(net: nn.Module, settings: LoraSettings, saved_whole: list[str]) -> str:
    """Return peft's regular expression of the layers that get LoRA, each in both spellings.

    Layers inside the modules `saved_whole` never get it.
    """
    layers = [
        name
        for name, module in net.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d, Float32Conv2d)
        and IDLE not in name
        and not set(saved_whole) & set(name.split("."))
    ]
    pattern = re.compile(settings.lora_targets or PRESETS[settings.lora])
    spellings: dict[str, None] = {}  # of the matching layers, without duplicates, in order
    for name in layers:
        both = [translate_layer_name(name, new) for new in (True, False)]
        if any(pattern.fullmatch(spelling) for spelling in both):
            spellings.update(dict.fromkeys(re.escape(spelling) for spelling in both))
    if not spellings:
        kinds = dict.fromkeys(re.sub(r"\.\d+", ".N", name) for name in layers)
        raise ValueError(
            f"--lora-targets {pattern.pattern!r} fits the name of no layer; there are (N a number):"
            f" {', '.join(kinds)}"
        )
    return "|".join(spellings)


def finalize_lora_precision(model: DepthModel) -> DepthModel:
    """Give each part of a model with LoRA the precision it needs, in place; return the model.

    What never runs is frozen. The model's net is a PeftModel.
    """
    for name, module in model.net.named_modules():
        if isinstance(module, Float32Conv2d) and ".head.modules_to_save." in name:
            to_parameters(module)  # the base's are frozen, the copy trains
        elif name.endswith(IDLE) and "modules_to_save" in name:
            to_buffers(module)
        elif isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), Float32Conv2d):
            module.cast_input_dtype_enabled = False  # peft would cast the input to A's precision
            hook = _input_in_float32
            module.register_forward_pre_hook(hook)  # type: ignore[attr-defined] # it is a Module
    return model


def _input_in_float32(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (args[0].float(),)


def trained_groups(model: DepthModel) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that train, in the groups "lora" and "decoder", none of them empty."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault("lora" if "lora_" in name else "decoder", []).append(parameter)
    return groups


def translate_layer_name(name: str, new: bool) -> str:
    """Return a layer's or parameter's name as in transformers >= 5.18 (new) or < 5.18."""
    for after, before in SPELLINGS.items():
        old, wanted = (before, after) if new else (after, before)
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", wanted, name)
    return name
