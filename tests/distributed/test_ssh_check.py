"""Whether machines are reached before a launch; the ssh here is a script, tests/test_nodes.py has
the real one."""

import time

import pytest

from depthdist.distributed import ssh_check
from depthdist.distributed.ssh_check import check_ssh

SSH = """#!/bin/sh
case "$*" in
    *" away true") echo "a banner" >&2; echo "ssh: connect to host away: refused" >&2; exit 255;;
    *" silent true") exit 255;;
    *" no-such-command true") exit 127;;
    *" slow true") exec sleep 30;;
esac
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """`check_ssh` of these machines."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin/ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    return lambda *hosts: check_ssh(hosts)


def test_each_machine_that_is_not_reached_is_named_with_what_ssh_said(check):
    with pytest.raises(ValueError) as caught:
        check("here", "away", "silent")
    assert str(caught.value) == (
        "--hostfile: ssh does not reach 2 of 3 machines: away (ssh: connect to host away: refused);"
        " silent (it does not say why); `ssh away true` must work from here without a question"
    )


def test_a_machine_that_has_answered_is_reached_whatever_it_says(check):
    check("here", "no-such-command")


def test_a_machine_that_takes_long_to_answer_is_left_to_the_launcher(check, monkeypatch):
    monkeypatch.setattr(ssh_check, "SLOWEST_S", 0.5)
    began = time.monotonic()
    check("slow")
    assert time.monotonic() < began + 20


def test_nothing_is_checked_where_there_is_no_ssh(check, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    check("away")
