"""What the model computes: outputs, precision, calibration, dropout, checkpointing, compilation.

Runs as well where transformers is older than 5.18.
"""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from helpers.models import (
    bytes_kept_for_backward,
    images,
    lively,
    masters,
    output,
    stirred,
    trained,
)
from PIL import Image
from transformers import (
    AutoImageProcessor,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
)

from depthdist.models.base_model import load_base
from depthdist.models.depth_model import Float32Conv2d
from depthdist.models.lora import add_lora
from depthdist.models.sample_dropout import draw_keys
from depthdist.models.settings import LoraSettings

pytestmark = [
    pytest.mark.usefixtures("quietly_on_one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
DRAWS = draw_keys(0, 0, [0, 1])


def test_forward_equals_the_models_own_processor_and_the_plain_model(dav2_folder):
    """Nobody's code but transformers': DPTImageProcessor and DepthAnythingForDepthEstimation as the
    folder holds them."""
    processor = AutoImageProcessor.from_pretrained(dav2_folder, use_fast=False)
    rgb = images(2, (42, 56))
    inputs = processor(
        [Image.fromarray(p.numpy()) for p in rgb], do_resize=False, return_tensors="pt"
    )
    plain = DepthAnythingForDepthEstimation.from_pretrained(dav2_folder).eval()
    with torch.no_grad():
        expected = plain(**inputs).predicted_depth
        found = load_base(str(dav2_folder)).eval()(rgb)
    assert found.shape == (2, 42, 56)
    assert found.dtype == torch.float32
    assert found.std() > 1e-2
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_each_image_is_its_own(dav2_folder):
    model = load_base(str(dav2_folder)).eval()
    rgb = images(3)
    with torch.no_grad():
        found = model(rgb)
        alone = torch.cat([model(p[None]) for p in rgb])
    assert (found - alone).abs().max() < 1e-5 * found.max()
    assert (found >= 0).all()


def test_float32_convolutions_stay_float32_after_half():
    torch.manual_seed(0)
    conv = Float32Conv2d(8, 3, 3, padding=1).half()
    x = torch.randn(2, 8, 6, 7).half()
    found = conv(x)
    assert conv.weight.dtype == torch.float16
    assert found.dtype == torch.float32
    assert torch.equal(
        found, F.conv2d(x.float(), conv.weight.float(), conv.bias.float(), padding=1)
    )
    assert (found != found.half().float()).any(), "no rounding to half"
    assert Float32Conv2d(8, 3, 1, bias=False).half()(x).dtype == torch.float32


def test_a_model_in_half_precision_ends_in_float32():
    model = lively(load_base("tiny"))
    assert [type(layer) for layer in (model.net.head.conv2, model.net.head.conv3)] == [
        Float32Conv2d
    ] * 2
    full = output(model)
    half = output(copy.deepcopy(model).to(torch.bfloat16))
    assert half.dtype == torch.float32
    assert (half != half.bfloat16().float()).float().mean() > 0.5
    assert torch.allclose(half, full, rtol=0.1)


@pytest.mark.parametrize("name", ["tiny", "folder"])
def test_attention_is_torchs_fused_one_wherever_the_model_comes_from(
    name, dav2_folder, monkeypatch
):
    model = load_base("tiny" if name == "tiny" else str(dav2_folder))
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    output(model)
    assert model.net.backbone.config._attn_implementation == "sdpa"
    assert len(calls) == 6


# ------------------------------------------------------------------------------- a calibrated start


def test_raw_is_what_the_last_activation_gets(dav2_folder):
    with torch.no_grad():
        relu = load_base(str(dav2_folder)).eval()
        sigmoid = lively(load_base("tiny"))
        raw = relu.raw(images())
        assert raw.shape == (2, 28, 42)
        assert raw.dtype == torch.float32
        assert raw.min() < 0 < raw.max()
        assert torch.equal(output(relu), raw.relu())
        assert torch.equal(output(sigmoid), sigmoid.raw(images()).sigmoid())
        assert torch.equal(
            trained(dav2_folder, "calibrated + decoder").raw(images()).relu(),
            output(trained(dav2_folder, "calibrated + decoder")),
        )
    assert not relu.head.activation2._forward_pre_hooks


def test_the_inverse_of_the_activation_gives_the_target_back(dav2_folder):
    target = torch.linspace(0.001, 0.999, 100)
    relu = load_base(str(dav2_folder))
    sigmoid = load_base("tiny")
    assert torch.equal(relu.inverse_activation(target).relu(), target)
    assert torch.allclose(sigmoid.inverse_activation(target).sigmoid(), target, atol=1e-6)
    assert torch.allclose(
        sigmoid.inverse_activation(torch.tensor([0.0, 1.0])).sigmoid(), torch.tensor([0.001, 0.999])
    ), "not infinite"
    for model in (relu, sigmoid):
        model.head.max_depth = 20
        assert torch.allclose(
            model.head.activation2(model.inverse_activation(20 * target)), target, atol=1e-6
        )


@pytest.mark.parametrize("name", ["tiny", "folder"])
def test_rescaling_folds_a_line_into_the_last_convolution(name, dav2_folder):
    model = lively(load_base("tiny")) if name == "tiny" else load_base(str(dav2_folder))
    raw = model.raw(images())
    model.rescale(0.5, 0.3)
    model.rescale(2.0, -0.1)  # again: 2 (0.5 y + 0.3) - 0.1
    assert model.calibrated
    assert torch.allclose(model.raw(images()), raw + 0.5, atol=1e-5)
    assert torch.allclose(output(model), model.head.activation2(raw + 0.5), atol=1e-5)


def test_a_planted_line_is_found_by_least_squares_on_raw_outputs(dav2_folder):
    model = load_base(str(dav2_folder))
    target = 0.02 * model.raw(images()) + 0.1
    x = model.raw(images()).flatten().double()
    y = model.inverse_activation(target).flatten().double()
    scale, shift = (
        torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None])
        .solution.flatten()
        .tolist()
    )
    assert (scale, shift) == (pytest.approx(0.02, rel=1e-5), pytest.approx(0.1, rel=1e-5))
    model.rescale(scale, shift)
    assert torch.allclose(output(model), target.relu(), atol=1e-6)


# ------------------------------------------------------------------ dropout, checkpointing, compile


def gradients(model, draws=DRAWS, meanwhile=None):
    """By name, of the model in training; `meanwhile` happens between the two ways."""
    model.zero_grad()
    loss = model.train()(images(), draws).square().mean()
    if meanwhile:
        meanwhile(model)
    loss.backward()
    return {n: p.grad for n, p in masters(model).items()}


def same(found, wanted, rtol=0.0):
    assert found.keys() == wanted.keys()
    return all(
        float((found[n] - wanted[n]).abs().max()) <= rtol * float(wanted[n].abs().max())
        for n in wanted
    )


def in_training(name):
    return stirred(add_lora(load_base(str(name)), LoraSettings(lora_dropout=0.3), seed=0))


def test_a_batch_drops_what_its_samples_drop_one_by_one(dav2_folder):
    model = in_training(dav2_folder).train()
    both = model(images(), DRAWS)
    alone = torch.cat([model(images()[i : i + 1], DRAWS[i : i + 1]) for i in (0, 1)])
    assert torch.allclose(both, alone, atol=1e-5)
    assert not torch.allclose(both, model(images(), DRAWS.flip(0)), atol=0.05)
    assert torch.equal(both, model(images(), DRAWS))
    assert torch.equal(output(model.eval()), model(images(), DRAWS))


def test_training_with_dropout_needs_the_samples_draws(dav2_folder):
    with pytest.raises(AssertionError, match="draws"):
        in_training(dav2_folder).train()(images())
    add_lora(load_base(str(dav2_folder)), LoraSettings(lora_dropout=0.0), 0).train()(images())


def test_checkpointing_gives_the_same_gradients_though_another_batch_comes_in_between(dav2_folder):
    wanted = gradients(in_training(dav2_folder))
    model = in_training(dav2_folder)
    held = bytes_kept_for_backward(model, (28, 42), 2)
    model.checkpoint_activations()
    assert bytes_kept_for_backward(model, (28, 42), 2) < 0.7 * held

    def another(model):
        model(images(), DRAWS.flip(0))
        output(model.eval())
        model.train()

    assert same(gradients(model, meanwhile=another), wanted)
    assert any(g.any() for g in wanted.values())
    assert not same(gradients(model, DRAWS.flip(0)), wanted, rtol=0.01), "dropout does nothing here"


def test_what_torch_compile_traces_changes_nothing_beyond_rounding(tmp_path, monkeypatch):
    """Training with dropout and checkpointing, and evaluation.

    The kernels themselves: test_gpu.py; on a CPU they are refused.
    """
    backbone = Dinov2Config(
        image_size=56,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=3,
        out_indices=[0, 1, 2, 3],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        patch_size=14,
        neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=4,
        head_hidden_size=4,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / "da-v2")
    plain, model = (lively(load_base(str(tmp_path / "da-v2"))) for _ in range(2))
    plain, model = (
        stirred(add_lora(m, LoraSettings(lora_rank=2, lora_dropout=0.3), seed=0))
        for m in (plain, model)
    )
    names = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    model.checkpoint_activations()
    monkeypatch.setattr(
        model.net, "compile", functools.partial(model.net.compile, backend="aot_eager")
    )
    model.compile()
    assert same(
        gradients(model, meanwhile=lambda m: m(images(), DRAWS.flip(0))),
        gradients(plain),
        rtol=1e-4,
    )
    assert torch.allclose(output(model.eval()), output(plain.eval()), atol=1e-5)
    assert output(plain).std() > 1e-3
    assert (list(model.state_dict()), [n for n, _ in model.named_parameters()]) == names
