"""Shards of a few captures."""

import pytest
from helpers.captures import write_raw


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"), 6)
