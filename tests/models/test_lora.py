"""What trains in each way there is: which layers, how many numbers, in which precision.

And what stays as it was.

Runs as well where transformers is older than 5.18: python -m pytest tests/models/test_lora.py
"""

import re

import pytest
import torch
from helpers.models import WAYS, dav2_small, masters, pictures, save_dav2, stirred, with_way
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import Dinov2Config

from depthdist.models.base_model import IMAGENET, load_base, new_depth_anything
from depthdist.models.depth_model import DepthModel, Float32Conv2d, to_buffers, to_parameters
from depthdist.models.lora import IDLE, add_lora, trained_groups, translate_layer_name
from depthdist.models.sample_dropout import SampleDropout, draw_keys
from depthdist.models.settings import LoraSettings

pytestmark = [
    pytest.mark.usefixtures("quietly_on_one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
IN_DECODER = ("net.base_model.model.neck.", "net.base_model.model.head.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small DA-V2 whose decoder counts as pretrained."""
    return save_dav2(tmp_path_factory.mktemp("lora") / "da-v2")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A DA-V2-Small as a folder, its weights random."""
    dav2_small().save_pretrained(folder := tmp_path_factory.mktemp("small") / "da-v2")
    return folder


def adapted(model):
    """The layers that got LoRA: name in the new spelling -> peft's layer."""
    return {
        translate_layer_name(n.removeprefix("net.base_model.model."), True): m
        for n, m in model.named_modules()
        if isinstance(m, LoraLayer)
    }


# ------------------------------------------------------------------- which layers, how many numbers


LAYERS = [f"backbone.encoder.layer.{i}" for i in range(6)]
QKV = {f"{layer}.attention.{x}_proj" for layer in LAYERS for x in "qkv"}
LINEAR = QKV | {
    f"{layer}.{part}" for layer in LAYERS for part in ("attention.o_proj", "mlp.fc1", "mlp.fc2")
}
# the decoder's convolutions that run and are not transposed
CONV = (
    {f"head.conv{i}" for i in (1, 2, 3)}
    | {f"neck.convs.{i}" for i in range(4)}
    | {f"neck.reassemble_stage.layers.{i}.projection" for i in range(4)}
)
CONV |= {"neck.reassemble_stage.layers.3.resize"} | {
    f"neck.fusion_stage.layers.{i}.projection" for i in range(4)
}
CONV |= {
    f"neck.fusion_stage.layers.{i}.residual_layer{k}.convolution{j}"
    for i in range(4)
    for k in (1, 2)
    for j in (1, 2)
} - {f"neck.{IDLE}.convolution{j}" for j in (1, 2)}
EXPECTED = {
    "qkv": QKV,
    "linear": LINEAR,
    "conv": LINEAR | CONV,
    "dora": QKV,
    "conv + dora": LINEAR | CONV,
    "rslora": QKV,
    "decoder": QKV,
    "calibrated": QKV,
}
EXPECTED |= {"calibrated + conv": LINEAR | CONV - {"head.conv3"}, "calibrated + decoder": QKV}
EXPECTED["targets"] = {
    f"{layer}.{part}" for layer in LAYERS for part in ("mlp.fc2", "attention.q_proj")
} | {"head.conv2"}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_adapts_its_layers_and_no_other(way, folder):
    model = with_way(folder, way)
    assert adapted(model).keys() == EXPECTED[way]
    assert all(m.r["default"] == WAYS[way].get("lora_rank", 4) for m in adapted(model).values())
    decoder = [n for n in masters(model) if n.startswith(IN_DECODER) and "lora_" not in n]
    assert bool(decoder) == ("decoder" in way) and not any(IDLE in n for n in masters(model))
    assert all(
        "lora_" in n for n in masters(model) if n.startswith("net.base_model.model.backbone")
    )


LINEAR_16 = 12 * (4 * (384 + 384) + 2 * (384 + 1536)) * 16
CONV_16 = 16 * (
    4 * 384
    + 720
    + 9 * 384
    + 384
    + 9 * 720
    + 4 * 64
    + 4 * 128
    + 14 * (9 * 64 + 64)
    + 9 * 64
    + 32
    + 9 * 32
    + 32
    + 32
    + 1
)
CONV_OUTPUTS = 720 + 384 + 4 * 64 + 4 * 64 + 14 * 64 + 32 + 32 + 1
DECODER = 2_728_513 - 2 * (9 * 64 * 64 + 64)  # all of it but the residual layer that never runs
COUNTS = {
    "qkv": 442_368,
    "linear": LINEAR_16,
    "conv": LINEAR_16 + CONV_16,
    "rslora": 442_368,
    "calibrated": 442_368,
    "decoder": 442_368 + DECODER,
    "dora": 442_368 + 12 * 3 * 384,
    "conv + dora": LINEAR_16 + CONV_16 + 12 * (4 * 384 + 1536 + 384) + CONV_OUTPUTS,
}


@pytest.mark.parametrize("way", COUNTS)
def test_what_trains_is_counted_by_hand(way, small):
    trained, total = with_way(small, way, lora_rank=16).parameter_counts()
    beside = trained - (DECODER if way == "decoder" else 0)
    assert trained == COUNTS[way] and total == 24_785_089 + beside
    assert (LINEAR_16, LINEAR_16 + CONV_16) == (1_327_104, 1_699_344), "as the README has them"


@pytest.mark.parametrize("way", WAYS)
def test_groups_hold_all_that_trains_once(way, folder):
    model = with_way(folder, way)
    groups = trained_groups(model)
    assert list(groups) == (["lora", "decoder"] if "decoder" in way else ["lora"])
    assert sorted(map(id, sum(groups.values(), []))) == sorted(map(id, masters(model).values()))
    assert {
        n for n, p in masters(model).items() if any(p is q for q in groups.get("decoder", []))
    } == {n for n in masters(model) if "modules_to_save" in n}


def test_a_regular_expression_may_use_either_spelling_and_must_fit_something(folder):
    for pattern in (r".*query", r".*\.q_proj"):
        assert adapted(with_way(folder, lora_targets=pattern)).keys() == {
            f"{layer}.attention.q_proj" for layer in LAYERS
        }
    with pytest.raises(
        ValueError,
        match=(
            r"--lora-targets 'q_proj' fits the name of no layer; there are"
            r" .*backbone.encoder.layer.N.mlp.fc1.*head.conv1"
        ),
    ) as caught:
        with_way(folder, lora_targets="q_proj")
    assert (
        IDLE not in str(caught.value)
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 2000
    )
    everything = adapted(with_way(folder, lora_targets=".*")).keys()
    assert everything == LINEAR | CONV | {"backbone.embeddings.patch_embeddings.projection"}


def test_a_decoder_that_trains_as_a_whole_gets_no_lora_besides(folder):
    for name, settings in ((folder, {"decoder": "trained"}), ("tiny", {})):
        assert adapted(with_way(name, "conv", **settings)).keys() == LINEAR
        with pytest.raises(ValueError, match="fits the name of no layer"):
            with_way(name, lora_targets="head.*", **settings)


def test_the_gated_mlp_of_the_giant_is_adapted_where_both_versions_have_the_layer(tmp_path):
    config = Dinov2Config(
        image_size=56,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=4,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        use_swiglu_ffn=True,
    )
    net = new_depth_anything(config, [8, 8, 8, 8], 8, 8).requires_grad_(False)
    found = adapted(
        add_lora(DepthModel(net, "giant", True, IMAGENET), LoraSettings(lora="linear"), 0)
    )
    assert {n.split("layer.0.")[1] for n in found if "layer.0." in n} == {
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.o_proj",
        "mlp.down_proj",
    }


def test_respelling_goes_there_and_back_and_leaves_the_rest():
    pairs = [
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
    ]
    for after, before in [
        *pairs,
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.down_proj", "mlp.weights_out"),
    ]:
        for end in ("", ".lora_A.weight", ".lora_magnitude_vector"):
            old, new = (f"net.backbone.encoder.layer.3.{part}{end}" for part in (before, after))
            assert (
                translate_layer_name(old, True) == translate_layer_name(new, True) == new
                and translate_layer_name(old, False) == translate_layer_name(new, False) == old
            )
    for name in (
        "net.head.conv1.weight",
        "net.backbone.encoder.layer.3.mlp.fc1.weight",
        "layer.3.attention.q_proj2.weight",
        "my.superattention.q_proj",
    ):
        assert translate_layer_name(name, True) == translate_layer_name(name, False) == name


# ----------------------------------------------------------- the start, the settings, the gradients


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_starts_as_its_base_model(way, folder):
    base = load_base(str(folder))
    if "calibrated" in way:
        base.rescale(0.5, 0.2)
    with torch.no_grad():
        wanted, found = base.eval()(pictures()), with_way(folder, way).eval()(pictures())
    assert wanted.std() > 0.05 and torch.allclose(
        found, wanted, rtol=1e-4, atol=1e-6 if "dora" in way else 0
    )


def test_the_start_is_the_seeds(folder):
    first, second, other = (
        masters(add_lora(load_base(str(folder)), LoraSettings(), seed)) for seed in (0, 0, 1)
    )
    assert all(
        torch.equal(first[n], second[n]) and (torch.equal(first[n], other[n]) == ("lora_B" in n))
        for n in first
    )


def test_rank_alpha_and_dropout_are_the_settings(folder):
    model = with_way(folder, lora_rank=4, lora_alpha=2, lora_dropout=0.5)
    layers = adapted(model).values()
    assert all(
        m.lora_A["default"].weight.shape[0] == 4 and m.scaling["default"] == 0.5 for m in layers
    )
    assert [m.lora_dropout["default"].p for m in layers] == [
        0.5
    ] * 18 and model.dropout_keys.num_layers == 18
    assert [m.layer for m in model.modules() if isinstance(m, SampleDropout)] == list(range(18))
    assert all(
        m.scaling["default"] == 2 / 4**0.5
        for m in adapted(with_way(folder, lora_rank=4, lora_alpha=2, rslora=True)).values()
    )
    assert all(
        "default" in m.lora_magnitude_vector for m in adapted(with_way(folder, "dora")).values()
    )


BAD = [
    ("lora_rank", 0),
    ("lora_alpha", -1),
    ("lora_dropout", 1.0),
    ("lora_dropout", float("nan")),
    ("lora_targets", "("),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_settings_that_cannot_work_are_one_line_each(name, value):
    (line,) = LoraSettings(**{name: value}).problems()
    assert f"--{name.replace('_', '-')} is {value!r}" in line
    assert LoraSettings().problems() == []


def test_settings_of_lora_without_lora_are_refused():
    said = LoraSettings(lora="none", dora=True, lora_rank=4).problems()
    assert said == [
        f"--{name} is for LoRA, and --lora is none; leave one of them out"
        for name in ("lora-rank", "dora")
    ]
    assert LoraSettings(lora="none", lora_targets=".*fc1", dora=True).problems() == [], (
        "these targets get LoRA"
    )
    assert LoraSettings(lora="none", decoder="trained").problems() == [], "so it is"


@pytest.mark.parametrize("way", WAYS)
def test_gradients_reach_all_that_trains_and_nothing_frozen(way, folder):
    model = stirred(with_way(folder, way, lora_dropout=0.1)).train()
    model(pictures(), draw_keys(0, 0, [0, 1])).mean().backward()
    without = [n for n, p in masters(model).items() if p.grad is None]
    dead = [n for n, p in masters(model).items() if p.grad is not None and not p.grad.any()]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert (without, frozen) == ([], []) and all("head.conv3" in n for n in dead)


# ---------------------------------------------------------------------------------------- precision


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
def test_no_cast_reaches_the_frozen_end_of_the_head(way, to, folder):
    model = with_way(folder, way)
    before = {n: t.clone() for n, t in exact(model).items()}
    to(model)
    assert len(before) == (6 if way == "calibrated" else 4) and any(
        (t != t.half().float()).any() for t in before.values()
    )
    assert all(
        t.dtype == torch.float32 and torch.equal(t, before[n]) for n, t in exact(model).items()
    )
    assert (
        next(model.net.parameters()).dtype != torch.float32
        and model.head.conv1.weight.dtype != torch.float32
    )


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
    way, stage, folder, monkeypatch
):
    """On a device that would refuse fp16, whatever ZeRO does with the parameters."""
    from helpers.commands import joined

    monkeypatch.setenv("LOCAL_RANK", "0")
    joined()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    model = stirred(with_way(folder, way, lora_dropout=0.1))
    before, full = (
        {n: t.clone() for n, t in exact(model).items()},
        model.eval()(pictures()).detach(),
    )
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
        half = engine(pictures())
    assert (
        0 < (half - full).abs().max() < 0.02
        and half.dtype == torch.float32
        and (half != half.half().float()).float().mean() > 0.5
    )
    model.train()
    for _ in range(2):
        engine.backward(engine(pictures(), draw_keys(0, 0, [0, 1])).mean())
        engine.step()
    assert engine.skipped_steps == 0 and (model.eval()(pictures()) - half).abs().max() > 1e-3
    assert (
        all(t.dtype == torch.float32 and torch.equal(t, before[n]) for n, t in exact(model).items())
        and len(before) >= 4
    )


@pytest.mark.parametrize("way", ["conv", "conv + dora"])
def test_lora_on_the_heads_end_computes_in_float32(way, folder):
    """Weights rounded to half.

    Then, in float32, every operation of conv3 and its LoRA on the input as it came.
    """
    model = stirred(with_way(folder, way)).half().eval()
    layer, seen = model.head.conv3, {}
    layer.base_layer.register_forward_pre_hook(lambda _, args: seen.update(base=args[0]))
    layer.lora_A["default"].register_forward_pre_hook(lambda _, args: seen.update(lora=args[0]))
    layer.register_forward_hook(lambda _, args, result: seen.update(result=result))
    with torch.no_grad():
        model(pictures())
        a, b, base = (
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
            layer.base_layer,
        )
        assert (a.dtype, b.dtype, base.weight.dtype) == (
            torch.float16,
            torch.float16,
            torch.float32,
        )
        assert (
            torch.equal(seen["base"], seen["lora"])
            and seen["base"].dtype == torch.float32
            and (seen["base"] != seen["base"].half().float()).any()
        )
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
    assert seen["result"].dtype == torch.float32 and torch.allclose(
        seen["result"].double(), wanted, rtol=1e-3 if "dora" in way else 1e-5, atol=1e-5
    )


def test_frozen_weights_become_buffers_and_parameters_again():
    conv = nn.Sequential(Float32Conv2d(2, 3, 3, bias=False), nn.Linear(3, 2))
    before = {n: t.clone() for n, t in conv.state_dict().items()}
    to_buffers(conv)
    assert list(conv.parameters()) == [] and conv.state_dict().keys() == before.keys()
    to_parameters(conv)
    assert {n for n, p in conv.named_parameters() if p.requires_grad} == before.keys() and all(
        torch.equal(t, before[n]) for n, t in conv.state_dict().items()
    )
