"""The faster decoder equals transformers' own, in values and gradients."""

import pytest
import torch
from transformers.models.depth_anything.modeling_depth_anything import (
    DepthAnythingNeck,
    DepthAnythingReassembleStage,
)

from depthdist.models.base_model import load_base


def transformers_neck(net):
    """A neck of transformers' own modules with the weights of `net`'s."""
    neck = DepthAnythingNeck(net.config).double()
    neck.load_state_dict(net.neck.state_dict())
    return neck


@pytest.mark.parametrize(("images", "height", "width"), [(1, 11, 18), (2, 5, 4), (3, 1, 3)])
def test_the_neck_equals_transformers_own_in_values_and_gradients(images, height, width):
    net = load_base("tiny").net.double()
    torch.manual_seed(0)
    tokens = [torch.randn(images, height * width + 1, 96, dtype=torch.float64) for _ in range(4)]
    values = []
    gradients = []
    for neck in (net.neck, transformers_neck(net)):
        leaves = [part.clone().requires_grad_() for part in tokens]
        out = neck(leaves, height, width)
        sum(
            (part * torch.linspace(-1, 1, part.numel(), dtype=torch.float64).view(part.shape)).sum()
            for part in out
        ).backward()
        values.append(out)
        gradients.append([leaf.grad for leaf in leaves])
    stage = net.neck.reassemble_stage
    assert not isinstance(stage, DepthAnythingReassembleStage), "nothing was compared"
    assert all(part.abs().max() > 1e-3 for part in values[0] + gradients[0])
    for a, b in zip(values[0] + gradients[0], values[1] + gradients[1]):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-12 * b.abs().max().clamp(min=1)
