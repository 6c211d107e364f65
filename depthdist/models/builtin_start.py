"""What the built-in model was before its pretraining: a narrow DA-V2 with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Dinov2Config

from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.base_model import IMAGENET, new_depth_anything
from depthdist.models.depth_model import DepthModel

NUM_LAYERS = 12
NUM_HEADS = 2
HIDDEN_SIZE = 128
MLP_RATIO = 2
NECK_SIZES = [24, 48, 64, 64]
FUSION_SIZE = 24
HEAD_SIZE = 16


def initial_model(seed: int) -> DepthModel:
    """Return the network before pretraining: a narrow DA-V2 with random weights.

    It ends in a ReLU, as the published ones do.
    """
    every = NUM_LAYERS // 4
    backbone: dict[str, Any] = {
        "image_size": 224,
        "patch_size": PATCH_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "num_attention_heads": NUM_HEADS,
        "num_hidden_layers": NUM_LAYERS,
        "mlp_ratio": MLP_RATIO,
        "out_indices": [every, 2 * every, 3 * every, NUM_LAYERS],
        "reshape_hidden_states": False,
        "apply_layernorm": True,
    }
    net: Any = new_depth_anything(Dinov2Config(**backbone), NECK_SIZES, FUSION_SIZE, HEAD_SIZE)
    net.config.depth_estimation_type = "relative"
    generator = torch.Generator().manual_seed(seed)
    for name, weights in net.backbone.named_parameters():
        if name.endswith("lambda1"):  # the factor of each half of a layer
            nn.init.constant_(weights, 0.3)
        elif ".layer." in name and weights.dim() == 2:
            nn.init.trunc_normal_(weights, std=0.02, generator=generator)
    # with std 2.0 the layers before it die within 100 steps
    nn.init.normal_(net.head.conv3.weight, std=0.5, generator=generator)
    # the middle of 0 .. 10, far from where a ReLU dies
    nn.init.constant_(net.head.conv3.bias, 5.0)
    return DepthModel(net, "start", False, IMAGENET)
