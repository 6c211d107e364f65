"""launch/export.py of a run with a detail stage: every form gives the refined depth."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.captures import capture
from helpers.commands import ON_CPU, command
from helpers.detail_stages import write_stage
from helpers.models import masters, save_dav2, trained
from helpers.runs import make_shards, train
from PIL import Image

import depthdist
from depthdist.data.dataset import open_dataset
from depthdist.geometry.depth_range import DepthRange, denormalize_depth
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.inference import onnx_detail
from depthdist.inference.onnx_export import load_check_images
from depthdist.models.adapter import load_adapter, save_adapter
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.detail import DETAIL_FOLDER, load_detail, refine_by_detail
from depthdist.runs.run_folder import open_run

SIZE = (28, 42)  # of the network's images
CAMERA = (100, 154)  # no multiples of 32, the width not even of 4
BOUNDS = DepthRange(800.0, 1600.0)


def make_run(folder):
    """Save an adapter and a detail stage that adds relief of some mm; return their folder."""
    model = trained(save_dav2(folder / "dav2"), "calibrated")
    record = AdapterRecord.of(model, BOUNDS, SIZE, camera=CAMERA, step=1, epoch=1, eval_loss=None)
    save_adapter(model, masters(model), record, folder / "run/best")
    write_stage(folder / "run", CAMERA, gain=0.5)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run with a detail stage."""
    return make_run(tmp_path_factory.mktemp("export_detail"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """What the run was exported to without ONNX, and the command's output."""
    out = tmp_path_factory.mktemp("exported")
    done = command("launch/export.py", run, out, "--forms", "model,adapter")
    assert done.code == 0, done
    return out, done.out


def depth_of(adapter, stage, rgb):
    """Return coarse and refined depth (H, W) mm of an image by depthdist's own functions."""
    model, record = load_adapter(adapter)
    with torch.no_grad():
        pred = model(torch.from_numpy(resize_rgb(rgb, record.size))[None])
        fine = refine_by_detail(
            load_detail(stage, adapter), pred[0], torch.from_numpy(rgb), BOUNDS, torch.float32
        )
        coarse = model.upsampled(pred, rgb.shape[:2])[0]
    return tuple(denormalize_depth(target, BOUNDS).numpy() for target in (coarse, fine))


def merged(run):
    """Return the run's model with the adapter merged in, its record and its detail stage."""
    model, record = load_adapter(run / "best")
    model.net = model.net.merge_and_unload()
    return model, record, load_detail(run / DETAIL_FOLDER, run / "best")


def test_onnx_of_the_full_image_gives_the_refined_depth(run, tmp_path, capsys, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnx_detail, "PRECISIONS", {"fp32": torch.float32})  # each takes 10 s
    onnx_detail.export_detail_onnx(*merged(run), tmp_path, str(run))
    printed = capsys.readouterr().out
    path = tmp_path / "depth_detail_fp32.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = [capture(number, size=CAMERA)[0] for number in range(3)]
    (found,) = session.run(None, {"rgb": np.stack(images)})
    assert found.dtype == np.float32
    for rgb, depth_mm in zip(images, found):
        coarse, fine = depth_of(run / "best", run / DETAIL_FOLDER, rgb)
        assert np.abs(depth_mm - fine).max() < 0.1
        assert np.abs(coarse - fine).mean() > 2, "the stage adds relief"
    off_by = float(re.search(r"fp32.onnx: off by at most ([\d.]+) mm", printed)[1])
    assert off_by < 0.1
    assert "with the detail stage, 100x154, against PyTorch in float32" in printed


@pytest.mark.parametrize("rgb_size", ["camera", "train"])
def test_onnx_is_checked_on_full_images_of_the_run(tmp_path, rgb_size):
    data = make_shards(tmp_path, 4, rgb_size=rgb_size)
    assert train(data, tmp_path / "run", "--epochs", 1, "--raw", tmp_path / "raw").code == 0
    dataset = open_dataset(open_run(tmp_path / "run").data)
    wanted = dataset.full_image("val", 0, tmp_path / "raw")
    name = str(tmp_path / "run")
    images, said = load_check_images(name, dataset.depth_size, onnx_detail.load_full_images)
    assert said == "validation images"
    assert np.array_equal(images[0], wanted)
    assert onnx_detail.load_full_images(name, CAMERA) == []


def test_in_half_precision_the_graph_gives_nearly_the_same(run):
    network = onnx_detail.FullSizeModel(*merged(run), torch.float16).eval()
    rgb = capture(1, size=CAMERA)[0]
    with torch.no_grad():
        found = network(torch.from_numpy(rgb)[None])[0].numpy()
    wanted = depth_of(run / "best", run / DETAIL_FOLDER, rgb)[1]
    assert 0 < np.abs(found - wanted).max() < 5
    assert np.abs(found - wanted).mean() < 0.3


@pytest.mark.parametrize(("old", "new"), [((100, 154), (28, 42)), ((30, 60), (56, 70))])
def test_the_graph_resizes_to_the_very_levels_of_pillow(old, new):
    resize = onnx_detail.PillowResize(old, new)
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (4, *old, 3), dtype=np.uint8)
    stark = np.where(noise > 127, 255, 0).astype(np.uint8)  # overshoots at both ends
    for images in (noise, stark):
        wanted = np.stack([resize_rgb(rgb, new) for rgb in images])
        assert np.array_equal(resize(torch.from_numpy(images)).numpy(), wanted)


def test_the_exported_module_gives_the_refined_depth_without_depthdist(run, exported, tmp_path):
    out, printed = exported
    rgb = capture(3, size=CAMERA)[0]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    module = out / "model/detail.py"
    assert f"python {module} IMAGE" in printed
    (tmp_path / "depthdist.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, module, tmp_path / "a.png"],
        cwd=tmp_path,
        env={**os.environ, **ON_CPU, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "a_depth.npy")
    coarse, fine = depth_of(run / "best", run / DETAIL_FOLDER, rgb)
    assert found.dtype == np.float32
    assert np.abs(found - fine).max() < 0.1
    assert np.abs(found - coarse).mean() > 2


def test_an_exported_folder_is_a_run_of_predict_with_its_stage(run, exported):
    out, _ = exported
    rgb = capture(2, size=CAMERA)[0]
    wanted = depth_of(run / "best", run / DETAIL_FOLDER, rgb)[1]
    for form in ("model", "adapter"):
        assert np.abs(depth_of(out / form, out / form, rgb)[1] - wanted).max() < 0.1, form
        model = depthdist.load(out / form, device="cpu")
        assert model.refine == "detail", form
        found = model.predict(rgb).depth_mm  # where a CPU has units for it, in bfloat16
        assert np.abs(found - wanted).mean() < 0.5, form
    with pytest.raises(ValueError, match="was trained on another adapter"):
        load_detail(out / "adapter", out / "model")


def test_a_whole_network_may_have_a_stage(exported, tmp_path):
    out, _ = exported
    shutil.copytree(out / "model", tmp_path / "run/best")
    (tmp_path / "run/best/detail.json").unlink()
    write_stage(tmp_path / "run", CAMERA)
    for where in (tmp_path / "run", tmp_path / "run/best"):
        assert depthdist.load(where, device="cpu").refine == "detail"


def test_an_exported_folder_is_exported_again_with_its_stage(exported, tmp_path):
    out, _ = exported
    done = command("launch/export.py", out / "model", tmp_path, "--forms", "model")
    assert done.code == 0, done
    stages = [load_detail(folder / "model", folder / "model").network for folder in (out, tmp_path)]
    first, again = (stage.state_dict() for stage in stages)
    assert all(torch.equal(first[name], again[name]) for name in first | again)


def test_the_card_says_how_to_get_the_coarse_and_the_fine_depth(exported):
    out, _ = exported
    text = (out / "model/README.md").read_text()
    assert '`pipeline("depth-estimation")` gives the coarse depth alone' in text
    assert "python detail.py IMAGE" in text
    assert "100x154 in training" in text
    assert "`peft` gives the coarse depth alone" in (out / "adapter/README.md").read_text()


def test_no_detail_leaves_the_stage_out(run, tmp_path):
    words = ["--forms", "model,adapter", "--no-detail"]
    assert command("launch/export.py", run, tmp_path, *words).code == 0
    names = [path.name for path in tmp_path.rglob("*")]
    assert "model.safetensors" in names
    assert not [name for name in names if name.startswith("detail")]
    for card in tmp_path.rglob("README.md"):
        assert "Fine detail" not in card.read_text()


def test_a_stage_of_another_adapter_is_one_line(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / DETAIL_FOLDER / "detail.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adapter": "0" * 64}))
    (line,) = command("launch/export.py", tmp_path / "run", tmp_path / "out").errors
    assert "was trained on another adapter" in line
    assert "--no-detail" in line
    assert not (tmp_path / "out/model").exists()
