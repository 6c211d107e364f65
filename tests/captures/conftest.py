"""Odd but readable files are read without a warning, as in a command."""

import pytest

from depthdist.core.environment import silence_image_warnings


@pytest.fixture(autouse=True)
def no_image_warnings():
    silence_image_warnings()
