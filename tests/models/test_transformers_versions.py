"""Adapters and whole networks saved under transformers 5.23 or 4.57 load under either.

They give the same output, with plain peft and transformers alone.

tests/run.sh puts transformers 4.57 into .venv/transformers-4.57; everything else is shared.
"""

import os
import subprocess
import sys

import pytest
import torch
from helpers.captures import ROOT
from helpers.commands import ON_CPU
from helpers.runs import make_model

from depthdist.models.base_model import BUILT_IN

OLDER = ROOT / ".venv/transformers-4.57"
PRESETS = {
    "qkv": {},
    "linear with DoRA": {"lora": "linear", "dora": True},
    "conv, rank-stabilized": {"lora": "conv", "rslora": True},
    "decoder trained": {"decoder": "trained"},
    "conv with DoRA": {"lora": "conv", "dora": True},
    "targets": {"lora_targets": r".*\.(fc2|conv2)"},
    "calibrated": {"calibrated": True},
    "calibrated, conv": {"lora": "conv", "calibrated": True},
    "the whole network": {"lora": "none"},
}
SAVE = """
import sys, torch
from pathlib import Path
from depthdist.core.environment import silence_libraries
from depthdist.geometry.depth_range import DepthRange
from depthdist.models.adapter import save_adapter
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.base_model import load_base
from depthdist.models.lora import add_lora
from depthdist.models.settings import LoraSettings
silence_libraries()
for name, options in {presets!r}.items():
    base = load_base({model!r})
    if options.pop("calibrated", False):
        base.rescale(0.5, 0.25)
    model = add_lora(base, LoraSettings(**options), seed=0)
    random = torch.Generator().manual_seed(0)
    weights = {{}}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            spread = parameter.data.std().nan_to_num(0.1).clamp(min=0.1)
            noise = torch.randn(parameter.shape, generator=random)
            parameter.data += 0.05 * spread * noise
            weights[key] = parameter
    bounds, when = DepthRange(250, 3900), dict(step=1, epoch=1, eval_loss=1.0)
    record = AdapterRecord.of(model, bounds, (28, 42), camera=(60, 90), **when)
    save_adapter(model, weights, record, Path({out!r}) / name)
"""
LOAD = """
import torch, transformers
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForDepthEstimation
from depthdist.synthetic.rooms import render as rooms
pixels = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(1))
found = {{"version": transformers.__version__}}


def load(folder):
    return AutoModelForDepthEstimation.from_pretrained(folder)


def predict(net, pixels):
    return net.eval()(pixel_values=pixels).predicted_depth.detach()


found["base"] = predict(load({model!r}), pixels)
for folder in Path({adapters!r}).glob("*/*"):
    net = load(folder if (folder / "model.safetensors").exists() else {model!r})
    if (folder / "adapter_config.json").exists():
        net = PeftModel.from_pretrained(net, folder)
    found[folder.parent.name, folder.name] = predict(net, pixels)
scene = rooms.render(rooms.Settings(1, (112, 182), 98), 0)
rgb = torch.from_numpy(scene.rgb).permute(2, 0, 1)[None] / 255
found["built-in"] = predict(load({built_in!r}).float(), (rgb - 0.45) / 0.225)
torch.save(found, {out!r})
"""


def python(script, older):
    """Run it in a process of its own, with the older transformers or with the installed one."""
    env = {
        **os.environ,
        **ON_CPU,
        "PYTHONPATH": os.pathsep.join([str(OLDER)] * older + [str(ROOT)]),
    }
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Output of each adapter, by whether it was loaded under the older transformers, then by
    (version it was saved under, its name)."""
    assert OLDER.is_dir(), f"{OLDER} is missing; bash tests/run.sh makes it"
    folder = tmp_path_factory.mktemp("transformers")
    model = str(make_model(folder / "dav2"))
    found = {}
    for older in (False, True):
        python(
            SAVE.format(
                presets=PRESETS,
                model=model,
                out=str(folder / "adapters" / ("newer", "older")[older]),
            ),
            older,
        )
    for older in (False, True):
        python(
            LOAD.format(
                adapters=str(folder / "adapters"),
                model=model,
                built_in=str(BUILT_IN),
                out=str(folder / f"{older}.pt"),
            ),
            older,
        )
        found[older] = torch.load(folder / f"{older}.pt")
    return found


def test_both_versions_really_took_part(outputs):
    assert outputs[True]["version"].startswith("4.57.")
    assert not outputs[False]["version"].startswith("4.")


def test_the_built_in_foundation_says_the_same_under_both(outputs):
    assert torch.equal(outputs[False]["built-in"], outputs[True]["built-in"])
    assert outputs[True]["built-in"].std() > 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_an_adapter_says_the_same_wherever_it_was_saved_and_is_loaded(name, outputs):
    first = outputs[False]["newer", name]
    assert (first - outputs[False]["base"]).abs().max() > 1e-3, (
        "an adapter that changes nothing proves nothing"
    )
    for loaded in (False, True):
        for saved in ("newer", "older"):
            assert (outputs[loaded][saved, name] - first).abs().max() == 0, (loaded, saved)
