"""What trains in each configuration: which layers, how many parameters; and what stays as it was.

Runs as well where transformers is older than 5.18.
"""

import pytest
import torch
from helpers.models import WAYS, dav2_small, images, masters, stirred, with_way
from peft.tuners.lora.layer import LoraLayer
from transformers import Dinov2Config

from depthdist.models.base_model import IMAGENET, load_base, new_depth_anything
from depthdist.models.depth_model import DepthModel
from depthdist.models.lora import IDLE, add_lora, trained_groups, translate_layer_name
from depthdist.models.sample_dropout import SampleDropout, draw_keys
from depthdist.models.settings import LoraSettings

pytestmark = [
    pytest.mark.usefixtures("quietly_on_one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
IN_DECODER = ("net.base_model.model.neck.", "net.base_model.model.head.")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A DA-V2-Small on disk, its weights random."""
    path = tmp_path_factory.mktemp("small") / "da-v2"
    dav2_small().save_pretrained(path)
    return path


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
def test_each_way_adapts_its_layers_and_no_other(way, dav2_folder):
    model = with_way(dav2_folder, way)
    assert adapted(model).keys() == EXPECTED[way]
    assert all(m.r["default"] == WAYS[way].get("lora_rank", 4) for m in adapted(model).values())
    decoder = [n for n in masters(model) if n.startswith(IN_DECODER) and "lora_" not in n]
    assert bool(decoder) == ("decoder" in way)
    assert not any(IDLE in n for n in masters(model))
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
    assert trained == COUNTS[way]
    assert total == 24_785_089 + beside
    assert (LINEAR_16, LINEAR_16 + CONV_16) == (1_327_104, 1_699_344), "as the README has them"


@pytest.mark.parametrize("way", WAYS)
def test_groups_hold_all_that_trains_once(way, dav2_folder):
    model = with_way(dav2_folder, way)
    groups = trained_groups(model)
    assert list(groups) == (["lora", "decoder"] if "decoder" in way else ["lora"])
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(
        map(id, masters(model).values())
    )
    assert {
        n for n, p in masters(model).items() if any(p is q for q in groups.get("decoder", []))
    } == {n for n in masters(model) if "modules_to_save" in n}


def test_a_regular_expression_may_use_either_spelling_and_must_fit_something(dav2_folder):
    for pattern in (r".*query", r".*\.q_proj"):
        assert adapted(with_way(dav2_folder, lora_targets=pattern)).keys() == {
            f"{layer}.attention.q_proj" for layer in LAYERS
        }
    with pytest.raises(
        ValueError,
        match=(
            r"--lora-targets 'q_proj' fits the name of no layer; there are"
            r" .*backbone.encoder.layer.N.mlp.fc1.*head.conv1"
        ),
    ) as caught:
        with_way(dav2_folder, lora_targets="q_proj")
    assert IDLE not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    everything = adapted(with_way(dav2_folder, lora_targets=".*")).keys()
    assert everything == LINEAR | CONV | {"backbone.embeddings.patch_embeddings.projection"}


def test_a_decoder_that_trains_as_a_whole_gets_no_lora_besides(dav2_folder):
    for name, settings in ((dav2_folder, {"decoder": "trained"}), ("tiny", {})):
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
            assert translate_layer_name(old, True) == translate_layer_name(new, True) == new
            assert translate_layer_name(old, False) == translate_layer_name(new, False) == old
    for name in (
        "net.head.conv1.weight",
        "net.backbone.encoder.layer.3.mlp.fc1.weight",
        "layer.3.attention.q_proj2.weight",
        "my.superattention.q_proj",
    ):
        assert translate_layer_name(name, True) == translate_layer_name(name, False) == name


# ----------------------------------------------------------- the start, the settings, the gradients


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_starts_as_its_base_model(way, dav2_folder):
    base = load_base(str(dav2_folder))
    if "calibrated" in way:
        base.rescale(0.5, 0.2)
    with torch.no_grad():
        wanted = base.eval()(images())
        found = with_way(dav2_folder, way).eval()(images())
    assert wanted.std() > 0.05
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6 if "dora" in way else 0)


def test_the_start_is_the_seeds(dav2_folder):
    first, second, other = (
        masters(add_lora(load_base(str(dav2_folder)), LoraSettings(), seed)) for seed in (0, 0, 1)
    )
    assert all(
        torch.equal(first[n], second[n]) and (torch.equal(first[n], other[n]) == ("lora_B" in n))
        for n in first
    )


def test_rank_alpha_and_dropout_are_the_settings(dav2_folder):
    model = with_way(dav2_folder, lora_rank=4, lora_alpha=2, lora_dropout=0.5)
    layers = adapted(model).values()
    assert all(
        m.lora_A["default"].weight.shape[0] == 4 and m.scaling["default"] == 0.5 for m in layers
    )
    assert [m.lora_dropout["default"].p for m in layers] == [0.5] * 18
    assert model.dropout_keys.num_layers == 18
    assert [m.layer for m in model.modules() if isinstance(m, SampleDropout)] == list(range(18))
    assert all(
        m.scaling["default"] == 2 / 4**0.5
        for m in adapted(with_way(dav2_folder, lora_rank=4, lora_alpha=2, rslora=True)).values()
    )
    assert all(
        "default" in m.lora_magnitude_vector
        for m in adapted(with_way(dav2_folder, "dora")).values()
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
def test_gradients_reach_all_that_trains_and_nothing_frozen(way, dav2_folder):
    model = stirred(with_way(dav2_folder, way, lora_dropout=0.1)).train()
    model(images(), draw_keys(0, 0, [0, 1])).mean().backward()
    without = [n for n, p in masters(model).items() if p.grad is None]
    dead = [n for n, p in masters(model).items() if p.grad is not None and not p.grad.any()]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert (without, frozen) == ([], [])
    assert all("head.conv3" in n for n in dead)
