"""The same run on any number of devices: 1, 2 and 4 real processes give the same losses, weights
and metrics.

46 training samples in batches of 8 (the last of an epoch holds 6), 24 steps in float32, LoRA with
dropout on a decoder that is frozen."""

import pytest
from helpers.commands import on_srun
from helpers.runs import largest_difference, log, make_model, make_shards, saved_weights, train

EPOCHS = 4
CASES = {
    "1 rank": (1, 1),
    "2 ranks": (2, 1),
    "4 ranks": (4, 1),
    "1 rank of 2": (1, 2),
    "4 ranks of 2": (4, 2),
    "1 rank of 8": (1, 8),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run's folder for each case: ranks and micro-batch."""
    folder = tmp_path_factory.mktemp("same")
    data, model, found = make_shards(folder, 58), make_model(folder / "model"), {}
    for i, (name, (ranks, micro_batch)) in enumerate(CASES.items()):
        found[name] = folder / f"run{i}"
        words = ["--model", model, "--epochs", EPOCHS, "--lr", 5e-5, "--micro-batch", micro_batch]
        launched = [
            "launch/train.py",
            "--data",
            data,
            "--run",
            found[name],
            "--deepspeed",
            "ds_configs/fp32.json",
            "--pictures",
            0,
        ]
        all_ranks = (
            [train(data, found[name], *words)]
            if ranks == 1
            else [rank.done() for rank in on_srun(ranks, *launched, *words)]
        )
        assert all(done.code == 0 for done in all_ranks), all_ranks
    return found


def metrics(run, prefix):
    return [
        {k: v for k, v in line.items() if k.startswith(prefix) or k in ("step", "epoch")}
        for line in log(run, of=f"{prefix}loss")
    ]


@pytest.mark.parametrize("name", ["2 ranks", "4 ranks"])
def test_the_number_of_ranks_changes_no_bit_of_the_weights_and_only_the_last_of_the_metrics(
    name, runs
):
    assert len(saved_weights(runs[name])) == 24
    assert largest_difference(saved_weights(runs[name]), saved_weights(runs["1 rank"])) == 0
    alike(runs[name], runs["1 rank"], 1e-12)


def test_nor_does_it_with_several_samples_a_micro_batch(runs):
    assert len(saved_weights(runs["4 ranks of 2"])) == 24
    assert (
        largest_difference(saved_weights(runs["4 ranks of 2"]), saved_weights(runs["1 rank of 2"]))
        == 0
    )
    alike(runs["4 ranks of 2"], runs["1 rank of 2"], 1e-12)


@pytest.mark.parametrize("name", ["4 ranks of 2", "1 rank of 8"])
def test_the_micro_batch_changes_no_more_than_the_order_of_additions_inside_a_layer_does(
    name, runs
):
    assert len(saved_weights(runs[name])) == 24
    assert largest_difference(saved_weights(runs[name]), saved_weights(runs["1 rank"])) < 1e-6
    alike(runs[name], runs["1 rank"], 1e-4)


def alike(run, base, tolerance):
    """All that both logged."""
    for prefix, count in (("train/", 6 * EPOCHS), ("eval/", EPOCHS + 1), ("best/", 1)):
        mine, its = metrics(run, prefix), metrics(base, prefix)
        assert len(mine) == len(its) == count
        for a, b in zip(mine, its):
            assert a == pytest.approx(b, rel=tolerance, abs=1e-15)


def test_it_learned_something_that_could_differ(runs):
    losses = [line["train/loss"] for line in log(runs["1 rank"], of="train/loss")]
    assert len(set(losses)) == 6 * EPOCHS
    weights = saved_weights(runs["1 rank"])
    assert max(float(w.abs().max()) for name, w in weights.items() if "lora_B" in name) > 1e-4
