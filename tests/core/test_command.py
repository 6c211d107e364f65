"""How a command ends: run_command's exit codes and lines, in this process and in real ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.captures import ROOT

from depthdist.core.command import run_command
from depthdist.core.errors import SettingsError

COMMAND = """
import sys
from depthdist.core.command import run_command
def main():
    {body}
run_command(main)
"""


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch):
    """Other tests have started a world in this process: these commands have none."""
    monkeypatch.setattr("depthdist.core.command._ranks", None)


def run(body, *words, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", COMMAND.format(body=body), *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
    )


def ended(main, monkeypatch, capsys, **environment):
    """Exit code and lines on stderr of a command in this process."""
    for name in ("RANK", "DEPTHDIST_TRACE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["launch/thing.py"])
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    return caught.value.code, capsys.readouterr().err.splitlines()


def raises(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ValueError("one\ntwo"), ["one", "two"]),
        (SettingsError(["--a is 1", "--b is 2"]), ["--a is 1", "--b is 2"]),
        (ValueError(), ["ValueError()"]),
        (
            FileNotFoundError(2, "No such file or directory", "/some/where"),
            ["/some/where: No such file or directory"],
        ),
        (OSError(28, "No space left on device"), ["output: No space left on device"]),
        (OSError("odd"), ["odd"]),
    ],
)
def test_bad_input_ends_a_command_with_a_line_a_problem_and_exit_code_2(
    error, lines, monkeypatch, capsys
):
    assert ended(raises(error), monkeypatch, capsys) == (
        2,
        [f"thing.py: error: {line}" for line in lines],
    )


def test_ctrl_c_ends_a_command_with_one_line_and_130(monkeypatch, capsys):
    code, lines = ended(raises(KeyboardInterrupt()), monkeypatch, capsys)
    assert code == 130 and len(lines) == 1 and "Traceback" not in lines[0]


def test_ctrl_c_while_a_command_is_still_importing_is_one_line_too():
    command = subprocess.Popen(
        [sys.executable, "launch/predict.py", "depthdist/inference/probe.png", "--run", "o/none"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "libtorch" not in Path(f"/proc/{command.pid}/maps").read_text():
        assert command.poll() is None
        time.sleep(0.01)
    command.send_signal(signal.SIGINT)
    assert (
        command.communicate(timeout=60)[1] == "predict.py: stopped by Ctrl-C\n"
        and command.returncode == 130
    )


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_ends_with_what_main_returns(returned, code, monkeypatch, capsys):
    assert ended(lambda: returned, monkeypatch, capsys) == (code, [])


def test_of_many_ranks_the_first_alone_says_what_all_found_and_others_name_themselves(
    monkeypatch, capsys
):
    assert ended(
        raises(SettingsError(["--a is 1"])), monkeypatch, capsys, RANK="3", LOCAL_RANK="1"
    ) == (2, [])
    on_another_machine = ended(
        raises(SettingsError(["--a is 1"])), monkeypatch, capsys, RANK="2", LOCAL_RANK="0"
    )
    assert on_another_machine == (2, ["thing.py: error: [rank 2] --a is 1"])
    assert ended(raises(ValueError("a shard is broken")), monkeypatch, capsys, RANK="3") == (
        2,
        ["thing.py: error: [rank 3] a shard is broken"],
    )


def test_a_runtime_error_is_a_bug_and_is_raised():
    with pytest.raises(RuntimeError):
        run_command(raises(RuntimeError("a bug")))


def test_a_bug_of_ours_is_not_hidden(monkeypatch):
    with pytest.raises(AssertionError):
        run_command(raises(AssertionError("ours")))


def test_the_traceback_is_there_for_who_asks(monkeypatch, capsys):
    _, lines = ended(raises(ValueError("found")), monkeypatch, capsys, DEPTHDIST_TRACE="1")
    assert lines[0].startswith("Traceback") and lines[-1] == "thing.py: error: found"


def test_a_real_process_shows_no_traceback():
    result = run("raise ValueError('one line')")
    assert (result.returncode, result.stderr, result.stdout) == (2, "-c: error: one line\n", "")
    result = run(
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)"
    )
    assert result.returncode == 130 and "Traceback" not in result.stderr
