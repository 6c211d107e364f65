"""Worker processes: a request to stop, which reaches a whole process group, is not for them."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from depthdist.core.environment import no_signals_to_children, open_pool, start_worker

GROUP = ("TERM", "USR1", "INT")


def test_what_others_send_does_not_end_a_worker_and_its_command_can():
    with open_pool(1, start_worker) as pool:
        worker = pool.submit(os.getpid).result()
        for name in GROUP:
            subprocess.run(["kill", f"-{name}", str(worker)], check=True)
        assert pool.submit(os.getpid).result() == worker
        os.kill(worker, signal.SIGTERM)
        with pytest.raises(BrokenProcessPool):
            while True:
                pool.submit(os.getpid).result()


def test_a_worker_is_started_with_these_signals_blocked_and_the_command_keeps_its_own():
    says = "import signal; print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with no_signals_to_children():
        done = subprocess.run([sys.executable, "-c", says], capture_output=True, text=True)
    expected = sorted(int(getattr(signal, f"SIG{name}")) for name in GROUP)
    assert [int(word) for word in done.stdout.split()] == expected
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
