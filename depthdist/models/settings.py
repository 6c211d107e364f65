"""The settings of the model, of LoRA and of refinement."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from depthdist.core.settings import expand_user

DEFAULT_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
Refinement = Literal["plain", "guided", "tiles", "detail"]
REFINEMENTS: tuple[Refinement, ...] = get_args(Refinement)  # refiner.py has what each does


@dataclass(frozen=True)
class ModelSettings:
    """Model."""

    model: str = DEFAULT_MODEL
    """Base model: a hub id, a local folder in Hugging Face format (a DA-V2, or a DINOv2
    backbone), `built-in` (small, pretrained on renderings), or `tiny` (random, for tests)."""
    target: Literal["inverse", "linear"] = "inverse"
    """What the network learns. inverse: normalized 1/depth, as in the published recipe. linear:
    normalized depth."""
    upsampling: Literal["bicubic", "bilinear"] = "bicubic"
    """How the network's output is resampled to the ground truth's size."""

    def problems(self) -> list[str]:
        """List what is wrong with the values."""
        try:
            model_kind(self.model)
        except ValueError as err:
            return [str(err)]
        return []


def model_kind(name: str) -> Literal["tiny", "built-in", "folder", "hub"]:
    """Return what `--model` names without loading it; raise ValueError if it is none of these."""
    path = expand_user(name)
    if name == "tiny":
        return "tiny"
    if name == "built-in":
        return "built-in"
    if name.strip() and path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"--model {name}: expected a folder in Hugging Face format, with config.json"
            )
        return "folder"
    if HUB_ID.fullmatch(name) and not path.exists():
        return "hub"
    raise ValueError(
        f"--model {name}: no such folder, and not a hub id (owner/name), `built-in` or `tiny`"
    )


@dataclass(frozen=True)
class LoraSettings:
    """LoRA."""

    lora: Literal["qkv", "linear", "conv", "none"] = "qkv"
    """Layers that get LoRA. qkv: query, key and value of every attention. linear: also its
    output, and the MLP. conv: also the decoder's convolutions. none: no LoRA, the whole network
    is trained, as in pretraining."""
    lora_targets: str | None = None
    """Layers that get LoRA, instead of --lora: a regular expression that matches the full name of
    a layer, such as '.*\\.(q_proj|fc2)'."""
    lora_rank: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: int = 32
    """LoRA scale: its output is multiplied by alpha / rank."""
    lora_dropout: float = 0.05
    """Dropout probability of LoRA's inputs in training, 0..1."""
    dora: bool = False
    """Also learn the magnitude of each output's weights (DoRA, Liu et al. 2024)."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, for large ranks (Kalajdzievski 2023)."""
    decoder: Literal["frozen", "trained"] = "frozen"
    """trained: train the whole decoder, without LoRA on it. A decoder without pretrained weights
    is always trained."""

    @property
    def is_full_training(self) -> bool:
        """Whether the whole network is trained, without LoRA."""
        return self.lora == "none" and self.lora_targets is None

    def problems(self) -> list[str]:
        """List what is wrong with the values."""
        found = []
        if not 1 <= self.lora_rank <= 1024:
            found.append(f"--lora-rank is {self.lora_rank}: expected 1 .. 1024")
        if not 0 < self.lora_alpha < 1e6:
            found.append(f"--lora-alpha is {self.lora_alpha}: expected > 0 and < 1e6")
        if not 0 <= self.lora_dropout < 1:
            found.append(f"--lora-dropout is {self.lora_dropout}: expected 0 <= dropout < 1")
        try:
            re.compile(self.lora_targets or "")
        except re.error as err:
            found.append(
                f"--lora-targets is {self.lora_targets!r}: not a regular expression ({err})"
            )
        if self.is_full_training:
            defaults = LoraSettings()
            for name in ("lora_rank", "lora_alpha", "lora_dropout", "dora", "rslora"):
                if getattr(self, name) != getattr(defaults, name):
                    flag = name.replace("_", "-")
                    found.append(f"--{flag} is for LoRA, and --lora is none; leave one of them out")
        return found
