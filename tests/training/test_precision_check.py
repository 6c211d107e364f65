"""What half precision costs is measured in mm, and underflow is counted."""

import json

from helpers.runs import (
    deepspeed_json,
    log,
    train,
)


def test_bf16_is_watched_in_mm_and_said_where_it_costs_more_than_one(data, model, tmp_path):
    path = deepspeed_json(tmp_path / "json", "bf16", train_batch_size=4)
    done = train(
        data,
        tmp_path / "run",
        "--epochs",
        2,
        "--model",
        model,
        "--calibrate",
        "--watch-every",
        2,
        deepspeed=path,
    )
    assert done.code == 0
    seen = log(tmp_path / "run", of="eval/precision_mm")
    assert [line["step"] for line in seen] == [2, 4] and all(
        line["eval/precision_mm"] > 0.01 for line in seen
    )
    assert done.out.count("WARNING      bf16 moves a depth by up to") == sum(
        line["eval/precision_mm"] > 1 for line in seen
    )
    assert all(
        0 <= line["train/underflow_share"] <= 1 for line in log(tmp_path / "run", of="train/loss")
    )


def test_float32_needs_no_watch(data, batch4, tmp_path):
    assert (
        train(data, tmp_path / "run", "--epochs", 1, "--watch-every", 1, deepspeed=batch4).code == 0
    )
    assert log(
        tmp_path / "run", of="eval/precision_mm"
    ) == [] and "train/underflow_share" not in json.dumps(log(tmp_path / "run"))


def test_underflow_is_counted_where_the_loss_scale_is_too_small(data, model, real_fp16, tmp_path):
    shares = {}
    for power in (0, 14):
        fp16 = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": power,
            "loss_scale_window": 100,
            "hysteresis": 1,
            "min_loss_scale": 1,
        }
        path = deepspeed_json(tmp_path / "json", "fp16", train_batch_size=4, fp16=fp16)
        words = ["--epochs", 1, "--model", model, "--loss", "l1=1e-5,grad=3e-5"]
        assert train(data, tmp_path / f"run{power}", *words, deepspeed=path).code == 0
        shares[power] = log(tmp_path / f"run{power}", of="train/loss")[-1]["train/underflow_share"]
    assert shares[14] < 0.2 * shares[0] and shares[0] > 0.01
