"""For all tests: Ctrl-C works in the processes they start, also where the tests themselves run in the background."""

import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would every child


@pytest.fixture(scope="module")
def quietly_on_one_thread():
    """For modules with pictures so small that threads only wait for each other."""
    import torch

    from depthdist.model import quiet

    quiet()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
