"""The base model that `--model` names: Depth Anything V2, frozen.

A hub id, a folder in Hugging Face format (a whole DA-V2, or its DINOv2 backbone alone: then the
decoder starts with random weights and is trained too), `built-in` (small, pretrained on renderings:
its card is foundation/README.md), or `tiny` (random, for tests). depth_model.py has what computes,
lora.py what trains.

    model = load_base("built-in")
    pred = model(rgb)              # (B, h, w, 3) uint8 -> (B, h, w) float32
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Backbone,
    Dinov2Config,
)

from depthdist.core.errors import one_line
from depthdist.core.files import parse_json
from depthdist.core.settings import expand_user
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.depth_model import (
    DepthModel,
    Float32Conv2d,
    Normalization,
    to_buffers,
    use_full_float32,
)
from depthdist.models.fast_decoder import speed_up_decoder
from depthdist.models.hub import is_hub_reachable
from depthdist.models.lora import translate_layer_name
from depthdist.models.settings import model_kind

BUILT_IN = Path(__file__).with_name(
    "foundation"
)  # `--model built-in`, from tools/pretrain_builtin.py
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
    """Load the frozen base model that `--model` names, on the CPU.

    From here on the process computes float32 convolutions in full float32 on a GPU too. Raises
    ValueError with what was wrong and what to do instead.
    """
    use_full_float32()
    kind = model_kind(name)
    fresh_decoder = False
    normalization = IMAGENET
    if kind == "tiny":
        net = _tiny()
        fresh_decoder = True
    elif kind == "hub":
        net = _from_pretrained(name, DepthAnythingForDepthEstimation)
    else:
        folder = BUILT_IN if kind == "built-in" else expand_user(name)
        net, fresh_decoder = _from_folder(folder)
        normalization = _read_normalization(folder)
        if kind == "folder":
            name = str(folder.resolve())  # an adapter must find it from any working folder
    net.requires_grad_(False)
    speed_up_decoder(net)
    head: Any = net.head
    head.conv2 = _frozen_in_float32(head.conv2)
    head.conv3 = _frozen_in_float32(head.conv3)
    return DepthModel(net, name, fresh_decoder, normalization)


def _frozen_in_float32(conv: nn.Conv2d) -> Float32Conv2d:
    """Return the convolution with its weights as buffers, which stay float32 in any precision."""
    conv = Float32Conv2d.from_conv(conv)
    to_buffers(conv)
    return conv


def _from_pretrained(name: str | Path, cls: Any, **options: Any) -> Any:
    """Return `cls.from_pretrained(name)` in float32; raise ValueError if any tensor is missing."""
    options["local_files_only"] = Path(name).is_dir() or not is_hub_reachable()
    try:
        net, info = cls.from_pretrained(
            str(name), output_loading_info=True, dtype=torch.float32, **options
        )
    except Exception as err:  # transformers, safetensors and httpx have errors of their own
        if Path(name).is_dir():
            raise ValueError(f"--model {name}: cannot be loaded: {one_line(err)}") from err
        raise ValueError(
            f"--model {name}: the hub has no such model or cannot be reached"
            f" ({str(err).splitlines()[0][:160].rstrip()}). Ways out: `hf download {name}` on a"
            " machine that can and copy its cache (HF_HOME); --model FOLDER in Hugging Face"
            " format; --model built-in"
        ) from err
    missing = sorted(key for key in info["missing_keys"] if "mask_token" not in key)
    if missing:
        raise ValueError(
            f"--model {name}: the weights lack {len(missing)} tensors"
            f" ({', '.join(missing[:3])} ...) of a {cls.__name__}"
        )
    return net


def _from_folder(folder: Path) -> tuple[DepthAnythingForDepthEstimation, bool]:
    """Return the model of a local folder, and whether its decoder has random weights."""
    try:
        config = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError) as err:
        raise ValueError(
            f"--model {folder}: expected a folder in Hugging Face format with config.json: {err}"
        ) from None
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type == "depth_anything":
        return _from_pretrained(folder, DepthAnythingForDepthEstimation), False
    if model_type == "dinov2":
        return _from_backbone(folder, config.get("hidden_size")), True
    raise ValueError(
        f"--model {folder}: config.json says model_type {model_type!r}; expected depth_anything or"
        " dinov2"
    )


def _from_backbone(folder: Path, hidden_size: Any) -> DepthAnythingForDepthEstimation:
    """Return a DA-V2 with the DINOv2 backbone of a folder and a decoder with random weights."""
    if hidden_size not in DECODERS:
        raise ValueError(
            f"--model {folder}: hidden_size is {hidden_size}; DA-V2 has decoders for"
            f" {', '.join(map(str, DECODERS))}"
        )
    layers, neck, fusion = DECODERS[hidden_size]
    backbone = _from_pretrained(
        folder,
        Dinov2Backbone,
        out_indices=layers,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    net = new_depth_anything(backbone.config, neck, fusion)
    net.backbone.load_state_dict(backbone.state_dict())
    return net


def _read_normalization(folder: Path) -> Normalization:
    """Return mean and standard deviation of the folder's image processor, by default ImageNet's."""
    file = folder / "preprocessor_config.json"
    if not file.exists():
        return IMAGENET
    try:
        config = parse_json(file.read_bytes())
        if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise ValueError(f"rescale_factor is {config['rescale_factor']}; expected 1/255")
        mean = tuple(map(float, config.get("image_mean") or IMAGENET[0]))
        std = tuple(map(float, config.get("image_std") or IMAGENET[1]))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                f"image_mean is {mean}, image_std is {std}; expected three numbers each"
            )
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise ValueError(f"{file}: not the settings of an image processor: {err}") from None
    return mean, std


def new_depth_anything(
    backbone: Dinov2Config, neck: list[int], fusion: int, head: int = 32
) -> DepthAnythingForDepthEstimation:
    """Return a DA-V2 with random weights, the same on every call.

    neck, fusion, head  numbers of channels
    """
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=backbone.hidden_size,
        patch_size=PATCH_SIZE,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
        head_in_index=-1,
        head_hidden_size=head,
        # Ends in a sigmoid, 0..1 like the targets. "relative" ends in a ReLU: an untrained decoder
        # soon gives 0 everywhere there, and no gradient.
        depth_estimation_type="metric",
        max_depth=1,
    )
    net = DepthAnythingForDepthEstimation(config).float()
    for name, parameter in net.named_parameters():
        # transformers' own initialization differs from version to version
        if parameter.dim() > 1:
            seed = zlib.crc32(translate_layer_name(name, new=True).encode())
            with torch.no_grad():
                parameter.normal_(
                    std=_initial_std(name, parameter),
                    generator=torch.Generator().manual_seed(seed),
                )
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    nn.init.constant_(net.head.conv3.bias, -1.7)  # sigmoid(-1.7) = 0.15, a usual target
    return net


def _initial_std(name: str, parameter: Tensor) -> float:
    """Return the standard deviation of a parameter's random weights."""
    if "position" in name or "token" in name or "conv3" in name:
        return 0.02
    std = parameter[0].numel() ** -0.5  # Glorot & Bengio 2010: the signal keeps its size
    if name.startswith("backbone"):
        return std
    return std * 0.7  # at full size a decoder learns faster, then dies at a larger learning rate


def _tiny() -> DepthAnythingForDepthEstimation:
    """Return a small DA-V2 with random weights."""
    backbone = Dinov2Config(
        image_size=224,
        patch_size=PATCH_SIZE,
        hidden_size=96,
        num_attention_heads=3,
        num_hidden_layers=6,
        out_indices=[2, 3, 5, 6],  # type: ignore[call-arg] # a property's setter takes it
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    return new_depth_anything(backbone, [24, 48, 96, 96], 32, 16)
