"""What stays in float32 whatever precision the network trains in, with and without DeepSpeed.

Runs as well where transformers is older than 5.18.
"""

import re

import pytest
import torch
from helpers.models import images, masters, stirred, with_way
from torch import nn

from depthdist.models.depth_model import Float32Conv2d, to_buffers, to_parameters
from depthdist.models.sample_dropout import draw_keys

pytestmark = [
    pytest.mark.usefixtures("quietly_on_one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def exact(model):
    """The frozen weights of the head's last convolutions, the adapter's and the base's, by name."""
    state = model.net.state_dict()
    kept = {
        n: t
        for n, t in state.items()
        if ".head." in n and re.search(r"conv[23]\.", n) and "lora_" not in n
    }
    return {
        n: t for n, t in kept.items() if n not in {m.removeprefix("net.") for m in masters(model)}
    }


@pytest.mark.parametrize(
    "to",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("way", ["qkv", "conv", "decoder", "calibrated"])
def test_no_cast_reaches_the_frozen_end_of_the_head(way, to, dav2_folder):
    model = with_way(dav2_folder, way)
    before = {n: t.clone() for n, t in exact(model).items()}
    to(model)
    assert len(before) == (6 if way == "calibrated" else 4)
    assert any((t != t.half().float()).any() for t in before.values())
    assert all(
        t.dtype == torch.float32 and torch.equal(t, before[n]) for n, t in exact(model).items()
    )
    assert next(model.net.parameters()).dtype != torch.float32
    assert model.head.conv1.weight.dtype != torch.float32


def test_the_end_of_the_head_computes_in_float32_inside_autocast_too():
    torch.manual_seed(0)
    conv = Float32Conv2d(8, 4, 3, padding=1)
    x = torch.randn(2, 8, 10, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.conv2d(x, conv.weight).dtype == torch.bfloat16
        inside = conv(x)
    assert inside.dtype == torch.float32 and torch.equal(inside, conv(x))


@pytest.mark.parametrize(
    ("way", "stage"),
    [
        ("qkv", 0),
        ("qkv", 1),
        ("qkv", 2),
        ("qkv", 3),
        ("conv + dora", 0),
        ("conv + dora", 3),
        ("decoder", 3),
        ("calibrated", 3),
    ],
)
def test_deepspeed_in_real_fp16_leaves_it_exactly_float32_and_trains(
    way, stage, dav2_folder, monkeypatch
):
    """On a device that would refuse fp16, whatever ZeRO does with the parameters."""
    from helpers.commands import joined

    monkeypatch.setenv("LOCAL_RANK", "0")
    joined()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    model = stirred(with_way(dav2_folder, way, lora_dropout=0.1))
    before = {n: t.clone() for n, t in exact(model).items()}
    full = model.eval()(images()).detach()
    config = {
        "train_batch_size": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "fp16": {"enabled": True, "initial_scale_power": 8},
    }
    config |= {"zero_optimization": {"stage": stage}, "steps_per_print": 10**9}
    engine = deepspeed.initialize(
        model=model, model_parameters=list(masters(model).values()), config=config
    )[0]
    with torch.no_grad():
        half = engine(images())
    assert 0 < (half - full).abs().max() < 0.02
    assert half.dtype == torch.float32
    assert (half != half.half().float()).float().mean() > 0.5
    model.train()
    for _ in range(2):
        engine.backward(engine(images(), draw_keys(0, 0, [0, 1])).mean())
        engine.step()
    assert engine.skipped_steps == 0
    assert (model.eval()(images()) - half).abs().max() > 1e-3
    assert all(
        t.dtype == torch.float32 and torch.equal(t, before[n]) for n, t in exact(model).items()
    )
    assert len(before) >= 4


@pytest.mark.parametrize("way", ["conv", "conv + dora"])
def test_lora_on_the_heads_end_computes_in_float32(way, dav2_folder):
    """Weights rounded to half.

    Then, in float32, every operation of conv3 and its LoRA on the input as it came.
    """
    model = stirred(with_way(dav2_folder, way)).half().eval()
    layer = model.head.conv3
    seen = {}
    layer.base_layer.register_forward_pre_hook(lambda _, args: seen.update(base=args[0]))
    layer.lora_A["default"].register_forward_pre_hook(lambda _, args: seen.update(lora=args[0]))
    layer.register_forward_hook(lambda _, args, result: seen.update(result=result))
    with torch.no_grad():
        model(images())
        a = layer.lora_A["default"].weight
        b = layer.lora_B["default"].weight
        base = layer.base_layer
        assert (a.dtype, b.dtype, base.weight.dtype) == (
            torch.float16,
            torch.float16,
            torch.float32,
        )
        assert torch.equal(seen["base"], seen["lora"])
        assert seen["base"].dtype == torch.float32
        assert (seen["base"] != seen["base"].half().float()).any()
        delta = 8.0 * torch.einsum("or,ri->oi", b[:, :, 0, 0].double(), a[:, :, 0, 0].double())
        weight = base.weight[:, :, 0, 0].double() + delta
        if "dora" in way:
            weight *= layer.lora_magnitude_vector["default"].weight.flatten()[
                :, None
            ].double() / weight.norm(dim=1, keepdim=True)
        wanted = (
            torch.einsum("oi,bihw->bohw", weight, seen["base"].double())
            + base.bias.double()[:, None, None]
        )
    assert seen["result"].dtype == torch.float32
    assert torch.allclose(
        seen["result"].double(), wanted, rtol=1e-3 if "dora" in way else 1e-5, atol=1e-5
    )


def test_frozen_weights_become_buffers_and_parameters_again():
    conv = nn.Sequential(Float32Conv2d(2, 3, 3, bias=False), nn.Linear(3, 2))
    before = {n: t.clone() for n, t in conv.state_dict().items()}
    to_buffers(conv)
    assert list(conv.parameters()) == []
    assert conv.state_dict().keys() == before.keys()
    to_parameters(conv)
    assert {n for n, p in conv.named_parameters() if p.requires_grad} == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in conv.state_dict().items())
