"""Adapters on disk: the same output with plain peft, one line on damage, no loss in a crash.

Runs as well where transformers is older than 5.18.
"""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.models import images, lively, masters, output
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
)

from depthdist.geometry.depth_range import DepthRange
from depthdist.models import adapter as checkpoint
from depthdist.models.adapter import load_adapter, save_adapter
from depthdist.models.adapter_record import WEIGHTS, AdapterRecord, read_record
from depthdist.models.base_model import IMAGENET, load_base
from depthdist.models.fast_decoder import speed_up_decoder
from depthdist.models.lora import add_lora, translate_layer_name
from depthdist.models.settings import LoraSettings

pytestmark = [
    pytest.mark.usefixtures("quietly_on_one_thread"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
RECORD = AdapterRecord(
    model="tiny",
    near_mm=251.74,
    far_mm=3907.45,
    height=28,
    width=42,
    mean=IMAGENET[0],
    std=IMAGENET[1],
    step=90,
    epoch=15,
    eval_loss=0.1097,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A whole DA-V2 in Hugging Face format, small: its decoder is not fresh."""
    folder = tmp_path_factory.mktemp("base") / "da-v2"
    net = lively(load_base("tiny")).net
    net.save_pretrained(folder)
    return folder


def trained(name, rank=4):
    """A model whose trained weights all differ from their start."""
    model = add_lora(load_base(name), LoraSettings(lora_rank=rank), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in masters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=["whole", "fresh"])
def saved(request, base, tmp_path_factory):
    """(model, record, folder): a trained model and its adapter, on a whole DA-V2 and where the
    decoder was fresh."""
    record = replace(RECORD, model=str(base) if request.param == "whole" else "tiny")
    model = trained(record.model)
    folder = tmp_path_factory.mktemp("run") / "best"
    save_adapter(model, masters(model), record, folder)
    return model, record, folder


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of the adapter that a test may damage."""
    return shutil.copytree(saved[2], tmp_path / "best")


# --------------------------------------------------------------------------------------- round trip


def test_our_own_loading_gives_the_same_output_and_record(saved):
    model, record, folder = saved
    loaded, found = load_adapter(folder)
    assert found == record
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(output(loaded), output(model))
    assert (output(model) - output(load_base(record.model))).std() > 1e-3, (
        "the adapter does something"
    )


def test_plain_peft_gives_the_same_output(saved):
    """Nothing of ours loads here but the base model where it is `tiny`."""
    model, record, folder = saved
    net = (
        load_base("tiny").net
        if record.model == "tiny"
        else DepthAnythingForDepthEstimation.from_pretrained(record.model)
    )
    plain = PeftModel.from_pretrained(net, str(folder)).eval()
    pixels = (images().permute(0, 3, 1, 2).float() / 255 - model.mean) / model.std
    with torch.no_grad():
        assert (plain(pixel_values=pixels).predicted_depth - output(model)).abs().max() < 1e-6, (
            "but for the order of the decoder's sums"
        )
        speed_up_decoder(plain.get_base_model())
        assert (plain(pixel_values=pixels).predicted_depth - output(model)).abs().max() == 0.0


def test_a_network_that_trained_as_a_whole_is_kept_as_the_hubs_are(base, tmp_path):
    """Every weight that has a part in the output trains.

    What is kept is a base model for anybody, named as the hub's files name it.
    """
    model = add_lora(load_base(str(base)), LoraSettings(lora="none"), seed=0)
    idle = {n for n, p in load_base(str(base)).named_parameters() if p.requires_grad is False} - {
        n for n, p in model.named_parameters()
    }
    assert idle
    assert all("mask_token" in n or "fusion_stage.layers.0.residual_layer1" in n for n in idle)
    model(images()).sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    with torch.no_grad():
        for i, parameter in enumerate(masters(model).values()):
            parameter += 0.02 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(i)
            )
    save_adapter(model.eval(), masters(model), replace(RECORD, model=str(base)), tmp_path / "best")
    loaded, found = load_adapter(tmp_path / "best")
    assert found == replace(RECORD, model=str(base))
    assert torch.equal(output(loaded), output(model))
    assert torch.equal(output(load_base(str(tmp_path / "best"))), output(model))
    assert all(
        name == translate_layer_name(name, new=False)
        for name in load_file(tmp_path / "best/model.safetensors")
    )
    plain = DepthAnythingForDepthEstimation.from_pretrained(tmp_path / "best").eval()
    seen = AutoImageProcessor.from_pretrained(tmp_path / "best")(
        list(images().numpy()), return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        assert (plain(pixel_values=seen).predicted_depth - output(model)).abs().max() < 1e-5


def test_every_tensor_is_stored_in_both_spellings_in_float32(saved):
    model, _, folder = saved
    stored = load_file(folder / WEIGHTS)
    for new in (True, False):
        keys = {translate_layer_name(name, new) for name in stored}
        assert keys <= set(stored)
        assert all(torch.equal(stored[translate_layer_name(n, new)], t) for n, t in stored.items())
        letters = [
            f".attention.{word}.lora_{ab}.weight"
            for word in (
                ["q_proj", "k_proj", "v_proj"]
                if new
                else ["attention.query", "attention.key", "attention.value"]
            )
            for ab in "AB"
        ]
        assert sum(n.endswith(end) for n in keys for end in letters) == 6 * 6, (
            "6 layers x q, k, v x A, B"
        )
    assert {t.dtype for t in stored.values()} == {torch.float32}
    inside = {
        translate_layer_name(
            n.removeprefix("net.").replace(".default", "").replace(".modules_to_save", ""), True
        ): p
        for n, p in masters(model).items()
    }
    assert all(torch.equal(stored[n], p) for n, p in inside.items())
    decoder = [n for n in stored if ".neck." in n or ".head." in n]
    assert bool(decoder) == model.fresh_decoder
    assert len(stored) == 2 * 36 + len(decoder)
    assert not any(
        p.startswith("base_model.model.backbone") and "lora_" not in p for p in stored
    ), "nothing frozen"


def test_the_configuration_is_pefts_own_and_fits_both_spellings(saved):
    config = json.loads((saved[2] / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == 4
    assert isinstance(config["target_modules"], str)
    assert sorted(p.name for p in saved[2].iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "depthdist.json",
    ]


def test_an_adapter_of_the_other_version_of_transformers_loads(saved, damaged):
    """Whichever spelling is ours here, the file holds what the other writes: the keys are the same
    after respelling."""
    stored = load_file(damaged / WEIGHTS)
    net = load_base("tiny").net
    ours_is_new = any(".attention.q_proj" in n for n, _ in net.named_modules())
    only_ours = {n: t for n, t in stored.items() if translate_layer_name(n, ours_is_new) == n}
    save_file(only_ours, damaged / WEIGHTS, metadata={"format": "pt"})
    assert torch.equal(output(load_adapter(damaged)[0]), output(saved[0]))


def test_masters_are_stored_and_not_the_half_precision_copies(base, tmp_path):
    for name in ("tiny", str(base)):
        model = trained(name)
        exact = {n: p.detach().clone() for n, p in masters(model).items()}
        save_adapter(model.half(), exact, replace(RECORD, model=name), tmp_path / "best")
        loaded = dict(load_adapter(tmp_path / "best")[0].named_parameters())
        assert all(torch.equal(loaded[n], t) for n, t in exact.items())
        assert any((t != t.half().float()).any() for t in exact.values())


def test_a_loaded_adapter_can_be_saved_again(saved, tmp_path):
    model, record, folder = saved
    loaded, _ = load_adapter(folder)
    weights = {n: p for n, p in loaded.named_parameters() if n in masters(model)}
    save_adapter(loaded, weights, record, tmp_path / "again")
    first = load_file(folder / WEIGHTS)
    second = load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(t, second[n]) for n, t in first.items())


def test_the_record_gives_bounds_and_size(saved):
    record = read_record(saved[2])
    assert record.bounds == DepthRange(251.74, 3907.45)
    assert record.size == (28, 42)
    with pytest.raises(ValueError, match="near < far"):
        replace(record, far_mm=1.0)


# ------------------------------------------------------------------------------------------- damage


def refused(folder, *said):
    with pytest.raises(ValueError) as caught:
        load_adapter(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in said), text
    return text


def edit_weights(folder, edit):
    save_file(
        {n: t.clone() for n, t in edit(load_file(folder / WEIGHTS)).items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )


def edit_json(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(
        json.dumps({k: v for k, v in {**content, **changes}.items() if v != "gone"})
    )


def without(name, part):
    return lambda folder: edit_json(folder, name, **{part: "gone"})


DAMAGE = {
    "no record": lambda f: (f / "depthdist.json").unlink(),
    "a record cut short": lambda f: (f / "depthdist.json").write_text('{"model": "ti'),
    "a record without bounds": without("depthdist.json", "near_mm"),
    "a record with more than is known": lambda f: edit_json(f, "depthdist.json", colour="red"),
    "a record that is a list": lambda f: (f / "depthdist.json").write_text("[]"),
    "a base model that is gone": lambda f: edit_json(f, "depthdist.json", model="./no/such/folder"),
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "weights cut short": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1000]),
    "weights that are empty": lambda f: (f / WEIGHTS).write_bytes(b""),
    "no configuration": lambda f: (f / "adapter_config.json").unlink(),
    "a configuration cut short": lambda f: (f / "adapter_config.json").write_text('{"r": 4,'),
    "another rank": lambda f: edit_json(f, "adapter_config.json", r=8),
    "keys of another project": lambda f: edit_weights(
        f, lambda s: {n.replace("backbone", "encoder_of_others"): t for n, t in s.items()}
    ),
    "no tensor at all": lambda f: edit_weights(f, lambda s: {"other": torch.zeros(1)}),
    "LoRA's B missing": lambda f: edit_weights(
        f, lambda s: {n: t for n, t in s.items() if "lora_B" not in n}
    ),
    "one layer missing": lambda f: edit_weights(
        f, lambda s: {n: t for n, t in s.items() if "layer.2." not in n}
    ),
    "a nan": lambda f: edit_weights(f, lambda s: {n: t * math.nan for n, t in s.items()}),
    "only queries as targets": lambda f: edit_json(
        f, "adapter_config.json", target_modules=r".*\.attention\.(?:attention\.query|q_proj)"
    ),
    "the decoder not named": lambda f: edit_json(f, "adapter_config.json", modules_to_save=None),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_adapter_is_refused_in_one_line_that_names_its_folder(case, saved, damaged):
    if case == "the decoder not named" and not saved[0].fresh_decoder:
        pytest.skip("this adapter has no decoder")
    DAMAGE[case](damaged)
    refused(damaged, "./no/such/folder" if case == "a base model that is gone" else str(damaged))


def test_an_adapter_that_stays_outside_is_never_silently_the_base_model(saved, damaged):
    """peft itself loads such keys with a warning only, and gives the base model back."""
    DAMAGE["keys of another project"](damaged)
    net = load_base(saved[1].model).net
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(net, str(damaged))
    assert "did not enter" in refused(damaged, str(damaged), saved[1].model)


def test_an_adapter_of_a_model_of_another_width_is_refused(saved, damaged, tmp_path):
    backbone = Dinov2Config(
        image_size=224,
        hidden_size=48,
        num_attention_heads=3,
        num_hidden_layers=6,
        out_indices=[2, 3, 5, 6],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=48,
        neck_hidden_sizes=[24, 48, 96, 96],
        fusion_hidden_size=32,
        head_hidden_size=16,
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / "narrow")
    edit_json(damaged, "depthdist.json", model=str(tmp_path / "narrow"))
    refused(damaged, str(damaged))


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    refused(tmp_path / "best", str(tmp_path / "best"), "no adapter here")


# ------------------------------------------------------------------------------------------ crashes


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_while_saving_leaves_the_old_adapter_whole(error, saved, damaged, monkeypatch):
    model, record, _ = saved
    before = {p.name: p.read_bytes() for p in damaged.iterdir()}

    def dies(state, path, **how):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", dies)
    expected = (
        (ValueError, "the disk full") if isinstance(error, OSError) else (KeyboardInterrupt, None)
    )
    with pytest.raises(expected[0], match=expected[1]):
        save_adapter(model, masters(model), replace(record, step=91), damaged)
    assert {p.name: p.read_bytes() for p in damaged.iterdir()} == before
    assert [p.name for p in damaged.parent.iterdir()] == ["best"], "nothing is left beside it"


def test_an_adapter_is_found_where_a_crash_came_between_the_renames(saved, damaged):
    damaged.rename(damaged.with_name("best.old"))
    assert read_record(damaged) == saved[1]
    assert torch.equal(output(load_adapter(damaged)[0]), output(saved[0]))
