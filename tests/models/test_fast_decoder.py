"""The reordered decoder gives what transformers' own gives, there and back."""

import copy

import pytest
import torch
from transformers.models.depth_anything.modeling_depth_anything import (
    DepthAnythingFeatureFusionLayer,
    DepthAnythingReassembleStage,
)

from depthdist.models.base_model import load_base


def theirs(neck):
    """A copy that computes as transformers does."""
    neck = copy.deepcopy(neck)
    neck.reassemble_stage.__class__ = DepthAnythingReassembleStage
    for layer in neck.fusion_stage.layers:
        layer.__class__ = DepthAnythingFeatureFusionLayer
    return neck


@pytest.mark.parametrize(("images", "height", "width"), [(1, 11, 18), (2, 5, 4), (3, 1, 3)])
def test_the_neck_equals_transformers_own_in_values_and_gradients(images, height, width):
    neck = load_base("tiny").net.neck.double()
    torch.manual_seed(0)
    tokens = [torch.randn(images, height * width + 1, 96, dtype=torch.float64) for _ in range(4)]
    values, gradients = [], []
    for one in (neck, theirs(neck)):
        leaves = [part.clone().requires_grad_() for part in tokens]
        out = one(leaves, height, width)
        sum(
            (part * torch.linspace(-1, 1, part.numel(), dtype=torch.float64).view(part.shape)).sum()
            for part in out
        ).backward()
        values.append(out)
        gradients.append([leaf.grad for leaf in leaves])
    assert type(neck.reassemble_stage) is not DepthAnythingReassembleStage, "nothing was compared"
    assert all(part.abs().max() > 1e-3 for part in values[0] + gradients[0])
    for a, b in zip(values[0] + gradients[0], values[1] + gradients[1]):
        assert a.shape == b.shape and (a - b).abs().max() < 1e-12 * b.abs().max().clamp(min=1)
