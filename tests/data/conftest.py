"""Small datasets of shards, here and behind HTTP."""

import shutil
from pathlib import Path

import pytest
from helpers.http_server import CONTENT
from helpers.loaders import loader, make

from depthdist.shards import remote_cache as remote


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """8 training samples in 4 shards, 3 for validation."""
    return make(tmp_path_factory.mktemp("tires"), count=11, split="random", val=0.3, shard_mb=0.02)


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory):
    """20 training samples in it."""
    return make(tmp_path_factory.mktemp("one"), count=20)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two datasets of one shard with 4 training samples each, which have the same keys and other
    depth steps."""
    return make(tmp_path_factory.mktemp("a")), make(tmp_path_factory.mktemp("b"), 100, far=2500.0)


@pytest.fixture
def copies(two, tmp_path):
    """The same, for a test to damage."""
    return [Path(shutil.copytree(place, tmp_path / name)) for place, name in zip(two, "ab")]


@pytest.fixture(scope="module")
def in_both(tmp_path_factory):
    """20 training and 5 validation samples."""
    return make(tmp_path_factory.mktemp("both"), count=25, split="random", val=0.2, shard_mb=0.03)


@pytest.fixture
def far(server, monkeypatch, tmp_path):
    """Opens a folder's dataset behind HTTP, with a cache in tmp_path."""
    monkeypatch.setattr(remote, "RETRY_S", 0.01)

    def served(place, **settings):
        for path in place.rglob("*.*"):
            if path.is_file():
                monkeypatch.setitem(CONTENT, f"/tires/{path.relative_to(place)}", path.read_bytes())
        return loader(
            f"{server.url}/tires", **{"cache": tmp_path / "cache", "fetch_retries": 1, **settings}
        )

    return served
