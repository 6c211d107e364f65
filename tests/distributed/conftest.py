"""What tests of several processes share."""

import psutil
import pytest


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    for child in psutil.Process().children(recursive=True):
        child.kill()
