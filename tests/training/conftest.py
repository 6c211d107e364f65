"""A small model that training begins from; an engine's world, and fp16 where there is none."""

import pytest
from helpers.commands import joined
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


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # DeepSpeed looks for it
    return joined()


@pytest.fixture
def real_fp16(monkeypatch):
    """DeepSpeed's own fp16 optimizer, on a device that would refuse it."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    monkeypatch.setattr("depthdist.training.deepspeed_config.fp16_pays", lambda: True)
