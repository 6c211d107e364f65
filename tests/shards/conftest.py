"""Shards of a few captures."""

import pytest
from helpers.captures import write_raw
from helpers.http_server import CONTENT
from helpers.remote import make

from depthdist.shards import remote_cache as remote


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"), 6)


@pytest.fixture
def cache(tmp_path):
    return make(tmp_path)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / f"{name}.tar").write_bytes(CONTENT[f"/{name}.tar"])
    return tmp_path / "data"


@pytest.fixture
def soon(monkeypatch):
    """Attempts follow each other at once, and files are old as soon as they were handed out."""
    monkeypatch.setattr(remote, "RETRY_S", 0.01)
    monkeypatch.setattr(remote, "GRACE_S", -1.0)
