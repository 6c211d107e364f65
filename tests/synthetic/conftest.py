"""Tests that call kernels directly must not run ones compiled from older sources."""

import pytest

from depthdist.synthetic.raytracing.kernel_cache import use_fresh_kernels


@pytest.fixture(scope="session", autouse=True)
def fresh_kernels():
    use_fresh_kernels()
