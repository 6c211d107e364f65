"""A trained run, and the command that predicts with it."""

import pytest
from helpers.commands import command
from helpers.runs import make_model, make_shards, train


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Folder of a run of one epoch; its shards and base model lie beside runs/."""
    folder = tmp_path_factory.mktemp("predict")
    assert (
        train(
            make_shards(folder, 6),
            folder / "runs/first",
            "--epochs",
            1,
            "--model",
            make_model(folder / "dav2"),
            "--no-calibrate",  # its depth then differs much from pixel to pixel
        ).code
        == 0
    )
    return folder / "runs/first"


@pytest.fixture
def predict(run, tmp_path):
    """The command on images; its results are in tmp_path / "out"."""
    return lambda *words: command(
        "launch/predict.py", "--run", run, "--out", tmp_path / "out", *words
    )


@pytest.fixture(scope="session")
def model(run):
    """The network of the run and its record."""
    from depthdist.models.adapter import load_adapter

    return load_adapter(run / "best")
