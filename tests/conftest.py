"""For all tests: Ctrl-C works in the processes they start, also where the tests themselves run in
the background."""

import gc
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# a shell's background job ignores it, and so would every child
signal.signal(signal.SIGINT, signal.default_int_handler)

# the same few examples each time; DEPTHDIST_EXAMPLES=5000 searches long, elsewhere each time
EXAMPLES = int(os.environ.get("DEPTHDIST_EXAMPLES", "0"))
settings.register_profile(
    "suite",
    max_examples=EXAMPLES or 25,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
settings.load_profile("suite")

# in the order in which they begin; what waits for ranks by the second is beside one process
LONG = (
    "test_process_group.py",
    "test_nodes.py",
    "test_pretrain_builtin.py",
    "test_state_rounds.py",
    "test_anywhere.py",
    "test_same_on_any_ranks.py",
    "test_resume.py",
    "test_detail.py",
    "test_evaluate_details.py",
    "test_evaluate.py",
    "test_damaged_files.py",
    "test_train.py",
    "test_page_limits.py",
    "test_front_page.py",
    "test_engine.py",
    "test_study.py",
)


gc.disable()  # torch and the tests' own modules stay to the end: half of the time of importing them


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """The longest files begin, so that the last of them does not keep one worker busy while the
    other waits."""
    begin = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: begin.get(item.path.name, len(LONG)))


@pytest.fixture(scope="module")
def quietly_on_one_thread():
    """For modules with pictures so small that threads only wait for each other."""
    import torch

    from depthdist.core.environment import silence_libraries

    silence_libraries()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_this_process(monkeypatch):
    """No worker processes in sharding: starting them costs a second a test.

    The command's tests use them.
    """
    from depthdist.shards.writer import write_shard

    monkeypatch.setattr(
        "depthdist.shards.build.write_shards", lambda jobs, *how: [write_shard(job) for job in jobs]
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Shards of 7 samples for training and 2 for validation.

    Modules that need others have their own.
    """
    from helpers.runs import make_shards

    return make_shards(tmp_path_factory.mktemp("data"), 9)


@pytest.fixture(scope="session")
def batch4(tmp_path_factory):
    """A configuration with 2 steps an epoch of them, the second of 3 samples."""
    from helpers.runs import deepspeed_json

    return deepspeed_json(tmp_path_factory.mktemp("json") / "batch4.json", train_batch_size=4)


@pytest.fixture
def server():
    """An HTTP server on this machine that serves what tests put into its CONTENT."""
    from helpers.http_server import running_server

    with running_server() as running:
        yield running
