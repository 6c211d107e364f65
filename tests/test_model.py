"""The model: what trains and what stays, under either naming of the attention layers; what it computes; what it refuses.

Runs as well where transformers is older than 5.18: python -m pytest tests/test_model.py
"""

import json
import re
import shutil
import time

import pytest
import torch
import torch.nn.functional as F
from captures import SHARED
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from depthdist.model import (
    DECODERS, IMAGENET, QKV, Float32Conv2d, ModelSettings, load_base, respelled, training_memory, with_lora,
)  # fmt: skip

pytestmark = [pytest.mark.usefixtures("quietly_on_one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning")]
DINOV2 = SHARED / "weights/dinov2-small"
NO_DROPOUT = ModelSettings(lora_dropout=0.0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a DA-V2-Small as Hugging Face stores it, its weights random."""
    hidden = 384
    layers, neck, fusion = DECODERS[hidden]
    backbone = Dinov2Config(
        image_size=518, patch_size=14, hidden_size=hidden, num_attention_heads=6, num_hidden_layers=12,
        out_indices=layers, reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=hidden, patch_size=14, neck_hidden_sizes=neck,
        fusion_hidden_size=fusion, head_in_index=-1, head_hidden_size=32,
    )  # fmt: skip
    with torch.device("meta"):  # its own start takes five seconds
        net = DepthAnythingForDepthEstimation(config)
    net.to_empty(device="cpu")
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    net.save_pretrained(folder := tmp_path_factory.mktemp("small") / "da-v2")
    return folder


@pytest.fixture(scope="module")
def saved_tiny(tmp_path_factory):
    """A DA-V2 folder in Hugging Face format of the size of `tiny`, with its own mean and standard deviation."""
    folder = tmp_path_factory.mktemp("tiny") / "da-v2"
    lively(load_base("tiny")).net.save_pretrained(folder)
    processor = {
        "image_processor_type": "DPTImageProcessor", "do_resize": True, "size": {"height": 518, "width": 518}, "keep_aspect_ratio": True,
        "ensure_multiple_of": 14, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.4, 0.45, 0.5], "image_std": [0.2, 0.25, 0.3], "do_pad": False,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def broken(saved_tiny, tmp_path):
    """A copy of a good folder that a test may break."""
    return shutil.copytree(saved_tiny, tmp_path / "da-v2")


def pictures(batch=2, size=(28, 42), seed=0):
    return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def lively(model):
    """The model with weights that let the picture through: an untrained decoder gives nearly the same everywhere."""
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.dim() > 1):
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def stirred(model, seed=0):
    """The model with LoRA that does something: B starts at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    return model


def refused(name, said):
    with pytest.raises(ValueError) as caught:
        load_base(str(name))
    assert type(caught.value) is ValueError and "\n" not in str(caught.value) and said in str(caught.value), caught.value
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- what trains


def test_the_recipe_trains_442368_of_25227457_parameters(small):
    model = with_lora(load_base(str(small)), ModelSettings(), seed=0)
    assert model.parameter_counts() == (442_368, 25_227_457)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 36 and all("lora_" in name for name in trained)
    adapted = {name.split(".lora_")[0] for name in trained}
    assert len(adapted) == 36 and all(re.search(r"\.\d+\.attention\.(attention\.(query|key|value)|[qkv]_proj)$", name) for name in adapted)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_both_spellings_of_attention_are_adapted_and_nothing_else(small):
    names = [name for name, _ in load_base(str(small)).net.named_modules()]
    for new in (True, False):
        spelled = [respelled(f".{name}.", new).strip(".") for name in names]
        found = [name for name in spelled if re.fullmatch(QKV, name)]
        assert len(found) == 36 and all(name.endswith(("_proj" if new else ("query", "key", "value"))) for name in found)


def test_respelling_goes_there_and_back_and_leaves_the_rest():
    for after, before in [("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value"), ("o_proj", "output.dense")]:
        old, new = (f"net.backbone.encoder.layer.3.attention.{part}.lora_A.weight" for part in (before, after))
        assert respelled(old, True) == respelled(new, True) == new and respelled(old, False) == respelled(new, False) == old
    for name in ("net.head.conv1.weight", "net.backbone.encoder.layer.3.mlp.fc1.weight"):
        assert respelled(name, True) == respelled(name, False) == name


def test_gradients_reach_all_that_trains_and_nothing_frozen(saved_tiny):
    for name, fresh in (("tiny", True), (str(saved_tiny), False)):
        model = stirred(with_lora(load_base(name), NO_DROPOUT, seed=0)).train()
        assert model.fresh_decoder is fresh and isinstance(model.net, PeftModel)
        model(pictures()).mean().backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        dead = [n for n, p in model.named_parameters() if p.grad is not None and "lora_" in n and not p.grad.any()]
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
        assert (without, dead, frozen) == ([], [], [])
        decoder = any(p.requires_grad and ("head" in n or "neck" in n) for n, p in model.named_parameters())
        assert decoder is fresh


def test_an_adapter_starts_as_the_base_model_and_its_start_is_the_seeds():
    base = load_base("tiny")
    assert not isinstance(base.net, PeftModel) and not any(p.requires_grad for p in base.parameters())
    before, models = base(pictures()), {}
    for run, seed in enumerate((0, 0, 1)):
        torch.manual_seed(100 + run)
        models[run] = {n: p.detach().clone() for n, p in with_lora(load_base("tiny"), ModelSettings(), seed).named_parameters()}
    assert torch.equal(with_lora(base, ModelSettings(), 0).eval()(pictures()), before)
    lora_a = [n for n in models[0] if "lora_A" in n]
    assert all(torch.equal(models[0][n], models[1][n]) for n in models[0])
    assert lora_a and not any(torch.equal(models[0][n], models[2][n]) for n in lora_a)


def test_rank_alpha_and_dropout_are_the_settings():
    model = with_lora(load_base("tiny"), ModelSettings(lora_rank=4, lora_alpha=2, lora_dropout=0.5), seed=0)
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")]
    assert len(layers) == 18 and all(m.lora_A["default"].weight.shape[0] == 4 and m.scaling["default"] == 0.5 for m in layers)
    assert all(m.lora_dropout["default"].p == 0.5 for m in layers)


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 0), ("lora_alpha", -1), ("lora_dropout", 1.0), ("lora_dropout", float("nan"))])
def test_settings_that_cannot_work_are_one_line_each(name, value):
    (line,) = ModelSettings(**{name: value}).problems()
    assert f"--{name.replace('_', '-')} is {value}" in line
    assert ModelSettings().problems() == []


# ------------------------------------------------------------------------------------------------------- base models


def test_tiny_is_the_same_in_every_process_and_version():
    first = load_base("tiny")
    torch.manual_seed(12345)
    torch.rand(7)
    again = load_base("tiny")
    state = {respelled(n, True): t for n, t in first.net.state_dict().items()}
    assert all(torch.equal(state[respelled(n, True)], t) for n, t in again.net.state_dict().items())
    assert sum(p.numel() for p in first.parameters()) == 1_116_129
    # written down: adapters were learnt on these; neither the process nor transformers' own start may move them
    pinned = {
        "backbone.embeddings.patch_embeddings.projection.weight": [0.0125021944, 0.0269645751, -0.0444888622],
        "backbone.encoder.layer.0.attention.q_proj.weight": [0.0120634204, 0.1025884673, -0.1870428622],
        "backbone.encoder.layer.0.layer_scale1.lambda1": [1.0, 1.0, 1.0],
        "neck.fusion_stage.layers.0.projection.weight": [0.0925728753, 0.1005305573, -0.0800264701],
        "head.conv1.weight": [-0.0171311293, 0.0215773601, 0.0661270693],
    }
    for name, values in pinned.items():
        assert state[name].flatten()[:3].tolist() == pytest.approx(values, rel=1e-5), name


def test_a_folder_gives_what_was_saved_in_it(saved_tiny):
    saved, folder = lively(load_base("tiny")), load_base(str(saved_tiny))
    state = folder.net.state_dict()
    assert not folder.fresh_decoder and all(torch.equal(t, state[n]) for n, t in saved.net.state_dict().items())
    assert not any(p.requires_grad for p in folder.parameters())


@pytest.mark.skipif(not DINOV2.exists(), reason=f"{DINOV2} is not here")
def test_a_dinov2_backbone_keeps_its_weights_and_gets_a_fresh_decoder_that_trains():
    model = with_lora(load_base(str(DINOV2)), ModelSettings(), seed=0)
    assert model.fresh_decoder
    inside = {respelled(n.replace(".base_layer.", "."), True).split("backbone.")[-1]: p for n, p in model.named_parameters() if "backbone." in n}
    stored = {respelled("." + n, True)[1:]: t for n, t in load_file(DINOV2 / "model.safetensors").items()}
    assert len(stored) > 200 and all(torch.equal(inside[n], t.float()) for n, t in stored.items())
    assert not any(inside[n].requires_grad for n in stored)
    decoder = {n: p for n, p in model.named_parameters() if "modules_to_save" in n}
    idle = [n for n, p in decoder.items() if not p.requires_grad]
    assert idle and all("fusion_stage.layers.0.residual_layer1" in n for n in idle)
    num_decoder, num_idle = sum(p.numel() for p in decoder.values()), sum(decoder[n].numel() for n in idle)
    assert model.parameter_counts() == (442_368 + num_decoder - num_idle, 25_227_457)
    assert tuple(model.mean.flatten().tolist()) == pytest.approx(IMAGENET[0])


BROKEN = {
    "no config.json": (lambda f: (f / "config.json").unlink(), "expected a folder in Hugging Face format, with config.json"),
    "a config.json that is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "another kind of model": (lambda f: (f / "config.json").write_text('{"model_type": "vit"}'), "model_type 'vit'; expected depth_anything or dinov2"),
    "a backbone of another size": (lambda f: (f / "config.json").write_text('{"model_type": "dinov2", "hidden_size": 100}'), "384, 768, 1024, 1536"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "another rescaling": (lambda f: (f / "preprocessor_config.json").write_text('{"rescale_factor": 1}'), "expected 1/255"),
    "some tensors missing": (lambda f: edit_weights(f, lambda s: {n: t for n, t in s.items() if ".layer.3." not in n}), "the weights lack 18 tensors"),
    "weights cut short": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:9999]), "cannot be loaded"),
    "a tensor of another shape": (lambda f: edit_weights(f, lambda s: {**s, "head.conv1.weight": s["head.conv1.weight"][:5].clone()}), "--model"),
    "a config.json that is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "a processor that is no JSON": (lambda f: (f / "preprocessor_config.json").write_text("{"), "preprocessor_config.json"),
}


def edit_weights(folder, edit):
    save_file(edit(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_line(case, broken):
    damage, said = BROKEN[case]
    damage(broken)
    assert str(broken) in refused(broken, said)


@pytest.mark.parametrize("name", ["no-such-model", "./a/b", "a/b/c", "/no/such/folder", "~/no-such-folder"])
def test_a_name_that_is_nothing_is_one_line(name):
    assert name in refused(name, "no such folder, and not a hub id (owner/name) or `tiny`")


def test_a_hub_that_cannot_be_reached_is_one_line_with_the_ways_out_and_at_once(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    line = refused("nobody/no-such-model", "--model nobody/no-such-model")
    assert time.monotonic() - started < 5
    assert all(part in line for part in ("hf download nobody/no-such-model", "HF_HOME", "--model FOLDER", "--model tiny")) and len(line) < 500


# ------------------------------------------------------------------------------------------------------- what it computes


def test_forward_equals_the_models_own_processor_and_the_plain_model(saved_tiny):
    """Nobody's code but transformers': DPTImageProcessor and DepthAnythingForDepthEstimation as the folder holds them."""
    processor = AutoImageProcessor.from_pretrained(saved_tiny, use_fast=False)
    rgb = pictures(2, (42, 56))
    inputs = processor([Image.fromarray(p.numpy()) for p in rgb], do_resize=False, return_tensors="pt")
    plain = DepthAnythingForDepthEstimation.from_pretrained(saved_tiny).eval()
    with torch.no_grad():
        expected, found = plain(**inputs).predicted_depth, load_base(str(saved_tiny)).eval()(rgb)
    assert found.shape == (2, 42, 56) and found.dtype == torch.float32
    assert found.std() > 1e-2 and torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_each_picture_is_its_own(saved_tiny):
    model, rgb = load_base(str(saved_tiny)).eval(), pictures(3)
    with torch.no_grad():
        assert torch.allclose(model(rgb), torch.cat([model(p[None]) for p in rgb]), atol=1e-6) and (model(rgb) >= 0).all()


def test_float32_convolutions_stay_float32_after_half():
    torch.manual_seed(0)
    conv, x = Float32Conv2d(8, 3, 3, padding=1).half(), torch.randn(2, 8, 6, 7).half()
    found = conv(x)
    assert conv.weight.dtype == torch.float16 and found.dtype == torch.float32
    assert torch.equal(found, F.conv2d(x.float(), conv.weight.float(), conv.bias.float(), padding=1))
    assert (found != found.half().float()).any(), "no rounding to half"
    assert Float32Conv2d(8, 3, 1, bias=False).half()(x).dtype == torch.float32


def test_a_model_in_half_precision_ends_in_float32():
    model = load_base("tiny")
    assert [type(layer) for layer in (model.net.head.conv2, model.net.head.conv3)] == [Float32Conv2d] * 2
    assert {id(p) for p in model.frozen_float32()} == {id(p) for layer in (model.net.head.conv2, model.net.head.conv3) for p in layer.parameters()}
    with torch.no_grad():
        full, half = lively(model)(pictures()), model.to(torch.bfloat16)(pictures())
    assert half.dtype == torch.float32 and (half != half.bfloat16().float()).float().mean() > 0.5
    assert torch.allclose(half, full, rtol=0.1)


# ------------------------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def tiny_with_lora():
    return with_lora(load_base("tiny"), ModelSettings(), seed=0)


def saved_for_the_way_back(model, size, batch):
    """Bytes that autograd really holds after a forward pass: each storage once, parameters not."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(pictures(batch, size))
    return sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in own)


def test_memory_of_weights_and_optimizer_is_counted_by_hand(tiny_with_lora):
    trained, total = tiny_with_lora.parameter_counts()
    full, half = (training_memory(tiny_with_lora, (28, 42), 1, precision) for precision in ("fp32", "fp16"))
    assert full["weights"] == 4 * total and half["weights"] == 2 * total
    # gradient, and Adam's two moments; in fp16 the gradient is half, and there is the master
    assert full["gradients, masters and optimizer"] == 12 * trained and half["gradients, masters and optimizer"] == 14 * trained
    assert half["activations"] == full["activations"] // 2 > 0
    assert next(tiny_with_lora.parameters()).device.type == "cpu", "the model itself stays where it is"


def test_memory_of_activations_grows_with_the_micro_batch_and_the_picture(tiny_with_lora):
    one, two, four = (training_memory(tiny_with_lora, (224, 336), batch, "fp32")["activations"] for batch in (1, 2, 4))
    assert (four - two) == pytest.approx(2 * (two - one), rel=1e-3) and two > 1.8 * one
    assert training_memory(tiny_with_lora, (224, 672), 1, "fp32")["activations"] > 1.8 * one


@pytest.mark.parametrize("size", [(28, 42), (224, 336)])
def test_memory_of_activations_is_what_autograd_keeps(tiny_with_lora, size):
    needed = saved_for_the_way_back(tiny_with_lora, size, 2)
    assert training_memory(tiny_with_lora, size, 2, "fp32")["activations"] == pytest.approx(needed, rel=0.1)
