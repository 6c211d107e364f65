"""The model: what it computes, and in which precision; where it comes from, and what it refuses.

(What trains: test_lora.py.)

Runs as well where transformers is older than 5.18: python -m pytest tests/models/test_base_model.py
"""

import copy
import functools
import re
import shutil
import time

import pytest
import torch
import torch.nn.functional as F
from helpers.captures import SHARED
from helpers.models import (
    dav2_small,
    lively,
    masters,
    output,
    pictures,
    save_dav2,
    stirred,
    trained,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
)

from depthdist.models.base_model import IMAGENET, load_base
from depthdist.models.depth_model import Float32Conv2d
from depthdist.models.lora import add_lora, translate_layer_name
from depthdist.models.sample_dropout import draw_keys
from depthdist.models.settings import LoraSettings, ModelSettings
from depthdist.models.training_memory import training_memory

pytestmark = [
    pytest.mark.usefixtures("quietly_on_one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
DINOV2 = SHARED / "weights/dinov2-small"
DRAWS = draw_keys(0, 0, [0, 1])


@pytest.fixture(scope="module")
def saved_tiny(tmp_path_factory):
    """A DA-V2 folder in Hugging Face format of the size of `tiny`, with its own mean and standard
    deviation."""
    return save_dav2(tmp_path_factory.mktemp("tiny") / "da-v2")


@pytest.fixture
def broken(saved_tiny, tmp_path):
    """A copy of a good folder that a test may break."""
    return shutil.copytree(saved_tiny, tmp_path / "da-v2")


def refused(name, said):
    with pytest.raises(ValueError) as caught:
        load_base(str(name))
    assert (
        type(caught.value) is ValueError
        and "\n" not in str(caught.value)
        and said in str(caught.value)
    ), caught.value
    return str(caught.value)


# -------------------------------------------------------------------------------------- what trains


def test_the_recipe_trains_442368_of_25227457_parameters(tmp_path):
    dav2_small().save_pretrained(tmp_path / "da-v2")
    model = add_lora(load_base(str(tmp_path / "da-v2")), LoraSettings(), seed=0)
    assert model.parameter_counts() == (442_368, 25_227_457)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 36 and all("lora_" in name for name in trained)
    adapted = {name.split(".lora_")[0] for name in trained}
    assert len(adapted) == 36 and all(
        re.search(r"\.\d+\.attention\.(attention\.(query|key|value)|[qkv]_proj)$", name)
        for name in adapted
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_untrained_model_is_the_base_model_and_frozen():
    base = load_base("tiny")
    assert not any(p.requires_grad for p in base.parameters()) and base.fresh_decoder
    before = base(pictures())
    assert torch.equal(add_lora(base, LoraSettings(), 0).eval()(pictures()), before)


def test_a_name_that_cannot_work_is_found_with_the_settings():
    assert (
        ModelSettings().problems() == []
        and "no such folder" in ModelSettings("nothing").problems()[0]
    )


# -------------------------------------------------------------------------------------- base models


def test_tiny_is_the_same_in_every_process_and_version():
    first = load_base("tiny")
    torch.manual_seed(12345)
    torch.rand(7)
    again = load_base("tiny")
    state = {translate_layer_name(n, True): t for n, t in first.net.state_dict().items()}
    assert all(
        torch.equal(state[translate_layer_name(n, True)], t)
        for n, t in again.net.state_dict().items()
    )
    assert first.parameter_counts() == (0, 1_116_129)
    # written down: adapters were learnt on these; neither the process nor transformers' own start
    # may move them
    pinned = {
        "backbone.embeddings.patch_embeddings.projection.weight": [
            0.0125021944,
            0.0269645751,
            -0.0444888622,
        ],
        "backbone.encoder.layer.0.attention.q_proj.weight": [
            0.0120634204,
            0.1025884673,
            -0.1870428622,
        ],
        "backbone.encoder.layer.0.layer_scale1.lambda1": [1.0, 1.0, 1.0],
        "neck.fusion_stage.layers.0.projection.weight": [0.0925728753, 0.1005305573, -0.0800264701],
        "head.conv1.weight": [-0.0171311293, 0.0215773601, 0.0661270693],
    }
    for name, values in pinned.items():
        assert state[name].flatten()[:3].tolist() == pytest.approx(values, rel=1e-5), name


def test_a_folder_gives_what_was_saved_in_it(saved_tiny):
    stored, folder = load_file(saved_tiny / "model.safetensors"), load_base(str(saved_tiny))
    state = {translate_layer_name(n, True): t for n, t in folder.net.state_dict().items()}
    assert (
        not folder.fresh_decoder
        and len(stored) == len(state)
        and all(torch.equal(state[translate_layer_name(n, True)], t) for n, t in stored.items())
    )
    assert not any(p.requires_grad for p in folder.parameters())
    assert folder.normalization == ((0.4, 0.45, 0.5), (0.2, 0.25, 0.3))


@pytest.mark.skipif(not DINOV2.exists(), reason=f"{DINOV2} is not here")
def test_a_dinov2_backbone_keeps_its_weights_and_gets_a_fresh_decoder_that_trains():
    model = add_lora(load_base(str(DINOV2)), LoraSettings(), seed=0)
    assert model.fresh_decoder
    inside = {
        translate_layer_name(n.replace(".base_layer.", "."), True).split("backbone.")[-1]: p
        for n, p in model.named_parameters()
        if "backbone." in n
    }
    stored = {
        translate_layer_name("." + n, True)[1:]: t
        for n, t in load_file(DINOV2 / "model.safetensors").items()
    }
    assert len(stored) > 200 and all(torch.equal(inside[n], t.float()) for n, t in stored.items())
    assert not any(inside[n].requires_grad for n in stored)
    decoder = {n for n in model.state_dict() if "modules_to_save" in n}
    idle = {n for n in decoder if "fusion_stage.layers.0.residual_layer1" in n}
    assert len(idle) == 4 and {n for n in masters(model) if "lora_" not in n} == decoder - idle
    num_decoder = sum(model.state_dict()[n].numel() for n in decoder - idle)
    assert model.parameter_counts() == (442_368 + num_decoder, 25_227_457)
    assert model.normalization == IMAGENET


BROKEN = {
    "no config.json": (
        lambda f: (f / "config.json").unlink(),
        "expected a folder in Hugging Face format, with config.json",
    ),
    "a config.json that is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "another kind of model": (
        lambda f: (f / "config.json").write_text('{"model_type": "vit"}'),
        "model_type 'vit'; expected depth_anything or dinov2",
    ),
    "a backbone of another size": (
        lambda f: (f / "config.json").write_text('{"model_type": "dinov2", "hidden_size": 100}'),
        "384, 768, 1024, 1536",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "another rescaling": (
        lambda f: (f / "preprocessor_config.json").write_text('{"rescale_factor": 1}'),
        "expected 1/255",
    ),
    "some tensors missing": (
        lambda f: edit_weights(f, lambda s: {n: t for n, t in s.items() if ".layer.3." not in n}),
        "the weights lack 18 tensors",
    ),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:9999]
        ),
        "cannot be loaded",
    ),
    "a tensor of another shape": (
        lambda f: edit_weights(
            f, lambda s: {**s, "head.conv1.weight": s["head.conv1.weight"][:5].clone()}
        ),
        "--model",
    ),
    "a config.json that is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "a processor that is no JSON": (
        lambda f: (f / "preprocessor_config.json").write_text("{"),
        "preprocessor_config.json",
    ),
}


def edit_weights(folder, edit):
    save_file(
        edit(load_file(folder / "model.safetensors")),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_line(case, broken):
    damage, said = BROKEN[case]
    damage(broken)
    assert str(broken) in refused(broken, said)


@pytest.mark.parametrize(
    "name", ["no-such-model", "./a/b", "a/b/c", "/no/such/folder", "~/no-such-folder"]
)
def test_a_name_that_is_nothing_is_one_line(name):
    assert name in refused(
        name, "no such folder, and not a hub id (owner/name), `built-in` or `tiny`"
    )


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_ways_out_and_at_once(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    line = refused("nobody/no-such-model", "--model nobody/no-such-model")
    assert time.monotonic() - started < 5
    assert (
        all(
            part in line
            for part in (
                "hf download nobody/no-such-model",
                "HF_HOME",
                "--model FOLDER",
                "--model built-in",
            )
        )
        and len(line) < 500
    )


# --------------------------------------------------------------------------------- what it computes


def test_forward_equals_the_models_own_processor_and_the_plain_model(saved_tiny):
    """Nobody's code but transformers': DPTImageProcessor and DepthAnythingForDepthEstimation as the
    folder holds them."""
    processor = AutoImageProcessor.from_pretrained(saved_tiny, use_fast=False)
    rgb = pictures(2, (42, 56))
    inputs = processor(
        [Image.fromarray(p.numpy()) for p in rgb], do_resize=False, return_tensors="pt"
    )
    plain = DepthAnythingForDepthEstimation.from_pretrained(saved_tiny).eval()
    with torch.no_grad():
        expected, found = plain(**inputs).predicted_depth, load_base(str(saved_tiny)).eval()(rgb)
    assert found.shape == (2, 42, 56) and found.dtype == torch.float32
    assert found.std() > 1e-2 and (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_each_picture_is_its_own(saved_tiny):
    model, rgb = load_base(str(saved_tiny)).eval(), pictures(3)
    with torch.no_grad():
        found, alone = model(rgb), torch.cat([model(p[None]) for p in rgb])
    assert (found - alone).abs().max() < 1e-5 * found.max() and (found >= 0).all()


def test_float32_convolutions_stay_float32_after_half():
    torch.manual_seed(0)
    conv, x = Float32Conv2d(8, 3, 3, padding=1).half(), torch.randn(2, 8, 6, 7).half()
    found = conv(x)
    assert conv.weight.dtype == torch.float16 and found.dtype == torch.float32
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
    full, half = output(model), output(copy.deepcopy(model).to(torch.bfloat16))
    assert half.dtype == torch.float32 and (half != half.bfloat16().float()).float().mean() > 0.5
    assert torch.allclose(half, full, rtol=0.1)


@pytest.mark.parametrize("name", ["tiny", "folder"])
def test_attention_is_torchs_fused_one_wherever_the_model_comes_from(name, saved_tiny, monkeypatch):
    model, calls = load_base("tiny" if name == "tiny" else str(saved_tiny)), []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    output(model)
    assert model.net.backbone.config._attn_implementation == "sdpa" and len(calls) == 6


# ------------------------------------------------------------------------------- a calibrated start


def test_raw_is_what_the_last_activation_gets(saved_tiny):
    with torch.no_grad():
        relu, sigmoid = load_base(str(saved_tiny)).eval(), lively(load_base("tiny"))
        raw = relu.raw(pictures())
        assert raw.shape == (2, 28, 42) and raw.dtype == torch.float32 and raw.min() < 0 < raw.max()
        assert torch.equal(output(relu), raw.relu()) and torch.equal(
            output(sigmoid), sigmoid.raw(pictures()).sigmoid()
        )
        assert torch.equal(
            trained(saved_tiny, "calibrated + decoder").raw(pictures()).relu(),
            output(trained(saved_tiny, "calibrated + decoder")),
        )
    assert not relu.head.activation2._forward_pre_hooks


def test_the_inverse_of_the_activation_gives_the_target_back(saved_tiny):
    target = torch.linspace(0.001, 0.999, 100)
    relu, sigmoid = load_base(str(saved_tiny)), load_base("tiny")
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
def test_rescaling_folds_a_line_into_the_last_convolution(name, saved_tiny):
    model = lively(load_base("tiny")) if name == "tiny" else load_base(str(saved_tiny))
    raw = model.raw(pictures())
    model.rescale(0.5, 0.3)
    model.rescale(2.0, -0.1)  # again: 2 (0.5 y + 0.3) - 0.1
    assert model.calibrated and torch.allclose(model.raw(pictures()), raw + 0.5, atol=1e-5)
    assert torch.allclose(output(model), model.head.activation2(raw + 0.5), atol=1e-5)


def test_a_planted_line_is_found_by_least_squares_on_raw_outputs(saved_tiny):
    model = load_base(str(saved_tiny))
    target = 0.02 * model.raw(pictures()) + 0.1
    x, y = (
        model.raw(pictures()).flatten().double(),
        model.inverse_activation(target).flatten().double(),
    )
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
    loss = model.train()(pictures(), draws).square().mean()
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


def test_a_batch_drops_what_its_samples_drop_one_by_one(saved_tiny):
    model = in_training(saved_tiny).train()
    both = model(pictures(), DRAWS)
    alone = torch.cat([model(pictures()[i : i + 1], DRAWS[i : i + 1]) for i in (0, 1)])
    assert torch.allclose(both, alone, atol=1e-5) and not torch.allclose(
        both, model(pictures(), DRAWS.flip(0)), atol=0.05
    )
    assert torch.equal(both, model(pictures(), DRAWS)) and torch.equal(
        output(model.eval()), model(pictures(), DRAWS)
    )


def test_training_with_dropout_needs_the_samples_draws(saved_tiny):
    with pytest.raises(AssertionError, match="draws"):
        in_training(saved_tiny).train()(pictures())
    add_lora(load_base(str(saved_tiny)), LoraSettings(lora_dropout=0.0), 0).train()(pictures())


def test_checkpointing_gives_the_same_gradients_though_another_batch_comes_in_between(saved_tiny):
    wanted, model = gradients(in_training(saved_tiny)), in_training(saved_tiny)
    held = saved_for_the_way_back(model, (28, 42), 2)
    model.checkpoint_activations()
    assert saved_for_the_way_back(model, (28, 42), 2) < 0.7 * held

    def another(model):
        model(pictures(), DRAWS.flip(0))
        output(model.eval())
        model.train()

    assert same(gradients(model, meanwhile=another), wanted) and any(
        g.any() for g in wanted.values()
    )
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
        gradients(model, meanwhile=lambda m: m(pictures(), DRAWS.flip(0))),
        gradients(plain),
        rtol=1e-4,
    )
    assert (
        torch.allclose(output(model.eval()), output(plain.eval()), atol=1e-5)
        and output(plain).std() > 1e-3
    )
    assert (list(model.state_dict()), [n for n, _ in model.named_parameters()]) == names


# ------------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def tiny_with_lora():
    return add_lora(load_base("tiny"), LoraSettings(), seed=0)


def saved_for_the_way_back(model, size, batch):
    """Bytes that autograd really holds after a forward pass: each storage once, parameters not."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(pictures(batch, size), draw_keys(0, 0, range(batch)))
    return sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in own)


def test_memory_of_weights_and_optimizer_is_counted_by_hand(tiny_with_lora):
    trained, total = tiny_with_lora.parameter_counts()
    full, half = (
        training_memory(tiny_with_lora, (28, 42), 1, precision) for precision in ("fp32", "fp16")
    )
    assert full["weights"] == 4 * total and half["weights"] == 2 * total
    # gradient, and Adam's two moments; in fp16 the gradient is half, and there is the master
    assert (
        full["gradients, masters and optimizer"] == 12 * trained
        and half["gradients, masters and optimizer"] == 14 * trained
    )
    assert half["activations"] == full["activations"] // 2 > 0
    assert next(tiny_with_lora.parameters()).device.type == "cpu", (
        "the model itself stays where it is"
    )


def test_memory_of_activations_grows_with_the_micro_batch_and_the_picture(tiny_with_lora):
    one, two, four = (
        training_memory(tiny_with_lora, (224, 336), batch, "fp32")["activations"]
        for batch in (1, 2, 4)
    )
    assert (four - two) == pytest.approx(2 * (two - one), rel=1e-3) and two > 1.8 * one
    assert training_memory(tiny_with_lora, (224, 672), 1, "fp32")["activations"] > 1.8 * one


@pytest.mark.parametrize("size", [(28, 42), (224, 336)])
def test_memory_of_activations_is_what_autograd_keeps(tiny_with_lora, size):
    needed = saved_for_the_way_back(tiny_with_lora, size, 2)
    assert training_memory(tiny_with_lora, size, 2, "fp32")["activations"] == pytest.approx(
        needed, rel=0.1
    )
