"""launch/train.py as a person types it: what a run leaves, and what it says about wrong settings.

(Going on: test_resume.py.)
"""

import json

import numpy as np
import pytest
import torch
from helpers.captures import ROOT
from helpers.commands import Launch, command
from helpers.runs import log, make_shards, train
from helpers.tensorboard_tabs import board, hparams_rows
from PIL import Image

from depthdist.core.file_lock import hold_folder

EPOCHS, LR = 8, 1e-3
FP32 = ROOT / "ds_configs/fp32.json"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Something to learn: tilted planes, 1000 to 1400 mm away, near is bright.

    11 samples for training, 3 for validation.
    """
    folder = tmp_path_factory.mktemp("scene")
    (folder / "raw").mkdir()
    row, column = np.mgrid[-15:15, -20:20]
    for i in range(14):
        rng = np.random.default_rng(i)
        z = 1200 + rng.uniform(-200, 200) + rng.uniform(-6, 6) * row + rng.uniform(-6, 6) * column
        grey = np.clip((1600 - z) / 800 * 255, 0, 255).astype(np.uint8)
        Image.fromarray(np.stack([grey] * 3, axis=2)).save(folder / f"raw/{i}.png")
        z[rng.random(z.shape) < 0.1] = np.nan
        np.save(
            folder / f"raw/{i}.npy",
            np.stack([column * z / 50, row * z / 50, z], axis=2).astype(np.float32),
        )
    return make_shards(folder)


@pytest.fixture(scope="module", autouse=True)
def at_work(scene, tmp_path_factory):
    """Two commands through the launcher, at work while the tests of one process run: a good one,
    and one with wrong settings."""
    run = tmp_path_factory.mktemp("runs") / "typed"
    words = [
        "launch/train.py",
        "--deepspeed",
        "ds_configs/fp32.json",
        "--data",
        scene,
        "--model",
        "tiny",
    ]
    good = Launch(2, *words, "--run", run, "--epochs", EPOCHS, "--lr", LR, "--pictures", 1)
    wrong = Launch(2, *words, "--run", run.with_name("wrong"), "--epoch=3")
    yield good, wrong, run
    good.kill(), wrong.kill()


@pytest.fixture
def typed(at_work):
    """How the two ended, and the good one's folder."""
    good, wrong, run = at_work
    return good.done(), wrong.done(), run


@pytest.fixture(scope="module")
def whole(data, batch4, tmp_path_factory):
    """An uninterrupted run of 3 epochs in this process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(data, run, "--epochs", 3, deepspeed=batch4).code == 0
    return run


# ----------------------------------------------------------------------------------------- settings


def test_46_samples_in_batches_of_8_are_6_steps_an_epoch_and_90_in_15(tmp_path, monkeypatch):
    from depthdist.data.sample_order import TrainPlan

    assert TrainPlan(46, 8, 1, 1).steps_per_epoch == 6
    data = make_shards(tmp_path, 58)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    done = command(
        "launch/train.py",
        "--data",
        data,
        "--model",
        "tiny",
        "--deepspeed",
        ROOT / "ds_configs/fp16.json",
        "--dry-run",
    )
    assert done.code == 0 and list(here.iterdir()) == [], done
    lines = {line[:13].strip(): line[13:] for line in done.out.splitlines()}
    assert (
        lines["steps"] == "90, 6 an epoch"
        and lines["batch"] == "8 = 1 ranks x micro-batch 1 x 8 accumulated"
    )
    assert lines["data"].startswith("46 training, 12 validation samples; images 28x42, truth 30x40")
    assert lines["trains"].startswith("399,137 of 1,171,425 parameters (34.0728 %)")
    assert float(lines["memory"].split()[1]) > 0 and "activations" in lines["memory"]
    assert "setting      lr = 5e-05" in done.out and "FP16 IS NOT FOR THIS DEVICE" in done.out


def test_without_data_the_message_names_the_two_commands(tmp_path):
    wanted = tmp_path / "tires"
    (line,) = train(wanted, tmp_path / "run").errors
    assert (
        f"python -m depthdist.synthetic {wanted}_raw" in line
        and f"depthdist shard {wanted}_raw {wanted}" in line
    )
    assert list(tmp_path.iterdir()) == []


def test_all_wrong_settings_are_said_at_once(data, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.json").write_text("{")
    wrong = [
        "--epochs",
        0,
        "--lr",
        -1,
        "--lora-dropout",
        2,
        "--lora-rank",
        0,
        "--loss",
        "l1=-1",
        "--tau",
        -1,
        "--threads",
        -1,
        "--size",
        "14x14",
    ]
    lines = train(data, tmp_path / "file", *wrong, deepspeed=tmp_path / "bad.json").errors
    for word in (
        "--epochs",
        "--lr",
        "--lora-dropout",
        "--lora-rank",
        "--loss",
        "--tau",
        "--threads",
        "--size",
        "--run",
        "--deepspeed",
    ):
        assert sum(line.startswith(word + " ") for line in lines) == 1, (word, lines)
    assert len(lines) == 10
    typos = train(data, tmp_path / "run", "--epoch=3", "--lora-rnk=3", "--lora-alpha=x").errors
    assert (
        len(typos) == 3
        and "did you mean --epochs" in "".join(typos)
        and "--lora-rank" in "".join(typos)
        and "'x'" in typos[-1]
    )
    assert not (tmp_path / "run").exists()


WRONG = {
    "a model": (["--model", "nonsense"], "no such folder, and not a hub id"),
    "a folder without config.json": (["--model", "."], "config.json"),
    "--config": (["--config", "/nowhere.json"], "--config /nowhere.json: No such file"),
    "--resume": (["--resume", "/nowhere"], "--resume /nowhere"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_one_line_and_leave_nothing(name, data, tmp_path):
    words, expected = WRONG[name]
    (line,) = train(data, tmp_path / "run", *words).errors
    assert expected in line and not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_cut_names_what_would_do(data, tmp_path):
    (line,) = train(data, tmp_path / "run", "--micro-batch", 3).errors
    assert (
        "train_batch_size 8 cannot be cut into 1 ranks x micro-batches of 3" in line
        and "6 or 9" in line
    )


# --------------------------------------------------------------------------------------------- best


def test_best_holds_the_masters_of_the_best_epoch_and_not_of_the_last(
    data, batch4, tmp_path, monkeypatch
):
    from safetensors.torch import load_file

    from depthdist.training import keeping, validation

    losses = iter([9.0, 5.0, 2.0, 4.0])  # before, epochs 1 to 3
    seen = {}
    real_evaluate, real_save = validation.evaluate, keeping.save

    def scripted(run, ways=("none",)):
        means = {**real_evaluate(run)["none"], "loss": next(losses)}
        return {way: means for way in ways}

    def watched(run):
        masters = run.learner.engine.masters()
        seen[run.state.epoch] = {name: tensor.clone() for name, tensor in masters.items()}
        real_save(run)

    monkeypatch.setattr(validation, "evaluate", scripted)
    monkeypatch.setattr(keeping, "evaluate", scripted)
    monkeypatch.setattr(keeping, "save", watched)
    done = train(data, tmp_path / "run", "--epochs", 3, deepspeed=batch4)
    assert done.code == 0 and "best adapter, epoch 2" in done.out and done.out.count("(best)") == 2
    saved = load_file(tmp_path / "run/best/adapter_model.safetensors")
    lora = {
        name.removeprefix("net.").replace(".default", ""): tensor
        for name, tensor in seen[2].items()
        if "lora_" in name
    }
    assert len(lora) == 36 and all(
        torch.equal(saved[name], tensor) for name, tensor in lora.items()
    )
    assert any(not torch.equal(seen[3][name], tensor) for name, tensor in seen[2].items())


# ---------------------------------------------------------------------- a run, through the launcher


def test_the_launched_run_ends_well_and_prints_its_table(typed):
    done, _, run = typed
    assert done.code == 0 and "Traceback" not in done.out + done.err, done
    assert (
        "8 = 2 ranks x micro-batch 1 x 4 accumulated" in done.out
        and f"{2 * EPOCHS}, 2 an epoch" in done.out
    )
    assert done.out.count("before training: eval loss") == 1, "one rank speaks"
    names = [line.split("  ")[0] for line in done.out.splitlines()]
    found = [n for n in names if n.startswith(("constant ", "calibrated, ", "best adapter"))][-4:]
    epoch = json.loads((run / "best/depthdist.json").read_text())["epoch"]
    mean = json.loads((run / "run.json").read_text())["derived"]
    assert [found[0].split()[0], *found[1:]] == [
        "constant",
        "calibrated, before training",
        "calibrated, before training, disparity-aligned",
        f"best adapter, epoch {epoch}",
    ]
    assert mean["near_mm"] < float(found[0].split()[1]) < mean["far_mm"]


def test_the_record_holds_what_the_run_was(typed, scene):
    record = json.loads((typed[2] / "run.json").read_text())
    settings, derived = record["settings"], record["derived"]
    assert (settings["data"], settings["model"], settings["epochs"], settings["lr"]) == (
        [str(scene)],
        "tiny",
        EPOCHS,
        LR,
    )
    wanted = {
        "train_samples": 11,
        "val_samples": 3,
        "world_size": 2,
        "global_batch": 8,
        "accumulation": 4,
        "steps_per_epoch": 2,
        "precision": "fp32",
    }
    assert {name: derived[name] for name in wanted} == wanted and derived["steps"] == 2 * EPOCHS
    assert record["deepspeed_config"] == json.loads(FP32.read_text())
    assert record["versions"]["torch"] == torch.__version__ and "deepspeed" in record["versions"]


def test_every_step_and_evaluation_is_logged_once(typed):
    steps, scores = log(typed[2], of="train/loss"), log(typed[2], of="eval/loss")
    assert [line["step"] for line in steps] == list(range(1, 2 * EPOCHS + 1))
    assert [(line["step"], line["epoch"]) for line in scores] == [
        (2 * e, e) for e in range(EPOCHS + 1)
    ]
    for name in (
        "train/l1",
        "train/grad",
        "train/lr",
        "train/loss_scale",
        "train/grad_norm",
        "train/skipped_steps",
        "speed/images_per_s",
    ):
        assert all(isinstance(line[name], (int, float)) for line in steps), name
    for name in ("l1", "grad", "abs_rel", "delta1", "rmse_mm", "mae_mm"):
        assert all(np.isfinite(line[f"eval/{name}"]) for line in scores), name
    assert all(
        line["train/loss_scale"] == 1
        and line["train/skipped_steps"] == 0
        and line["train/grad_norm"] > 0
        for line in steps
    )
    assert all(
        line["train/loss"] == pytest.approx(line["train/l1"] + 3 * line["train/grad"], rel=1e-6)
        for line in steps
    )


def test_the_learning_rate_falls_linearly_to_zero(typed):
    lrs = [line["train/lr"] for line in log(typed[2], of="train/lr")]
    assert np.ptp(np.diff(lrs)) < 1e-12 and lrs[0] == pytest.approx(LR, rel=1.01 / (2 * EPOCHS))
    assert lrs[-1] == pytest.approx(0, abs=1.01 * LR / (2 * EPOCHS))  # 0 after the last step


def test_best_is_the_epoch_with_the_lowest_eval_loss(typed):
    run = typed[2]
    losses = {
        line["epoch"]: line["eval/loss"] for line in log(run, of="eval/loss") if line["epoch"]
    }
    record = json.loads((run / "best/depthdist.json").read_text())
    assert (
        record["epoch"] == min(losses, key=losses.get)
        and record["eval_loss"] == losses[record["epoch"]]
    )
    (scored,) = log(run, of="best/loss")  # of the adapter as read back from the disk
    assert scored["best/loss"] == pytest.approx(record["eval_loss"], rel=1e-5)


def test_training_learns_and_beats_the_constant(typed, scene):
    """Measured with two seeds: the loss of the last two epochs is 0.60 and 0.64 of the first's,
    RMSE 0.44 and 0.50 of the constant's."""
    from depthdist.shards.index import read_index

    run = typed[2]
    losses = [line["train/loss"] for line in log(run, of="train/loss")]
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:2])
    mean = read_index(scene).stats["train"]["mean_mm"]
    row = next(
        line for line in typed[0].out.splitlines() if line.startswith(f"constant {mean:.0f} mm")
    ).split()
    constant = float(row[-2].strip("*"))
    (best,) = log(run, of="best/loss")
    before = log(run, of="eval/loss")[0]
    assert (
        best["best/rmse_mm"] < 0.75 * constant
        and best["best/rmse_mm"] < 0.75 * before["eval/rmse_mm"]
    )


def test_best_loads_and_last_holds_the_last_two_states(typed):
    from depthdist.models.adapter import load_adapter

    run = typed[2]
    model, record = load_adapter(run / "best")
    assert record.model == "tiny" and record.size == (28, 42)
    assert model(torch.zeros(1, 28, 42, 3, dtype=torch.uint8)).shape == (1, 28, 42)
    assert sorted(p.name for p in (run / "last").iterdir()) == [
        f"step-{2 * EPOCHS - 2:06d}.2",  # saved before its evaluation, and again after it
        f"step-{2 * EPOCHS:06d}.2",
    ]
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock",
        "best",
        "last",
        "metrics.jsonl",
        "run.json",
        "seen.npy",
        "tensorboard",
    ]


def test_tensorboard_has_the_same_numbers_and_the_pictures(typed):
    run = typed[2]
    shown = board(run)
    for name in ("train/loss", "train/lr", "eval/loss", "eval/rmse_mm", "eval/rmse_mm@750-1500"):
        points, lines = shown.Scalars(name), log(run, of=name)
        assert [p.step for p in points] == [line["step"] for line in lines]
        assert [p.value for p in points] == pytest.approx([line[name] for line in lines], rel=1e-6)
    first_batch, figure = sorted(shown.Tags()["images"])
    assert [image.step for image in shown.Images(first_batch)] == [0]
    assert first_batch == "training/first batch" and figure.startswith("validation/")
    drawn = shown.Images(figure)
    assert [image.step for image in drawn] == [2 * e for e in range(EPOCHS + 1)]
    assert drawn[0].encoded_image_string != drawn[-1].encoded_image_string and drawn[0].width > 400


def test_tensorboard_has_settings_versions_clouds_and_an_overview(typed):
    run = typed[2]
    shown = board(run)
    tags = shown.Tags()["tensors"]
    texts = {}
    for name in ("settings", "deepspeed", "derived", "versions"):
        (event,) = shown.Tensors(f"{name}/text_summary")
        texts[name] = event.tensor_proto.string_val[0].decode()
    settings, ds_config = (
        json.loads(texts[name].removeprefix("```json").removesuffix("```"))
        for name in ("settings", "deepspeed")
    )
    record = json.loads((run / "run.json").read_text())
    assert settings == record["settings"] and ds_config == record["deepspeed_config"]
    assert f"| torch | {torch.__version__} |" in texts["versions"]
    (vertices,) = [tag for tag in tags if tag.endswith("_VERTEX")]
    assert [e.step for e in shown.Tensors(vertices)] == [2 * e for e in range(EPOCHS + 1)]
    assert "custom_scalars__config__" in tags


def test_the_hparams_tab_has_the_settings_beside_the_scores_of_the_best_adapter(typed):
    run = typed[2]
    (row,) = hparams_rows(run.parent)
    (best,) = log(run, of="best/loss")
    assert row["name"] == str(run) and row["status"] == "STATUS_SUCCESS"
    assert row["settings"]["lr"] == LR and row["settings"]["model"].startswith("tiny")
    for name in ("best/rmse_mm", "best/loss"):
        assert row["scores"][name] == (2 * EPOCHS, pytest.approx(best[name], rel=1e-6))


def test_exit_code_2_survives_the_launcher(typed):
    _, wrong, run = typed
    assert wrong.code == 2 and "Traceback" not in wrong.out + wrong.err, wrong
    assert wrong.err.count("unknown setting --epoch; did you mean --epochs") == 1, (
        "rank 0 says it, once"
    )
    assert not run.with_name("wrong").exists()


def test_a_run_that_another_command_writes_to_is_one_line_and_stays(scene, tmp_path):
    run = tmp_path / "run"
    with hold_folder(run, "launch/train.py", "--run"):
        (line,) = train(scene, run, "--epochs", 1).errors
    assert "another depthdist train is writing here" in line
    assert [path.name for path in run.iterdir()] == [".lock"]
