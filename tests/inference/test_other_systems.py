"""Reading, predicting, exporting and the page where Python has no POSIX: as on Windows, macOS.

A process of its own loses what Windows does not have. It imports libraries first: of them there are
builds for each system.
"""

import os
import re
import subprocess
import sys

import pytest
from helpers.captures import ROOT, write_raw
from helpers.commands import ON_CPU

WITHOUT_POSIX = """
import builtins, errno, fcntl, io, os, sys, warnings
import aiohttp.web, fsspec, matplotlib.figure, numpy, peft, PIL.Image, psutil, torch, tqdm
import torch.utils.tensorboard, transformers, webdataset

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
FUNCTIONS = '''sched_getaffinity pread preadv pwrite posix_fadvise getuid geteuid getgid getpgid
    killpg setsid fork sysconf statvfs mkfifo chown uname getloadavg sync'''.split()

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}")

def refuse(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(args[0])
        if path.startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "a folder", path)

def fsync(fd, really=os.fsync, flags=fcntl.fcntl, read=fcntl.F_GETFL):
    if flags(fd, read) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "opened for reading")
    really(fd)

for name in MODULES:
    sys.modules.pop(name, None)
for name in FUNCTIONS:
    delattr(os, name)
os.fsync = fsync
sys.meta_path.insert(0, Missing())
sys.addaudithook(refuse)
warnings.filterwarnings("error", category=EncodingWarning, module="depthdist")
sys.platform = "win32"
"""

PREDICT = """
import glob
import depthdist.core.file_lock, depthdist.inference.export, depthdist.inference.onnx_export
import depthdist.inference.server
from depthdist.commands import main, train
from depthdist.core.command import prepare_process
from depthdist.inference import export_command, predict_command

run, raw, shards, out = sys.argv[1:]
prepare_process()
predict_command.main([raw, "--run", run, "--out", out, "--save", "npy,png,colour,figure,ply"])
predict_command.main([raw, shards, "--run", run, "--out", out + "/more", "--save", "npy"])
export_command.main([run, out + "/export", "--forms", "model,adapter"])
result = depthdist.load(out + "/export/model").predict(glob.glob(raw + "/images/*")[0])
result.save(out + "/a.ply")
capture = depthdist.read_capture(glob.glob(raw + "/depth/*")[0])
print(capture, "like", result)
for start in depthdist.train, lambda raw: train.main([raw, "--model", "tiny"]):
    try:
        start(raw)
    except ValueError as err:
        print("refused:", err)
"""


@pytest.fixture(scope="module")
def predicted(run, tmp_path_factory):
    """A folder of results that a process without POSIX wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    words = [run, write_raw(folder / "raw", 1), run.parents[1] / "shards", folder / "out"]
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", WITHOUT_POSIX + PREDICT, *words],
        env={**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_images_and_shards_are_predicted_and_listed_without_posix(predicted):
    out, printed = predicted
    assert len((out / "done.jsonl").read_text().splitlines()) == 2
    assert len(list(out.glob("*_*"))) == 5
    assert len(list((out / "more").glob("*.npy"))) == 7
    assert "1 of 1 images: depth in mm" in printed
    assert "7 of 7 images: depth in mm" in printed
    assert not list(out.rglob("*.held")), "the lock is released"


def test_a_model_is_exported_and_loaded_again_without_posix(predicted):
    out, _ = predicted
    assert (out / "export/adapter/README.md").exists()
    assert (out / "a.ply").read_bytes().startswith(b"ply")


def test_a_capture_is_read_without_posix(predicted):
    assert re.search(
        r"CaptureArrays\(30 x 40, \d\d% measured\) like DepthResult\(30 x 40", predicted[1]
    )


def test_training_from_python_and_as_a_command_says_what_it_needs_on_windows(predicted):
    lines = [line for line in predicted[1].splitlines() if line.startswith("refused: ")]
    assert len(lines) == 2
    assert set(lines) == {
        "refused: training needs Linux, and this is win32: on Windows WSL 2 is one; predicting and"
        " exporting work here"
    }
