"""One process holds a file at a time, with flock and on file systems that have none."""

import errno
import json
import os
import re
import socket
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
    held_by(tmp_path / ".lock", host="node7", space="another", pid=123, since="2026-01-01 10:00")
    with pytest.raises(ValueError, match="writing here") as error:
        hold_folder(tmp_path, "tools/some.py", "OUT").__enter__()
    assert str(error.value) == (
        f"{tmp_path}: another tools/some.py is writing here (process 123 on node7, since"
        f" 2026-01-01 10:00; if it is gone, remove {tmp_path}/.lock.held); wait for it, or take"
        " another OUT"
    )


def hold_again(folder):
    with hold_folder(folder, "depthdist train", "--run"):
        return (folder / ".lock").read_text()


def test_the_error_of_a_held_folder_says_who_holds_it_and_since_when(tmp_path):
    with (
        hold_folder(tmp_path, "depthdist train", "--run"),
        pytest.raises(ValueError, match="writing here") as error,
    ):
        hold_again(tmp_path)
    assert re.fullmatch(
        f"{tmp_path}: another depthdist train is writing here \\(process {os.getpid()} on"
        f" {socket.gethostname()}, since 20..-..-.. ..:..\\); wait for it, or take another --run",
        str(error.value),
    )
    assert (tmp_path / ".lock").read_text() == "", "nobody holds it"


def named_by_another_machine(folder):
    """What a process on another machine leaves in the lock's file."""
    lock = folder / ".lock"
    lock.write_text(json.dumps({**file_lock._me(), "host": "node7", "space": "another"}))
    return lock


def test_a_folder_that_another_machine_holds_by_a_lock_of_its_own_is_refused(monkeypatch, tmp_path):
    """As on NFS with local_lock: flock succeeds on each machine."""
    lock = named_by_another_machine(tmp_path)
    monkeypatch.setattr(file_lock, "LOOK_S", 30)
    is_over = threading.Event()

    def live():
        while not is_over.wait(0.1):
            os.utime(lock)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(ValueError, match=r"\(process \d+ on node7, since "):
            hold_again(tmp_path)
    finally:
        is_over.set()
        thread.join()


def test_a_folder_of_another_machines_process_that_shows_no_life_is_taken_over(
    monkeypatch, tmp_path, capsys
):
    named_by_another_machine(tmp_path)
    monkeypatch.setattr(file_lock, "LOOK_S", 0.5)
    assert json.loads(hold_again(tmp_path))["host"] == socket.gethostname()
    assert "on node7, since " in capsys.readouterr().out


def test_who_holds_a_folder_shows_life(monkeypatch, tmp_path):
    monkeypatch.setattr(file_lock, "TOUCH_S", 0.05)
    with hold_folder(tmp_path, "depthdist train", "--run"):
        first = (tmp_path / ".lock").stat().st_mtime_ns
        deadline = time.monotonic() + 30
        while (tmp_path / ".lock").stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_file_with_a_content_of_its_own_is_left_as_it_is(tmp_path):
    (tmp_path / "results").write_text("kept")
    with hold_folder(tmp_path, "depthdist predict", "--out", "results"):
        assert (tmp_path / "results").read_text() == "kept"
    assert (tmp_path / "results").read_text() == "kept"


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
