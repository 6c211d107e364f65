"""Fixtures of the model's tests."""

import pytest
from helpers.models import save_dav2


@pytest.fixture(scope="session")
def dav2_folder(tmp_path_factory):
    """A small DA-V2 in Hugging Face format, with its own mean and standard deviation; read only."""
    return save_dav2(tmp_path_factory.mktemp("small") / "da-v2")
