"""Small models for tests: a DA-V2 in a folder, trained in every configuration.

folder = save_dav2(tmp_path / "da-v2")
model = trained(folder, "conv + dora")
"""

import json
from pathlib import Path

import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from depthdist.models.base_model import DECODERS, load_base
from depthdist.models.lora import add_lora
from depthdist.models.sample_dropout import draw_keys
from depthdist.models.settings import LoraSettings

# what may train, by what a test calls it; "calibrated" begins with a rescaled output
WAYS = {
    "qkv": {},
    "linear": {"lora": "linear"},
    "conv": {"lora": "conv"},
    "dora": {"dora": True},
    "conv + dora": {"lora": "conv", "dora": True},
    "rslora": {"rslora": True, "lora_rank": 8},
    "targets": {"lora_targets": r".*\.(fc2|attention\.query|conv2)"},
    "decoder": {"decoder": "trained"},
    "calibrated": {"calibrated": True},
    "calibrated + conv": {"lora": "conv", "calibrated": True},
    "calibrated + decoder": {"decoder": "trained", "calibrated": True},
}
PROCESSOR = {
    "image_processor_type": "DPTImageProcessor",
    "do_resize": True,
    "size": {"height": 518, "width": 518},
    "keep_aspect_ratio": True,
    "ensure_multiple_of": 14,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4, 0.45, 0.5],
    "image_std": [0.2, 0.25, 0.3],
    "do_pad": False,
}


def images(batch: int = 2, size: tuple[int, int] = (28, 42), seed: int = 0) -> torch.Tensor:
    """(batch, h, w, 3) uint8 of noise."""
    return torch.randint(
        0, 256, (batch, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def lively(model):
    """The model with weights that let the image through: an untrained decoder gives nearly the
    same everywhere."""
    with torch.no_grad():
        for tensor in (t for t in [*model.parameters(), *model.net.buffers()] if t.dim() > 1):
            tensor.normal_(
                std=tensor[0].numel() ** -0.5,
                generator=torch.Generator().manual_seed(tensor.numel()),
            )
    return model


def save_dav2(folder: Path, ends_in: str = "relu") -> Path:
    """A whole DA-V2 in Hugging Face format of the size of `tiny`, with a mean and standard
    deviation of its own."""
    net = lively(load_base("tiny")).net
    if ends_in == "relu":
        net.config.depth_estimation_type = "relative"
        net.head.conv3.bias.fill_(1.0)
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def dav2_small():
    """A DA-V2-Small with random weights."""
    hidden = 384
    layers, neck, fusion = DECODERS[hidden]
    backbone = Dinov2Config(
        image_size=518,
        patch_size=14,
        hidden_size=hidden,
        num_attention_heads=6,
        num_hidden_layers=12,
        out_indices=layers,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=hidden,
        patch_size=14,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
        head_in_index=-1,
        head_hidden_size=32,
    )
    with torch.device("meta"):  # its own start takes five seconds
        net = DepthAnythingForDepthEstimation(config)
    net.to_empty(device="cpu")
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return net


def stirred(model, seed: int = 0):
    """The model with LoRA that does something: B starts at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    return model


def with_way(name, way: str = "qkv", **settings):
    """A model in which that trains, as it is before the first step."""
    chosen = {"lora_rank": 4, **WAYS[way], **settings}
    base = load_base(str(name))
    if chosen.pop("calibrated", False):
        base.rescale(0.5, 0.2)
    return add_lora(base, LoraSettings(**chosen), seed=0)


def trained(name, way: str = "qkv"):
    """A model whose trained weights all differ from their start."""
    model = with_way(name, way)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in masters(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def masters(model) -> dict[str, torch.nn.Parameter]:
    """What trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def output(model) -> torch.Tensor:
    return model(images())


def bytes_kept_for_backward(model, size, batch):
    """Bytes that autograd really holds after a forward pass: each storage once, parameters not."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(images(batch, size), draw_keys(0, 0, range(batch)))
    return sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in own)
