"""The base model by name: where it comes from, what of it trains, and what is refused.

Runs as well where transformers is older than 5.18.
"""

import re
import shutil
import time

import pytest
import torch
from helpers.captures import SHARED
from helpers.models import (
    dav2_small,
    images,
    masters,
)
from safetensors.torch import load_file, save_file

from depthdist.models.base_model import IMAGENET, load_base
from depthdist.models.lora import add_lora, translate_layer_name
from depthdist.models.settings import LoraSettings, ModelSettings

pytestmark = [
    pytest.mark.usefixtures("quietly_on_one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
DINOV2 = SHARED / "weights/dinov2-small"


@pytest.fixture
def broken(dav2_folder, tmp_path):
    """A copy of a good folder that a test may break."""
    return shutil.copytree(dav2_folder, tmp_path / "da-v2")


def refused(name, said):
    with pytest.raises(ValueError) as caught:
        load_base(str(name))
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    assert said in str(caught.value), caught.value
    return str(caught.value)


# -------------------------------------------------------------------------------------- what trains


def test_the_recipe_trains_442368_of_25227457_parameters(tmp_path):
    dav2_small().save_pretrained(tmp_path / "da-v2")
    model = add_lora(load_base(str(tmp_path / "da-v2")), LoraSettings(), seed=0)
    assert model.parameter_counts() == (442_368, 25_227_457)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 36
    assert all("lora_" in name for name in trained)
    adapted = {name.split(".lora_")[0] for name in trained}
    assert len(adapted) == 36
    assert all(
        re.search(r"\.\d+\.attention\.(attention\.(query|key|value)|[qkv]_proj)$", name)
        for name in adapted
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_untrained_model_is_the_base_model_and_frozen():
    base = load_base("tiny")
    assert not any(p.requires_grad for p in base.parameters())
    assert base.fresh_decoder
    before = base(images())
    assert torch.equal(add_lora(base, LoraSettings(), 0).eval()(images()), before)


def test_a_name_that_cannot_work_is_found_with_the_settings():
    assert ModelSettings().problems() == []
    assert "no such folder" in ModelSettings("nothing").problems()[0]


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


def test_a_folder_gives_what_was_saved_in_it(dav2_folder):
    stored = load_file(dav2_folder / "model.safetensors")
    folder = load_base(str(dav2_folder))
    state = {translate_layer_name(n, True): t for n, t in folder.net.state_dict().items()}
    assert not folder.fresh_decoder
    assert len(stored) == len(state)
    assert all(torch.equal(state[translate_layer_name(n, True)], t) for n, t in stored.items())
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
    assert len(stored) > 200
    assert all(torch.equal(inside[n], t.float()) for n, t in stored.items())
    assert not any(inside[n].requires_grad for n in stored)
    decoder = {n for n in model.state_dict() if "modules_to_save" in n}
    idle = {n for n in decoder if "fusion_stage.layers.0.residual_layer1" in n}
    assert len(idle) == 4
    assert {n for n in masters(model) if "lora_" not in n} == decoder - idle
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
    assert all(
        part in line
        for part in (
            "hf download nobody/no-such-model",
            "HF_HOME",
            "--model FOLDER",
            "--model built-in",
        )
    )
    assert len(line) < 500


def test_loading_a_model_switches_tf32_off(monkeypatch):
    """Also that of matrix products: NVIDIA's containers switch it on."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True
    load_base("tiny")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
