"""Commands where nothing is as usual: installed from a wheel, a read-only package, no home, no
name, another locale.

Each runs in namespaces of its own; without the right to make those, as an ordinary process.
"""

import os
import pty
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import pytest
from helpers.captures import ROOT
from helpers.commands import ON_CPU, free_port

from depthdist import __version__
from depthdist.commands.main import COMMANDS

READ_ONLY = """
set -e
mount --bind "$PLACE" "$PLACE" && mount -o remount,ro,bind "$PLACE"
cd "$FOLDER" && umask 077
exec unshare -U --map-user=12345 --map-group=12345 "$@"
"""
NOTHING = {"HOME": "/proc/none", "TMPDIR": "/proc/none"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
IN_THE_WHEEL = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "depthdist", "ds_configs")
SMALL = ["--size", "28x42", "--model", "tiny", "--epochs", 1]
SCRIPTS = ["launch/train.py", "tools/make_rooms.py", "tools/bench.py", "tools/pretrain_builtin.py"]


def start(words, **how):
    return subprocess.run(
        [*map(str, words)], capture_output=True, encoding="utf-8", errors="replace", **how
    )


def unshare(script: str, *words, **env):
    """The script as root of a mount namespace, with `words` and this environment alone."""
    known = {"PATH": os.environ["PATH"], **ON_CPU, **{name: str(env[name]) for name in env}}
    return start(["unshare", "-m", "bash", "-c", script, "bash", *words], env=known)


@cache
def may_unshare() -> bool:
    probe = "mount -t tmpfs tmpfs /mnt && unshare -U --map-user=12345 --map-group=12345 true"
    try:
        return unshare(probe).returncode == 0
    except OSError:
        return False


needs_namespaces = pytest.mark.skipif(
    not may_unshare(), reason="needs the right to make mount and user namespaces"
)


def hostile(*words, place: Path, folder: Path, **env):
    """The command in `folder`, where `place` is read-only; the user has no home and no name."""
    if not may_unshare():
        return start(words, cwd=folder, env={**os.environ, **ON_CPU, **env}, umask=0o077)
    return unshare(READ_ONLY, *words, PLACE=place, FOLDER=folder, **NOTHING, **ASCII, **env)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with this package's wheel, and what that needs from the one of the tests."""
    pytest.importorskip("setuptools", minversion="77", reason="a wheel is built with it")
    pytest.importorskip("pip", reason="a wheel is built and installed by it")
    folder = tmp_path_factory.mktemp("installed")
    (folder / "source").mkdir()
    for name in IN_THE_WHEEL:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip"]
    alone = ["-q", "--no-deps", "--no-index"]
    place = folder / "venv"
    wheel = folder / f"depthdist-{__version__}-py3-none-any.whl"
    for words in (
        [*pip, "wheel", *alone, "--no-build-isolation", "-w", folder, folder / "source"],
        [sys.executable, "-m", "venv", "--without-pip", place],
        [*pip, "--python", place / "bin/python", "install", *alone, wheel],
    ):
        done = start(words)
        assert done.returncode == 0, done
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return place


@pytest.mark.parametrize("word", ["", *COMMANDS])
def test_help_needs_neither_home_nor_name_nor_a_writable_package(word, installed, tmp_path):
    words = [word] if word else []
    done = hostile(installed / "bin/depthdist", *words, "--help", place=installed, folder=tmp_path)
    assert done.returncode == 0 and done.stdout and not done.stderr, done


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_scripts_needs_none_of_it_either(script, tmp_path):
    words = [sys.executable, ROOT / script, "--help"]
    done = hostile(*words, place=ROOT, folder=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and done.stdout and not done.stderr, done


def test_a_wheel_goes_the_whole_way_in_an_empty_folder_under_all_of_it_at_once(installed, tmp_path):
    top = tmp_path / "it's 100% [a, b] #1?"
    top.mkdir()
    quick = ["--pairs", 4, "--capture", "72x108", "--detail-steps", 2]
    command = [installed / "bin/depthdist", "demo", *quick, *SMALL]
    done = hostile(*command, place=installed, folder=top)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done
    assert "WARNING" not in done.stdout + done.stderr, done
    assert len(list(top.glob("runs/demo/predictions/*_figure.png"))) == 3, "held out"
    assert (top / "runs/demo/report.html").exists() and (top / "data/tires-report.html").exists()
    assert (top / "runs/demo/run.json").stat().st_mode & 0o077 == 0  # umask 077 holds
    assert sorted(path.name for path in top.iterdir()) == ["data", "runs"]


@needs_namespaces
@pytest.mark.parametrize("words", [["tools/make_rooms.py", "--scenes", 2, "--size", "28x42"]])
def test_worker_processes_say_that_they_need_dev_shm(tmp_path, words):
    script = 'mount -t tmpfs -o ro tmpfs /dev/shm; exec "$@"'
    command = [sys.executable, ROOT / words[0], tmp_path / "out", *words[1:], "--workers", 2]
    done = unshare(script, *command, PYTHONPATH=ROOT)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "they need a /dev/shm that can be written" in last, done


# ------------------------------------------------------------------------------- a shell in SLURM

ADOPT = """
import os, sys
from depthdist.distributed.launchers import adopt_slurm_variables
adopt_slurm_variables()
print("RANKS", os.environ.get("WORLD_SIZE", "one"), flush=True)
"""


def typed_in(shell: list[str], line: str, folder: Path) -> str:
    """What a shell on a terminal prints that has the variables of a step of four tasks."""
    (folder / "adopt.py").write_text(ADOPT)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_PROCID": "0",
        "MASTER_PORT": str(free_port()),
    }
    env.pop("RANK", None)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(shell[0], shell, env)
    if line:
        os.write(terminal, f"{line}; exit\n".encode())
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:
        pass  # how a terminal ends
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown.decode(errors="replace")


@pytest.mark.parametrize("line", ["{python} adopt.py", "bash script.sh"])
def test_what_is_typed_in_a_shell_of_a_slurm_step_is_one_process(tmp_path, line):
    (tmp_path / "script.sh").write_text(f"{sys.executable} adopt.py; true\n")
    shown = typed_in(["bash", "--norc", "-i"], line.format(python=sys.executable), tmp_path)
    assert "RANKS one" in shown and "a shell inside a SLURM step of 4 tasks" in shown, shown


@pytest.mark.parametrize(
    "task", [[sys.executable, "adopt.py"], ["bash", "-c", f"{sys.executable} adopt.py; true"]]
)
def test_a_task_of_srun_on_a_terminal_is_one_rank_of_all(tmp_path, task):
    assert "RANKS 4" in typed_in(task, "", tmp_path)
