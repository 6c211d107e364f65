"""A run on the captures' shards, which the tests of the command score."""

import pytest
from helpers.runs import make_model, make_shards, train


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """11 samples for training, 3 for validation; the captures lie beside them in ../raw."""
    return make_shards(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["--epochs", 1, "--recipe", "document"]  # so that it begins with the untrained model
    words += ["--model", make_model(folder.with_name("dav2"))]
    assert train(data, folder, *words).code == 0
    return folder
