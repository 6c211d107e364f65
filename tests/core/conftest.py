"""Settings that need no data."""

import pytest

from depthdist.data.dataset import DataSettings


@pytest.fixture
def no_data_needed(monkeypatch):
    """Whether the data is there is DataSettings' own affair, tested with the stream."""
    monkeypatch.setattr(DataSettings, "problems", lambda self: [])
