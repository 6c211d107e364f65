"""Adapters that plain peft saved, under either naming of the attention layers.

What `--run` may name; what is expected where it cannot be.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.captures import ROOT, capture
from helpers.commands import ON_CPU, command
from helpers.runs import make_model, train
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from depthdist.core.settings import Size
from depthdist.inference.external_model import load_model, model_kind
from depthdist.inference.settings import ExternalAdapterSettings
from depthdist.models.base_model import BUILT_IN

OLDER = ROOT / ".venv/transformers-4.57"
EXTERNAL = ExternalAdapterSettings(near_mm=300.0, far_mm=4000.0, size=Size(28, 42))
TARGETS = {  # as written without knowledge of the other naming
    "suffixes": {"target_modules": (["q_proj", "v_proj", "fc2"], ["query", "value", "fc2"])},
    "a pattern": {
        "target_modules": (
            r".*attention\.(q_proj|o_proj)",
            r".*attention\.(attention\.query|output\.dense)",
        )
    },
    "all linear": {"target_modules": ("all-linear", "all-linear")},
}
OTHERS = {
    "one layer": {"target_modules": (["q_proj"], ["query"])},
    "a saved module and ranks": {
        "target_modules": (["q_proj", "fc1"], ["query", "fc1"]),
        "modules_to_save": (["head"],) * 2,
        "rank_pattern": ({r".*layer\.0\..*q_proj": 2}, {r".*layer\.0\..*query": 2}),
    },
}
SAVE = """
import sys, torch
sys.path[:0] = {path!r}
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForDepthEstimation

for out, settings in {adapters!r}.items():
    torch.manual_seed(0)
    base = AutoModelForDepthEstimation.from_pretrained({model!r})
    net = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, **settings))
    for name, p in net.named_parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.05)
    net.eval().save_pretrained(out)
    pixels = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    depth = net(pixel_values=pixels).predicted_depth.detach()
    torch.save((transformers.__version__, depth), out + "/expected.pt")
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("outside") / "dav2")


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """A function that returns a fresh copy of an adapter's folder and its expected output.

    Plain peft saved it, under the older transformers or this one.
    """
    folders = {}

    def save(older, case):
        assert not older or OLDER.is_dir(), f"{OLDER} is missing; bash tests/run.sh makes it"
        if older not in folders:
            folders[older] = tmp_path_factory.mktemp("adapters")
            adapters = {
                str(folders[older] / name): {key: values[older] for key, values in settings.items()}
                for name, settings in (TARGETS | OTHERS).items()
            }
            script = SAVE.format(
                path=[str(OLDER)] if older else [], model=str(base), adapters=adapters
            )
            done = subprocess.run(
                [sys.executable, "-c", script],
                capture_output=True,
                text=True,
                env={**os.environ, **ON_CPU},
            )
            assert done.returncode == 0, done.stderr
        out = shutil.copytree(folders[older] / case, tmp_path_factory.mktemp("copy") / "adapter")
        version, expected = torch.load(out / "expected.pt")
        assert version.startswith("4.57.") == older
        return out, expected

    return save


def output_of(model):
    pixels = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.net(pixel_values=pixels).predicted_depth


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("what", TARGETS)
def test_an_adapter_of_plain_peft_predicts_the_same_under_either_naming(saved, base, what, older):
    folder, expected = saved(older, what)
    model, record = load_model(str(folder), EXTERNAL)
    assert (output_of(model) - expected).abs().max() < 1e-5
    assert expected.std() > 0.1
    assert (record.near_mm, record.far_mm, record.size, record.model) == (
        300.0,
        4000.0,
        (28, 42),
        str(base),
    )
    with torch.no_grad(), model.net.disable_adapter():
        assert (output_of(model) - expected).abs().max() > 1e-4, "the adapter does something"


@pytest.mark.parametrize("older", [False, True])
def test_saved_modules_and_ranks_per_layer_are_loaded(saved, older):
    folder, expected = saved(older, "a saved module and ranks")
    assert (output_of(load_model(str(folder), EXTERNAL)[0]) - expected).abs().max() < 1e-5


def test_predict_writes_depth_in_mm_of_a_peft_adapter(saved, tmp_path):
    folder, _ = saved(True, "one layer")
    Image.fromarray(capture(2)[0]).save(tmp_path / "a.png")
    words = [
        "launch/predict.py",
        tmp_path / "a.png",
        "--run",
        folder,
        "--out",
        tmp_path / "out",
        "--save",
        "npy",
    ]
    (line,) = command(*words).errors
    assert "no depthdist.json" in line
    assert "--near-mm" in line
    assert "--far-mm" in line
    assert command(*words, "--near-mm", 300, "--far-mm", 4000, "--size", "28x42").code == 0
    depth = np.load(tmp_path / "out/a_depth.npy")
    assert depth.min() > 0
    assert depth.max() <= 4000


def test_a_whole_model_needs_a_depth_range_too(base):
    model, record = load_model(str(base), EXTERNAL)
    assert record.bounds.near_mm == 300.0
    assert output_of(model).shape == (1, 28, 42)
    with pytest.raises(ValueError, match=r"no depthdist\.json"):
        load_model(str(base))


def test_a_model_that_predicts_no_normalized_depth_is_refused(base, tmp_path):
    Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6)).save_pretrained(
        tmp_path / "dinov2"
    )
    with pytest.raises(
        ValueError, match="a backbone alone, without a decoder: it predicts no depth"
    ):
        load_model(str(tmp_path / "dinov2"), EXTERNAL)
    with pytest.raises(
        ValueError,
        match=r"does not predict normalized depth of 0\.\.1: half of a test image is above",
    ):
        load_model(str(BUILT_IN), EXTERNAL)
    shutil.copytree(base, tmp_path / "metric")
    config = json.loads((tmp_path / "metric/config.json").read_text())
    (tmp_path / "metric/config.json").write_text(
        json.dumps(config | {"depth_estimation_type": "metric", "max_depth": 20})
    )
    with pytest.raises(ValueError, match="it predicts depth itself, up to 20"):
        load_model(str(tmp_path / "metric"), EXTERNAL)


def test_an_adapter_of_depthdist_finds_a_moved_base_and_needs_no_depth_range(
    data, batch4, base, tmp_path
):
    shutil.copytree(base, tmp_path / "there")
    assert (
        train(
            data, tmp_path / "run", "--model", tmp_path / "there", "--epochs", 1, deepspeed=batch4
        ).code
        == 0
    )
    before = output_of(load_model(str(tmp_path / "run"))[0])
    (tmp_path / "there").rename(tmp_path / "here")
    with pytest.raises(ValueError, match="there"):
        load_model(str(tmp_path / "run"))
    assert torch.equal(
        output_of(
            load_model(str(tmp_path / "run"), ExternalAdapterSettings(base=str(tmp_path / "here")))[
                0
            ]
        ),
        before,
    )
    with pytest.raises(ValueError, match=r"depthdist\.json says what its output is in mm"):
        load_model(str(tmp_path / "run"), EXTERNAL)


def edited(folder, change):
    stored = load_file(folder / "adapter_model.safetensors")
    save_file(change(stored), folder / "adapter_model.safetensors")


WRONG = {
    "not LoRA": (lambda f: written(f, peft_type="IA3"), "it is of the kind IA3; expected LORA"),
    "no base": (
        lambda f: written(f, base_model_name_or_path=None),
        "it names no base model; give --base",
    ),
    "a base that is gone": (
        lambda f: written(f, base_model_name_or_path="/no/such/base"),
        "/no/such/base: no such folder",
    ),
    "not JSON": (
        lambda f: (f / "adapter_config.json").write_text("{"),
        "not an adapter of peft's that can be read",
    ),
    "weights gone": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "not an adapter of peft's that can be read",
    ),
    "weights cut short": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"123"),
        "not an adapter of peft's that can be read",
    ),
    "layers that are not there": (
        lambda f: edited(f, lambda s: {n.replace("layer.0", "layer.77"): t for n, t in s.items()}),
        "more layers that",
    ),
    "another width": (
        lambda f: edited(
            f, lambda s: {n: t[:, :-1].contiguous() if "lora_A" in n else t for n, t in s.items()}
        ),
        "does not fit",
    ),
    "half of it": (
        lambda f: edited(f, lambda s: {n: t for n, t in s.items() if "lora_B" not in n}),
        "did not enter",
    ),
    "no LoRA": (
        lambda f: edited(f, lambda s: {"base_model.model.head.conv3.bias": torch.zeros(1)}),
        "it holds no LoRA weights",
    ),
}


def written(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("case", WRONG)
def test_a_broken_adapter_is_one_line(saved, case):
    folder, _ = saved(False, "one layer")
    damage, text = WRONG[case]
    damage(folder)
    with pytest.raises(ValueError) as err:
        load_model(str(folder), EXTERNAL)
    assert text in str(err.value), err.value
    assert "\n" not in str(err.value), err.value


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ValueError,
        match=(
            "--run nobody/nothing: no such folder, and the hub has no such model or cannot be"
            " reached"
        ),
    ):
        load_model("nobody/nothing")


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["depthdist.json", "adapter_config.json"], "adapter"),
        (["depthdist.json", "config.json"], "adapter"),
        (["best/depthdist.json"], "run"),
        (["adapter_config.json", "config.json"], "peft adapter"),
        (["config.json"], "full model"),
        (["run.json"], "unknown"),
    ],
)
def test_a_folders_files_tell_what_kind_of_model_it_holds(tmp_path, files, kind):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    assert model_kind(tmp_path) == kind
