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

import copy
import http.client
import json
import logging
import os
import re
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Backbone,
    Dinov2Config,
)

from depthdist.core.environment import pick_device
from depthdist.core.settings import expand_user
from depthdist.models.depth_model import DepthModel, Float32Conv2d, Normalization, to_buffers
from depthdist.models.fast_decoder import speed_up_decoder
from depthdist.models.lora import translate_layer_name

DEFAULT_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
BUILT_IN = Path(__file__).with_name(
    "foundation"
)  # what `--model built-in` is; tools/foundation.py made it
PATCH = 14  # pixels: both sides of what the network sees are multiples of it
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what DA-V2 and DINOv2 were trained with
# hidden size of DINOv2 -> layers read, neck and fusion channels of DA-V2's own decoders (Yang et
# al. 2024, its config files)
DECODERS = {
    384: ([3, 6, 9, 12], [48, 96, 192, 384], 64),
    768: ([3, 6, 9, 12], [96, 192, 384, 768], 128),
    1024: ([5, 12, 18, 24], [256, 512, 1024, 1024], 256),
    1536: ([10, 20, 30, 40], [1536, 1536, 1536, 1536], 384),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSettings:
    """Model"""

    model: str = DEFAULT_MODEL
    """Base model: a hub id, a local folder in Hugging Face format (a DA-V2, or a DINOv2
    backbone), `built-in` (small, pretrained on renderings), or `tiny` (random, for tests)."""
    target: Literal["inverse", "linear"] = "inverse"
    "What is learned: normalised 1/depth, as the recipe has it, or normalised depth itself."
    upsampling: Literal["bicubic", "bilinear"] = "bicubic"
    "How the network's output is brought to the truth's size."

    def problems(self) -> list[str]:
        try:
            model_kind(self.model)
        except ValueError as err:
            return [str(err)]
        return []


def load_base(name: str) -> DepthModel:
    """The frozen base model that `--model` names.

    ValueError says what was wrong and the ways out.
    """
    kind, path = model_kind(name), expand_user(name)
    if kind == "tiny":
        net, is_fresh, normalisation = _tiny(), True, IMAGENET
    elif kind == "built-in":
        net, is_fresh, normalisation = *_from_folder(BUILT_IN), _normalisation(BUILT_IN)
    elif kind == "folder":
        net, is_fresh, normalisation = *_from_folder(path), _normalisation(path)
        name = str(path.resolve())  # an adapter must find it from anywhere
    else:
        net, is_fresh, normalisation = (
            _pretrained(name, DepthAnythingForDepthEstimation),
            False,
            IMAGENET,
        )
    net.requires_grad_(False)
    speed_up_decoder(net)
    for conv in (net.head.conv2, net.head.conv3):  # the head's last
        conv.__class__ = Float32Conv2d
        to_buffers(conv)
    return DepthModel(net, name, is_fresh, normalisation)


def model_kind(name: str) -> Literal["tiny", "built-in", "folder", "hub"]:
    """What `--model` names, judged without loading it. ValueError where it is nothing of these."""
    path = expand_user(name)
    if name in ("tiny", "built-in"):
        return name
    if name.strip() and path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"--model {name}: expected a folder in Hugging Face format, with config.json"
            )
        return "folder"
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not path.exists():
        return "hub"
    raise ValueError(
        f"--model {name}: no such folder, and not a hub id (owner/name), `built-in` or `tiny`"
    )


def _pretrained(name: str | Path, cls: type, **options) -> nn.Module:
    """`cls.from_pretrained(name)` in float32, with nothing missing, and one clear line when that
    fails.
    """
    options["local_files_only"] = Path(name).is_dir() or not hub_answers()
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


def hub_answers() -> bool:
    """Whether the hub can be reached now.

    Asked once: the library itself would retry for a minute before it says no.
    """
    try:
        urllib.request.urlopen(
            urllib.request.Request(
                os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD"
            ),
            timeout=5,
        )
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException) as err:
        logger.info("hub not reached (%s): only its cache is used", err)
        return False
    return True


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
        patch_size=PATCH,
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
        patch_size=PATCH,
        hidden_size=96,
        num_attention_heads=3,
        num_hidden_layers=6,
        out_indices=[2, 3, 5, 6],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    return new_depth_anything(backbone, [24, 48, 96, 96], 32, 16)


def training_memory(
    model: DepthModel, size: tuple[int, int], micro_batch: int, precision: str
) -> dict[str, int]:
    """Bytes that training needs, by what needs them: counted on a copy without storage, nothing is
    computed.

    activations  what one micro-batch keeps for the way back (a fused attention kernel keeps no
                 attention matrix)
    """
    ghost = copy.deepcopy(model).to("meta").train()
    weights = {t.untyped_storage()._cdata for t in [*ghost.parameters(), *ghost.buffers()]}
    kept: dict[
        int, Tensor
    ] = {}  # by storage, as views share one; held, so that no id is used twice

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ghost(
            torch.empty(micro_batch, *size, 3, dtype=torch.uint8, device="meta"),
            torch.empty(micro_batch, dtype=torch.int64, device="meta"),
        )
    half = precision in ("fp16", "bf16")
    trained, total = model.parameter_counts()
    tokens = (size[0] // PATCH) * (size[1] // PATCH) + 1
    activations = sum(
        t.untyped_storage().nbytes()
        for t in kept.values()
        if not (t.dim() >= 3 and t.shape[-1] == t.shape[-2] == tokens)
    )
    return {
        "weights": total * (2 if half else 4),
        "gradients, masters and optimizer": trained * (2 + 12 if half else 12),
        "activations": activations // (2 if half else 1),
    }


def default_reachable_model() -> str:
    """DEFAULT_MODEL where the hub or its cache has it, else `built-in`."""
    cached = isinstance(try_to_load_from_cache(DEFAULT_MODEL, "model.safetensors"), str)
    return DEFAULT_MODEL if cached or hub_answers() else "built-in"


if __name__ == "__main__":  # for launch/quickstart.sh: what this machine can do
    print(pick_device(), default_reachable_model())
