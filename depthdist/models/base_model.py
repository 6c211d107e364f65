"""Depth Anything V2 by name: the base model that `--model` means, frozen, and what training it
takes.

A hub id, a folder in Hugging Face format (a whole DA-V2, or its DINOv2 backbone alone: then the
decoder starts fresh and is trained too), `built-in` (small, pretrained on renderings: its card is
foundation/README.md), or `tiny` (random, for tests). depth_model.py is what computes; lora.py chooses
what trains.

    model = load_base("built-in")
    pred = model(rgb)                     # (B, h, w, 3) uint8 -> (B, h, w) float32
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch
from torch import nn
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Backbone,
    Dinov2Config,
)

from depthdist.core.settings import expand_user
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.depth_model import DepthModel, Float32Conv2d, Normalization, to_buffers
from depthdist.models.fast_decoder import speed_up_decoder
from depthdist.models.hub import is_hub_reachable
from depthdist.models.lora import translate_layer_name
from depthdist.models.settings import model_kind

BUILT_IN = Path(__file__).with_name(
    "foundation"
)  # what `--model built-in` is; tools/foundation.py made it
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what DA-V2 and DINOv2 were trained with
# hidden size of DINOv2 -> layers read, neck and fusion channels of DA-V2's own decoders (Yang et
# al. 2024, its config files)
DECODERS = {
    384: ([3, 6, 9, 12], [48, 96, 192, 384], 64),
    768: ([3, 6, 9, 12], [96, 192, 384, 768], 128),
    1024: ([5, 12, 18, 24], [256, 512, 1024, 1024], 256),
    1536: ([10, 20, 30, 40], [1536, 1536, 1536, 1536], 384),
}


def load_base(name: str) -> DepthModel:
    """The frozen base model that `--model` names.

    ValueError says what was wrong and the ways out.
    """
    kind, path = model_kind(name), expand_user(name)
    if kind == "tiny":
        net, is_fresh, normalization = _tiny(), True, IMAGENET
    elif kind == "built-in":
        net, is_fresh, normalization = *_from_folder(BUILT_IN), _normalisation(BUILT_IN)
    elif kind == "folder":
        net, is_fresh, normalization = *_from_folder(path), _normalisation(path)
        name = str(path.resolve())  # an adapter must find it from anywhere
    else:
        net, is_fresh, normalization = (
            _pretrained(name, DepthAnythingForDepthEstimation),
            False,
            IMAGENET,
        )
    net.requires_grad_(False)
    speed_up_decoder(net)
    for conv in (net.head.conv2, net.head.conv3):  # the head's last
        conv.__class__ = Float32Conv2d
        to_buffers(conv)
    return DepthModel(net, name, is_fresh, normalization)


def _pretrained(name: str | Path, cls: type, **options) -> nn.Module:
    """`cls.from_pretrained(name)` in float32, with nothing missing, and one clear line when that
    fails.
    """
    options["local_files_only"] = Path(name).is_dir() or not is_hub_reachable()
    try:
        net, info = cls.from_pretrained(
            str(name), output_loading_info=True, dtype=torch.float32, **options
        )
    except Exception as err:
        # a broken folder or hub: transformers, safetensors and httpx each have errors of their own
        if Path(name).is_dir():
            raise ValueError(
                f"--model {name}: cannot be loaded: {' '.join(str(err).split())[:300]}"
            ) from err
        raise ValueError(
            f"--model {name}: the hub has no such model or cannot be reached"
            f" ({str(err).splitlines()[0][:160].rstrip()}). Ways out: `hf download {name}` on a"
            " machine that can and copy its cache (HF_HOME); --model FOLDER in Hugging Face"
            " format; --model built-in"
        ) from err
    lacking = [k for k in info["missing_keys"] if "mask_token" not in k]
    if lacking:
        raise ValueError(
            f"--model {name}: the weights lack {len(lacking)} tensors"
            f" ({', '.join(sorted(lacking)[:3])} ...) of a {cls.__name__}"
        )
    return net


def _from_folder(path: Path) -> tuple[nn.Module, bool]:
    """The model of a local folder, and whether its decoder is fresh."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as err:
        raise ValueError(
            f"--model {path}: expected a folder in Hugging Face format with config.json: {err}"
        ) from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "depth_anything":
        return _pretrained(path, DepthAnythingForDepthEstimation), False
    if kind != "dinov2":
        raise ValueError(
            f"--model {path}: config.json says model_type {kind!r}; expected depth_anything or"
            " dinov2"
        )
    hidden = config.get("hidden_size")
    if hidden not in DECODERS:
        raise ValueError(
            f"--model {path}: hidden_size is {hidden}; DA-V2 has decoders for"
            f" {', '.join(map(str, DECODERS))}"
        )
    layers, neck, fusion = DECODERS[hidden]
    backbone = _pretrained(
        path, Dinov2Backbone, out_indices=layers, reshape_hidden_states=False, apply_layernorm=True
    )
    net = new_depth_anything(backbone.config, neck, fusion)
    net.backbone.load_state_dict(backbone.state_dict())
    return net, True


def _normalisation(path: Path) -> Normalization:
    """Mean and standard deviation of the folder's own processor, ImageNet's where it has none."""
    file = path / "preprocessor_config.json"
    if not file.exists():
        return IMAGENET
    try:
        config = json.loads(file.read_text())
        if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise ValueError(f"rescale_factor is {config['rescale_factor']}; expected 1/255")
        mean, std = (
            tuple(map(float, config.get(name) or default))
            for name, default in zip(("image_mean", "image_std"), IMAGENET)
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"image_mean is {mean}, image_std is {std}; expected three numbers each"
            )
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise ValueError(f"{file}: not a picture processor's settings: {err}") from None
    return mean, std


def new_depth_anything(
    backbone: Dinov2Config, neck: list[int], fusion: int, head: int = 32
) -> nn.Module:
    """A DA-V2 with random weights, always the same ones.

    The caller fills the backbone where it has weights.
    """
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=backbone.hidden_size,
        patch_size=PATCH_SIZE,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
        head_in_index=-1,
        head_hidden_size=head,
        # ends in a sigmoid, 0..1 as the targets are: "relative" ends in a ReLU,
        depth_estimation_type="metric",
        # and a decoder that learns from nothing soon gives 0 everywhere there, and no gradient
        max_depth=1,
    )
    net = DepthAnythingForDepthEstimation(config).float()
    for (
        name,
        parameter,
    ) in net.named_parameters():  # transformers' own start differs from version to version
        seed = zlib.crc32(translate_layer_name(name, new=True).encode())
        if parameter.dim() > 1:
            std = parameter[0].numel() ** -0.5  # Glorot & Bengio 2010: the signal keeps its size
            if not name.startswith("backbone"):
                # at full size a fresh decoder learns faster, then dies at a larger learning rate
                std *= 0.7
            if "position" in name or "token" in name or "conv3" in name:
                std = 0.02
            with torch.no_grad():
                parameter.normal_(std=std, generator=torch.Generator().manual_seed(seed))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    nn.init.constant_(net.head.conv3.bias, -1.7)  # sigmoid(-1.7) = 0.15, amid the targets
    return net


def _tiny() -> nn.Module:
    backbone = Dinov2Config(
        image_size=224,
        patch_size=PATCH_SIZE,
        hidden_size=96,
        num_attention_heads=3,
        num_hidden_layers=6,
        out_indices=[2, 3, 5, 6],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    return new_depth_anything(backbone, [24, 48, 96, 96], 32, 16)
