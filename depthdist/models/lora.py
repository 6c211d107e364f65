"""What trains: LoRA (Hu et al.

2022, through peft) on chosen layers of the frozen model, and the decoder where it is to.

    model = add_lora(load_base("tiny"), LoraSettings(lora="linear"), seed=0)
    # {"lora": [...], "decoder": [...]}: the parameters that an optimizer gets
    trained_groups(model)

Layers are chosen by the names that transformers >= 5.18 has for them; the adapter names each in
both spellings, so that peft finds it under any version.
"""

from __future__ import annotations

import re

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn

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
IDLE = (  # never runs: the first fusion layer has no second input
    "fusion_stage.layers.0.residual_layer1"
)


def add_lora(base: DepthModel, settings: LoraSettings, seed: int) -> DepthModel:
    """`base` with a new adapter, or training as a whole, in place.

    ValueError where --lora-targets fits no layer.
    """
    if settings.lora == "none" and settings.lora_targets is None:
        return train_whole_network(base)
    torch.manual_seed(seed)
    decoder = base.fresh_decoder or settings.decoder == "trained"
    kept = (
        ["neck", "head"] if decoder else ["conv3"] if base.calibrated else []
    )  # saved as a whole, beside LoRA
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        bias="none",
        target_modules=lora_target_modules(base.net, settings, kept),
        modules_to_save=kept or None,
    )
    base.net = get_peft_model(base.net, config)
    use_sample_dropout(base.net, base.draws)
    return finalize_lora_precision(base)


def train_whole_network(base: DepthModel) -> DepthModel:
    """`base` with every weight training that has a part in its output, in place."""
    for name, module in base.net.named_modules():
        if isinstance(module, Float32Conv2d):
            to_parameters(module)
        elif name.endswith(IDLE):
            to_buffers(module)
        elif (
            token := module._parameters.pop("mask_token", None)
        ) is not None:  # idle too; a parameter would be cut up under ZeRO 3, and saved empty
            module.register_buffer("mask_token", token.data)
    base.net.requires_grad_(True)
    return base


def lora_target_modules(net: nn.Module, settings: LoraSettings, kept: list[str]) -> str:
    """The regular expression, for peft, of the layers that get LoRA, each in both spellings.

    Never of what is in `kept`.
    """
    layers = [
        name for name, m in net.named_modules() if type(m) in (nn.Linear, nn.Conv2d, Float32Conv2d)
    ]
    layers = [name for name in layers if IDLE not in name and not set(kept) & set(name.split("."))]
    pattern = re.compile(settings.lora_targets or PRESETS[settings.lora])
    found = [
        name
        for name in layers
        if any(pattern.fullmatch(translate_layer_name(name, new)) for new in (True, False))
    ]
    if not found:
        kinds = dict.fromkeys(re.sub(r"\.\d+", ".N", name) for name in layers)
        raise ValueError(
            f"--lora-targets {pattern.pattern!r} fits the name of no layer; there are (N a number):"
            f" {', '.join(kinds)}"
        )
    return "|".join(
        dict.fromkeys(
            re.escape(translate_layer_name(name, new)) for name in found for new in (True, False)
        )
    )


def finalize_lora_precision(model: DepthModel) -> DepthModel:
    """`model`, whose net is a PeftModel, with each part in the precision it needs, and frozen where
    it never runs; in place.
    """
    for name, module in model.net.named_modules():
        if isinstance(module, Float32Conv2d) and ".head.modules_to_save." in name:
            to_parameters(module)  # the base's are frozen, the copy trains
        elif name.endswith(IDLE) and "modules_to_save" in name:
            to_buffers(module)
        elif isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), Float32Conv2d):
            module.cast_input_dtype_enabled = (
                False  # peft would round the input to the precision of A
            )
            module.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    return model


def trained_groups(model: DepthModel) -> dict[str, list[nn.Parameter]]:
    """The parameters that train, by what they belong to: "lora", "decoder".

    A group that would be empty is left out.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault("lora" if "lora_" in name else "decoder", []).append(parameter)
    return groups


def translate_layer_name(name: str, new: bool) -> str:
    """A layer's or parameter's name as transformers >= 5.18 (new) or < 5.18 has it."""
    for after, before in SPELLINGS.items():
        old, wanted = (before, after) if new else (after, before)
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", wanted, name)
    return name
