"""A small model that training begins from."""

import pytest
from helpers.runs import make_model
from helpers.second_stages import make_place, train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small DA-V2 whose decoder counts as pretrained: it is frozen, and ends in a ReLU."""
    return make_model(tmp_path_factory.mktemp("model") / "dav2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with raw/, shards/ of it with images at the camera's size, and a configuration."""
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def adapter(place):
    """A finished run without a second stage."""
    assert train(place, place / "adapter").code == 0
    return place / "adapter"
