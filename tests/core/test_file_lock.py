"""One process holds a file at a time, with flock and on file systems that have none."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from helpers.captures import ROOT

from depthdist.core import file_lock
from depthdist.core.file_lock import Held, hold, hold_folder


@pytest.fixture(params=["flock", "no flock"])
def kind(request, monkeypatch):
    """The second is what NFS, Lustre and FUSE answer without the option for locks."""
    if request.param == "no flock":
        refuse_flock(monkeypatch, errno.ENOSYS)
    return request.param


def refuse_flock(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)


def is_free(path) -> bool:
    try:
        with open(path, "a+b") as file, hold(file, path, wait=False):
            return True
    except Held:
        return False


def test_a_held_file_is_refused_until_it_is_released(kind, tmp_path):
    path = tmp_path / "file"
    with open(path, "a+b") as file, hold(file, path, wait=False):
        assert not is_free(path)
    assert is_free(path)


def test_who_waits_goes_on_when_the_file_is_released(kind, tmp_path):
    path, order = tmp_path / "file", []
    entered = threading.Event()

    def second():
        with open(path, "a+b") as file:
            entered.set()
            with hold(file, path, wait=True):
                order.append("second")

    thread = threading.Thread(target=second)
    with open(path, "a+b") as file, hold(file, path, wait=True):
        thread.start()
        entered.wait()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_nothing_but_the_file_stays_after_the_lock(kind, tmp_path):
    with hold_folder(tmp_path / "out", "tools/some.py", "OUT"):
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_an_error_in_between_releases_the_lock(kind, tmp_path):
    path = tmp_path / "file"
    with (
        pytest.raises(KeyError),
        open(path, "a+b") as file,
        hold(file, path, wait=False),
    ):
        raise KeyError
    assert is_free(path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_every_way_of_having_no_flock_is_known(monkeypatch, tmp_path, number):
    refuse_flock(monkeypatch, number)
    path = tmp_path / "file"
    with open(path, "a+b") as file, hold(file, path, wait=False):
        assert (tmp_path / "file.held").exists()


def test_other_errors_of_flock_are_not_hidden(monkeypatch, tmp_path):
    refuse_flock(monkeypatch, errno.EIO)
    path = tmp_path / "file"
    with pytest.raises(OSError, match="Input/output"), open(path, "a+b") as file:
        hold(file, path, wait=False).__enter__()


KILLED = """
import errno, fcntl, os, sys
from pathlib import Path
def flock(*_): raise OSError(errno.ENOSYS, "no")
fcntl.flock = flock
from depthdist.core.file_lock import hold
path = Path(sys.argv[1])
with open(path, "a+b") as file, hold(file, path, wait=False):
    os._exit(9)
"""


def test_a_lock_of_a_killed_process_is_taken_over(monkeypatch, tmp_path):
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT)
    assert done.returncode == 9 and (tmp_path / "file.held").exists()
    refuse_flock(monkeypatch, errno.ENOSYS)
    assert is_free(path)


def held_by(path, **others):
    content = {**file_lock._me(), **others}
    path.with_name(f"{path.name}.held").write_text(json.dumps(content))


def test_a_process_with_the_number_of_a_gone_one_does_not_hold_the_lock(monkeypatch, tmp_path):
    refuse_flock(monkeypatch, errno.ENOSYS)
    held_by(tmp_path / "file", began="1")
    assert is_free(tmp_path / "file")


def test_a_lock_of_another_machine_stays_and_the_error_says_whose_it_is(monkeypatch, tmp_path):
    refuse_flock(monkeypatch, errno.ENOSYS)
    held_by(tmp_path / ".lock", host="node7", space="another", pid=123)
    with pytest.raises(ValueError, match="writing here") as error:
        hold_folder(tmp_path, "tools/some.py", "OUT").__enter__()
    assert str(error.value) == (
        f"{tmp_path}: another tools/some.py is writing here (process 123 on node7; if it is gone,"
        f" remove {tmp_path}/.lock.held); wait for it, or take another OUT"
    )


def test_of_many_that_find_a_stale_lock_one_takes_it_over(monkeypatch, tmp_path):
    refuse_flock(monkeypatch, errno.ENOSYS)
    path = tmp_path / "file"
    held_by(path, pid=2**22 + 1, began="1")
    inside, most = [], []

    def work():
        for _ in range(20):
            with open(path, "a+b") as file, hold(file, path, wait=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    monkeypatch.setattr(file_lock, "POLL_S", 0.001)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 80
