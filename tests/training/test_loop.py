"""What a run does besides learning: calibration, averaged weights, early stopping, micro-batches
that fit, precision watched, and its warnings."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.commands import command
from helpers.losses import with_gradient
from helpers.runs import (
    deepspeed_json,
    largest_difference,
    log,
    make_loader,
    make_shards,
    saved_state,
    saved_weights,
    train,
)

# -------------------------------------------------------------------------------- the whole network


def test_a_network_pretrained_here_is_a_base_model_for_the_next_run(data, model, batch4, tmp_path):
    """--lora none with a relative truth learns, goes on where it stopped, and its best/ is what
    --model takes."""
    from depthdist.models.base_model import load_base

    whole, run, lora = tmp_path / "whole", tmp_path / "run", tmp_path / "lora"
    words = [
        "--model",
        model,
        "--lora",
        "none",
        "--relative",
        "--loss",
        "l1=1,multiscale=2",
        "--lr",
        3e-3,
        "--schedule",
        "constant",
    ]
    assert train(data, whole, "--epochs", 4, *words, deepspeed=batch4).code == 0
    for epochs in (1, 4):
        assert train(data, run, "--epochs", epochs, *words, deepspeed=batch4).code == 0
    assert largest_difference(saved_weights(run), saved_weights(whole)) == 0
    losses = [record["eval/loss"] for record in log(run, of="eval/loss")]
    assert losses[-1] < 0.8 * losses[0]
    assert load_base(str(run / "best")).parameter_counts()[0] == 0
    assert train(data, lora, "--epochs", 1, "--model", run / "best", deepspeed=batch4).code == 0


# ------------------------------------------------------------------------------ settings of the run


def test_averaged_weights_are_what_is_evaluated_kept_and_gone_on_from(data, batch4, tmp_path):
    from safetensors.torch import load_file

    whole, run = tmp_path / "whole", tmp_path / "run"
    words = ["--ema", 0.5, "--schedule", "constant"]
    assert train(data, whole, "--epochs", 2, *words, deepspeed=batch4).code == 0
    for epochs in (1, 2):
        assert train(data, run, "--epochs", epochs, *words, deepspeed=batch4).code == 0
    tensors, counters = saved_state(run)
    assert (
        all(torch.equal(t, saved_state(whole)[0][n]) for n, t in tensors.items())
        and int(tensors["ema/updates"]) == 4
    )
    assert (
        largest_difference(
            saved_weights(run),
            {
                n.removeprefix("ema/"): t
                for n, t in tensors.items()
                if n.startswith("ema/") and n != "ema/updates"
            },
        )
        > 1e-5
    )
    if counters["train"]["best_epoch"] == 2:
        saved = load_file(run / "best/adapter_model.safetensors")
        lora = {n: t for n, t in tensors.items() if n.startswith("ema/") and "lora_A" in n}
        assert lora and all(
            torch.equal(saved[n.removeprefix("ema/net.").replace(".default", "")], t)
            for n, t in lora.items()
        )
    plain = tmp_path / "plain"
    assert train(data, plain, "--epochs", 2, "--schedule", "constant", deepspeed=batch4).code == 0
    assert largest_difference(saved_weights(plain), saved_weights(run)) == 0, (
        "the average must not touch the weights that learn"
    )
    assert log(plain, of="eval/loss")[1]["eval/loss"] != log(run, of="eval/loss")[1]["eval/loss"]


def test_training_stops_early_where_nothing_gets_better_and_keeps_that_best(
    data, batch4, tmp_path, monkeypatch
):
    from depthdist.training import keeping, validation

    values = iter([9, 5, 6, 7, 8, 9])  # before, epochs 1 to 5
    real = validation.evaluate

    def scripted(run, ways=("none",)):
        means = {**real(run)["none"], "rmse_mm": float(next(values))}
        return {way: means for way in ways}

    monkeypatch.setattr(validation, "evaluate", scripted)
    monkeypatch.setattr(keeping, "evaluate", scripted)
    done = train(
        data,
        tmp_path / "run",
        "--epochs",
        9,
        "--patience",
        2,
        "--best-by",
        "rmse_mm",
        deepspeed=batch4,
    )
    assert (
        done.code == 0
        and "stopped early: no better eval rmse_mm for 2 epochs" in done.out
        and "best adapter, epoch 1" in done.out
    )
    assert saved_state(tmp_path / "run")[1]["train"]["epoch"] == 3
    again = train(
        data,
        tmp_path / "run",
        "--epochs",
        9,
        "--patience",
        2,
        "--best-by",
        "rmse_mm",
        deepspeed=batch4,
    )
    assert again.code == 0 and "is finished: 3 epochs" in again.out


def test_the_decoder_learns_at_its_own_rate(data, batch4, tmp_path):
    still, moving = tmp_path / "still", tmp_path / "moving"
    for run, rate in ((still, 1e-12), (moving, 1e-3)):
        words = ["--epochs", 1, "--decoder-lr", rate, "--no-calibrate"]
        assert train(data, run, *words, deepspeed=batch4).code == 0
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora
    from depthdist.models.settings import LoraSettings

    start = {
        n: p.detach()
        for n, p in add_lora(load_base("tiny"), LoraSettings(), 0).named_parameters()
        if p.requires_grad
    }
    decoder = [n for n in start if "lora_" not in n]
    for run, least, most in ((still, 0, 1e-9), (moving, 1e-4, 1)):
        found = saved_weights(run)
        assert least <= max(float((found[n] - start[n]).abs().max()) for n in decoder) <= most
        assert max(float((found[n] - start[n]).abs().max()) for n in start if "lora_B" in n) > 1e-4


def test_warm_up_and_cosine_are_what_the_log_says(data, batch4, tmp_path):
    assert (
        train(
            data,
            tmp_path / "run",
            "--epochs",
            3,
            "--warmup",
            2,
            "--schedule",
            "cosine",
            deepspeed=batch4,
        ).code
        == 0
    )
    lrs = [line["train/lr"] for line in log(tmp_path / "run", of="train/lr")]
    assert lrs == pytest.approx(
        [1e-3 / 3, 2e-3 / 3, *(1e-3 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4))]
    )
    (line,) = train(data, tmp_path / "no", "--epochs", 1, "--warmup", 2, deepspeed=batch4).errors
    assert "--warmup is 2: expected fewer than the run's 2 optimizer steps" in line


@pytest.mark.parametrize(
    "words",
    [
        ["--checkpointing"],
        ["--micro-batch", "auto"],
        ["--lora", "linear", "--dora"],
        ["--lora", "conv", "--rslora"],
        ["--decoder", "trained"],
    ],
    ids=" ".join,
)
def test_ways_to_train_run_to_their_table(words, data, model, batch4, tmp_path):
    done = train(data, tmp_path / "run", "--epochs", 2, "--model", model, *words, deepspeed=batch4)
    assert (
        done.code == 0 and "best adapter, epoch" in done.out and "did not move" not in done.out
    ), done


def test_checkpointing_changes_no_bit_and_auto_no_more_than_rounding(data, model, batch4, tmp_path):
    """Adam moves a weight by up to lr however small its gradient is: where that is nearly 0, its
    rounding shows as a few percent of lr."""
    plain, other, auto = tmp_path / "plain", tmp_path / "other", tmp_path / "auto"
    assert train(data, plain, "--epochs", 2, "--model", model, deepspeed=batch4).code == 0
    assert (
        train(
            data, other, "--epochs", 2, "--model", model, "--checkpointing", deepspeed=batch4
        ).code
        == 0
    )
    done = train(
        data, auto, "--epochs", 2, "--model", model, "--micro-batch", "auto", deepspeed=batch4
    )
    assert done.code == 0 and "4 = 1 ranks x micro-batch 4 x 1 accumulated" in done.out
    assert largest_difference(saved_weights(plain), saved_weights(other)) == 0
    assert largest_difference(saved_weights(plain), saved_weights(auto)) < 0.1 * 1e-3


def test_compiling_is_refused_on_a_cpu_where_it_would_learn_nothing(data, tmp_path):
    (line,) = train(data, tmp_path / "run", "--compile").errors
    assert line.startswith("--compile: not on a CPU") and not (tmp_path / "run").exists()


def test_a_new_word_of_settings_may_not_be_saved_too_seldom_or_nonsense(data, tmp_path):
    for text in ("0", "x", "-3", "min", "0min", "1.5"):
        (line,) = train(data, tmp_path / "run", "--save-every", text).errors
        assert (
            f"--save-every is {text}: expected optimizer steps, such as 50, or minutes, such as"
            " 10min" in line
        )


# --------------------------------------------------------------- what must stop a run, and warnings


def test_a_loss_that_is_no_number_stops_before_any_weight_moves_and_names_the_samples(
    data, batch4, tmp_path, monkeypatch
):
    from depthdist.training import loop

    real = loop.forward
    broken = []

    def forward(run, batch):
        parts = real(run, batch)
        if run.state.step == 3 and not broken:
            broken.append(batch.stems[0])
            parts = {name: part * math.nan for name, part in parts.items()}
        return parts

    monkeypatch.setattr(loop, "forward", forward)
    run = tmp_path / "run"
    (line,) = train(data, run, "--epochs", 3, "--save-every", 1, deepspeed=batch4).errors
    assert line.startswith(f"step 4: the loss is nan for {broken[0]};")
    found, counters = saved_state(run)
    assert counters["train"]["step"] == 3 and all(torch.isfinite(t).all() for t in found.values())
    monkeypatch.setattr(loop, "forward", real)
    assert train(data, run, "--epochs", 3, deepspeed=batch4).code == 0


@pytest.mark.parametrize("stage", range(4))
def test_a_gradient_that_is_no_number_stops_too_in_float32(stage, data, tmp_path, monkeypatch):
    from depthdist.training import loop
    from depthdist.training.engine import Engine

    real = loop.forward

    poison = with_gradient(math.inf)

    def poisoned(run, batch):
        return {name: poison(part) for name, part in real(run, batch).items()}

    monkeypatch.setattr(loop, "forward", poisoned)
    step, factors = Engine.step, []

    def counted(self, *factor):
        factors.append(factor)
        return step(self, *factor)

    monkeypatch.setattr(Engine, "step", counted)
    path = deepspeed_json(tmp_path / "json", train_batch_size=4, zero_optimization={"stage": stage})
    (line,) = train(data, tmp_path / "run", "--epochs", 1, "--save-every", 1, deepspeed=path).errors
    assert line.startswith("step 1: the gradient is ")
    assert not (tmp_path / "run/last").exists()
    first_batch = make_loader(data).dataset.order(0).epoch(0)[:4]
    stems = [
        make_loader(data).samples("train", [i]).to(torch.device("cpu")).stems[0]
        for i in first_batch
    ]
    assert all(stem in line for stem in stems), "the samples of the step are named"
    if stage == 0:
        assert factors == [(), (), ()], "no optimizer step was taken"


def test_the_same_scene_in_both_splits_is_said(tmp_path):
    from helpers.captures import write_capture

    for i in range(9):
        write_capture(tmp_path / f"raw/{i}.png", tmp_path / f"raw/{i}.npy", 0)
    data = make_shards(tmp_path)
    done = train(data, tmp_path / "run", "--epochs", 1)
    assert (
        done.code == 0
        and "WARNING      validation resembles training (near-duplicates): 2 of 2" in done.out
    )


def test_linear_depth_and_bilinear_upsampling_are_learned_kept_and_used_by_every_command(
    data, model, batch4, tmp_path
):
    """What predict gives for a validation capture, scored with NumPy, is the table's own row."""
    run = tmp_path / "run"
    done = train(
        data,
        run,
        "--epochs",
        2,
        "--target",
        "linear",
        "--upsampling",
        "bilinear",
        "--model",
        model,
        "--calibrate",
        deepspeed=batch4,
    )
    assert done.code == 0, done
    record = json.loads((run / "best/depthdist.json").read_text())
    assert (record["target"], record["upsampling"]) == ("linear", "bilinear")
    again = train(
        data,
        run,
        "--epochs",
        3,
        "--target",
        "inverse",
        "--upsampling",
        "bilinear",
        "--model",
        model,
        "--calibrate",
        deepspeed=batch4,
    )
    assert "--target is inverse, but the run" in " ".join(again.errors)
    assert (
        "silog is defined on inverse depth"
        in train(
            data, tmp_path / "other", "--target", "linear", "--loss", "silog=1", "--model", model
        ).errors[0]
    )
    assert command("launch/evaluate.py", "--run", run, "--no-details").code == 0
    row = json.loads((run / "evaluation.json").read_text())
    name = next(name for name in row["rows"] if name.startswith("adapter"))
    stems = row["images"][name]["keys"]
    pictures = [data.parent / f"raw/images/{stem}_color.png" for stem in stems]
    assert (
        command(
            "launch/predict.py", *pictures, "--run", run, "--out", tmp_path / "out", "--save", "npy"
        ).code
        == 0
    )
    for stem, rmse in zip(stems, row["images"][name]["values"]["rmse_mm"]):
        z = np.load(data.parent / f"raw/depth/{stem}_rawDepth.npy")[..., 2].astype(float)
        p = np.load(tmp_path / f"out/{stem}_color_depth.npy").astype(float)
        with np.errstate(invalid="ignore"):
            known = (z >= record["near_mm"] - 0.04) & (z <= record["far_mm"] + 0.04)
        assert rmse == pytest.approx(np.sqrt(np.mean((p - z)[known] ** 2)), abs=0.05)


@pytest.mark.parametrize(
    ("num", "count", "chosen"),
    [(3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 2, 5, 7]), (3, 0, []), (0, 4, [])],
)
def test_drawn_samples_are_all_there_are_or_evenly_spread(num, count, chosen):
    from depthdist.data.sample_order import evenly_spread

    assert evenly_spread(num, count) == chosen
