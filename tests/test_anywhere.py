"""Commands where nothing is as usual: a read-only package, no home, no name, another locale.

Each runs in namespaces of its own; without the right to make those, the tests are skipped.
"""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.captures import ROOT
from helpers.commands import ON_CPU, free_port

HOSTILE = f"""
set -e
mount --bind {ROOT} {ROOT} && mount -o remount,ro,bind {ROOT}
cd / && umask "$MASK"
exec unshare -U --map-user=12345 --map-group=12345 "$@"
"""
NOTHING = {"HOME": "/proc/none", "TMPDIR": "/proc/none", "MASK": "077"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
HEAVY = ["launch/train.py", "launch/evaluate.py", "launch/predict.py", "launch/export.py"]
LIGHT = ["launch/serve.py", "tools/shard.py", "tools/make_tires.py", "tools/make_rooms.py"]
TINY = ["--model", "tiny", "--epochs", 1, "--pictures", 0]
OTHERS = ["tools/report.py", "tools/study.py", "tools/bench.py", "tools/pretrain_builtin.py"]


def unshare(script: str, *words, **env):
    """The script as root of a mount namespace, with `words` and this environment alone."""
    known = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **ON_CPU, **env}
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", *map(str, words)],
        env=known,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def hostile(*words, **env):
    return unshare(HOSTILE, sys.executable, ROOT / words[0], *words[1:], **env)


def may_unshare() -> bool:
    probe = "mount -t tmpfs tmpfs /mnt && unshare -U --map-user=12345 --map-group=12345 true"
    try:
        return unshare(probe).returncode == 0
    except OSError:
        return False


needs_namespaces = pytest.mark.skipif(
    not may_unshare(), reason="needs the right to make mount and user namespaces"
)


@needs_namespaces
@pytest.mark.parametrize("script", [*HEAVY, *LIGHT, *OTHERS])
def test_help_needs_neither_home_nor_name_nor_a_writable_package(script):
    done = hostile(script, "--help", **NOTHING, **ASCII)
    assert done.returncode == 0 and done.stdout and not done.stderr, done


@needs_namespaces
def test_the_whole_way_works_under_all_of_it_at_once(tmp_path):
    top = tmp_path / "it's 100% [a, b] #1?"
    top.mkdir()
    raw, data, run, out = (top / name for name in ("raw", "data", "run", "out"))
    config = ROOT / "ds_configs/fp32.json"
    for words in (
        ["tools/make_tires.py", raw, "--pairs", 4, "--size", "60x98", "--workers", 1],
        ["tools/shard.py", raw, data, "--size", "28x42", "--workers", 1],
        ["launch/train.py", "--deepspeed", config, "--data", data, "--run", run, *TINY],
        ["launch/evaluate.py", "--run", run, "--workers", 1],
        ["launch/predict.py", raw / "images", "--run", run, "--out", out, "--save", "npy,figure"],
    ):
        done = hostile(*words, **NOTHING, **ASCII)
        assert done.returncode == 0 and "Traceback" not in done.stderr, (words, done)
    assert len(list(out.glob("*_depth.npy"))) == 4
    assert (run / "run.json").stat().st_mode & 0o077 == 0  # umask 077 holds


@needs_namespaces
@pytest.mark.parametrize("words", [["tools/make_rooms.py", "--scenes", 2, "--size", "28x42"]])
def test_worker_processes_say_that_they_need_dev_shm(tmp_path, words):
    script = 'mount -t tmpfs -o ro tmpfs /dev/shm; exec "$@"'
    done = unshare(
        script, sys.executable, ROOT / words[0], tmp_path / "out", *words[1:], "--workers", 2
    )
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
