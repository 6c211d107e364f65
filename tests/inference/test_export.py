"""launch/export.py: every form gives what predict gives, without depthdist."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.captures import capture
from helpers.commands import command
from helpers.runs import make_model, make_shards, train
from PIL import Image

from depthdist.geometry.depth_range import normalize_depth
from depthdist.inference.external_model import load_model


@pytest.fixture(scope="module", params=["--lora qkv", "--lora none", "--lora conv --dora"])
def exported(request, tmp_path_factory):
    """A run and what it was exported to, and the command's output.

    ONNX is of the merged network: of the first alone, each takes half a minute.
    """
    folder = tmp_path_factory.mktemp("export")
    words = request.param.split()
    assert (
        train(
            make_shards(folder, 14),
            folder / "run",
            "--epochs",
            1,
            "--model",
            make_model(folder / "dav2"),
            *words,
        ).code
        == 0
    )
    assert command("launch/evaluate.py", "--run", folder / "run", "--no-details").code == 0
    done = command(
        "launch/export.py",
        folder / "run",
        folder / "out",
        *(["--forms", "model,adapter"] if words != ["--lora", "qkv"] else []),
    )
    assert done.code == 0, done
    return folder / "run", folder / "out", done.out


def predicted(run, tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert (
        command(
            "launch/predict.py",
            tmp_path / "a.png",
            "--run",
            run,
            "--out",
            tmp_path / "out",
            "--save",
            "npy",
        ).code
        == 0
    )
    return np.load(tmp_path / "out/a_depth.npy")


def test_the_pipeline_of_transformers_predicts_the_same(exported, tmp_path):
    from transformers import pipeline

    run, out, _ = exported
    rgb = capture(3, size=(90, 130))[0]
    depth = predicted(run, tmp_path, rgb)
    predicted_target = pipeline("depth-estimation", str(out / "model"), device="cpu")(
        Image.fromarray(rgb)
    )["predicted_depth"]
    _, record = load_model(str(run))
    target, _ = normalize_depth(torch.from_numpy(depth), record.bounds)
    inside = (predicted_target > 0.01) & (
        predicted_target < 0.99
    )  # what lies beyond the bounds is cut off in mm
    assert predicted_target.shape == depth.shape
    assert inside.float().mean() > 0.2
    assert (predicted_target - target)[inside].abs().max() < 1e-4
    low, scale = map(
        float,
        re.search(
            r"z = 1 / \(([\d.e+-]+) \+ d \* ([\d.e+-]+)\)", (out / "model/README.md").read_text()
        ).groups(),
    )
    assert np.abs(1 / (low + predicted_target.clamp(min=0).numpy() * scale) - depth).max() < 0.05, (
        "the card's formula gives the millimetres"
    )


def test_an_exported_model_is_a_run_of_predict_and_a_base_to_go_on_from(exported, tmp_path):
    run, out, _ = exported
    rgb = capture(3)[0]
    (tmp_path / "b").mkdir()
    assert (
        np.abs(predicted(run, tmp_path, rgb) - predicted(out / "model", tmp_path / "b", rgb)).max()
        < 0.01
    )


def test_onnx_predicts_the_same_millimetres_at_the_training_size(exported):
    import onnxruntime

    run, out, printed = exported
    if not (out / "onnx").exists():
        assert "onnx" not in printed
        return
    model, record = load_model(str(run))
    rgb = np.stack([capture(i, size=tuple(record.size))[0] for i in range(3)])
    with torch.no_grad():
        from depthdist.geometry.depth_range import denormalize_depth

        wanted = denormalize_depth(model(torch.from_numpy(rgb)), record.bounds).numpy()
    for name, most in (("fp32", 0.01), ("fp16", 2.0)):
        session = onnxruntime.InferenceSession(
            str(out / f"onnx/depth_{name}.onnx"), providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {"rgb": rgb})
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() < most
        assert (
            0
            < float(re.search(rf"depth_{name}.onnx: off by at most ([\d.]+) mm", printed)[1]) + 1e-3
            < most
        )
    assert [d.name for d in session.get_inputs()] == ["rgb"]
    assert wanted.std() > 1


def test_the_bare_adapter_loads_with_plain_peft(exported):
    from peft import PeftModel
    from transformers import AutoModelForDepthEstimation

    run, out, printed = exported
    if not (run / "best/adapter_config.json").exists():
        assert not (out / "adapter").exists()
        assert "no adapter: the network trained as a whole" in printed
        return
    base = json.loads((out / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    net = PeftModel.from_pretrained(
        AutoModelForDepthEstimation.from_pretrained(base), str(out / "adapter")
    ).eval()
    model, _ = load_model(str(run))
    pixels = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (
            net(pixel_values=pixels).predicted_depth
            - model.net(pixel_values=pixels).predicted_depth
        ).abs().max() < 1e-5


def test_the_card_states_data_scores_with_intervals_bounds_and_licence(exported):
    run, out, _ = exported
    text = (out / "model/README.md").read_text()
    head = dict(line.split(": ", 1) for line in text.split("---")[1].strip().splitlines())
    evaluation, record = json.loads((run / "evaluation.json").read_text()), load_model(str(run))[1]
    assert json.loads(head["pipeline_tag"]) == "depth-estimation"
    assert json.loads(head["license"]) == "other"
    row = next(name for name in evaluation["rows"] if name.startswith("adapter"))
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    low, high = evaluation["intervals"][row]["rmse_mm"]
    assert evaluation["rows"][row]["images"] > 1
    assert f"{evaluation['rows'][row]['rmse_mm']:.2f} ({low:.2f}..{high:.2f})" in line
    for fact in (
        f"{record.near_mm:.2f} mm",
        f"{record.far_mm:.2f} mm",
        "11 captures to train, 3 to validate",
        evaluation["data_sha256"],
        "Licence",
    ):
        assert fact in text, fact
    assert str(run.parent) not in text, "no path of this machine"


def test_scores_of_another_adapter_are_not_in_the_card(exported, tmp_path):
    run, _, _ = exported
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/evaluation.json"
    evaluation = json.loads(path.read_text())
    path.write_text(json.dumps(evaluation | {"adapter": evaluation["adapter"] | {"step": 99}}))
    done = command("launch/export.py", tmp_path / "run", tmp_path / "out", "--forms", "model")
    assert done.code == 0
    assert "the card has no scores" in done.out
    assert "rmse_mm" not in (tmp_path / "out/model/README.md").read_text()


def test_a_foreign_folder_is_not_replaced(exported, tmp_path):
    run, _, _ = exported
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights.bin").write_text("years of work")
    (line,) = command("launch/export.py", run, tmp_path, "--forms", "model").errors
    assert "exists and is no export of depthdist" in line
    assert (tmp_path / "model/weights.bin").read_text() == "years of work"
    for _ in range(2):
        assert command("launch/export.py", run, tmp_path / "new", "--forms", "model").code == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--forms", "model,onx"],
            "--forms has onx: expected model, adapter, onnx; did you mean onnx?",
        ),
        (["--far-mm", "3"], "--near-mm and --far-mm: expected both or neither"),
    ],
)
def test_settings_that_cannot_work_are_one_line(tmp_path, words, text):
    (line,) = command("launch/export.py", tmp_path, tmp_path / "out", *words).errors
    assert text in line


def test_without_the_runs_data_onnx_is_checked_on_the_built_in_image(tmp_path):
    from depthdist.inference.onnx_export import load_check_images

    images, description = load_check_images(str(tmp_path), (28, 42))
    assert description == "flips of the built-in image"
    assert [tuple(rgb.shape) for rgb in images] == [(28, 42, 3)] * 4
    assert len({rgb.numpy().tobytes() for rgb in images}) == 4
    assert images[0].float().std() > 20
