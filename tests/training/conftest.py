"""A small model that training begins from."""

import pytest
from helpers.runs import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small DA-V2 whose decoder counts as pretrained: it is frozen, and ends in a ReLU."""
    return make_model(tmp_path_factory.mktemp("model") / "dav2")
