"""`depthdist.train`: the launcher in a process of its own, its progress, errors and end."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers.captures import ROOT, write_raw
from helpers.commands import ON_CPU
from helpers.runs import log

import depthdist
from depthdist.training.training_process import LogReader, training_words

SMALL = {"model": "tiny", "size": (28, 42), "pictures": 0, "deepspeed": "ds_configs/fp32.json"}


@pytest.fixture(scope="module", autouse=True)
def on_cpu():
    """The environment of what these tests start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ON_CPU, "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a training on a folder of captures returned, told its callbacks, and printed."""
    folder = tmp_path_factory.mktemp("python")
    raw = write_raw(folder / "raw", 6)
    lines, epochs, out = [], [], io.StringIO()
    with contextlib.redirect_stdout(out):  # as a notebook does
        result = depthdist.train(
            raw,
            folder / "run",
            epochs=2,
            cache=folder / "cache",
            on_log=lines.append,
            on_epoch=epochs.append,
            **SMALL,
        )
    return result, lines, epochs, out.getvalue()


def test_a_run_is_trained_and_its_best_scores_are_returned(trained):
    result, *_ = trained
    assert (result.run / "best/adapter_model.safetensors").exists()
    lowest = min(line["eval/loss"] for line in log(result.run, of="eval/loss"))
    assert result.best["loss"] == pytest.approx(lowest, rel=1e-3)
    assert result.best["rmse_mm"] > 0


def test_the_callbacks_get_every_line_of_the_log_in_its_order(trained):
    result, lines, epochs, _ = trained
    assert lines == log(result.run)
    assert [line["epoch"] for line in epochs] == [0, 1, 2]
    assert epochs == log(result.run, of="eval/loss")


def test_what_the_command_prints_comes_through(trained):
    *_, out = trained
    assert "5 training, 1 validation samples" in out
    assert "epoch 2/2: eval loss" in out


def test_the_run_is_loaded_and_predicts(trained):
    result, *_ = trained
    images = sorted((result.run.parent / "raw/images").iterdir())
    predicted = depthdist.load(result.run, device="cpu").predict(images[0])
    assert predicted.points_mm.shape == (30, 40, 3)


def test_errors_are_the_commands_lines_with_the_names_of_arguments(tmp_path, capfd):
    write_raw(tmp_path / "raw", 2)
    with pytest.raises(ValueError, match="lora_rank is -3") as caught:
        depthdist.train(tmp_path / "raw", tmp_path / "run", epochs=0, lora_rank=-3, **SMALL)
    assert sorted(str(caught.value).splitlines()) == [
        "epochs is 0: expected >= 1",
        "lora_rank is -3: expected 1 .. 1024",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", [None, 3, [None], {"a": 1}])
def test_data_of_another_type_is_refused_by_its_name(data):
    with pytest.raises(TypeError, match=r"^data is .*: expected a folder of captures or of shards"):
        depthdist.train(data)


INTERRUPTED = """
import sys, depthdist
data, run = sys.argv[1:]
try:
    settings = dict(epochs=10000, model="tiny", pictures=0, deepspeed="ds_configs/fp32.json")
    depthdist.train(data, run, on_epoch=lambda line: print("EPOCH", flush=True), **settings)
except KeyboardInterrupt:
    print("INTERRUPTED")
"""


def test_an_interrupt_ends_all_processes(data, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, data, tmp_path / "run"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert any(line == "EPOCH\n" for line in process.stdout)
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 2, "the launcher and a rank"
        os.kill(process.pid, signal.SIGINT)  # as a notebook's stop button: not the whole group
        assert process.stdout.read().splitlines()[-1] == "INTERRUPTED"
        assert process.wait(60) == 0
    gone, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    assert len(gone) == len(below)


def test_settings_become_the_commands_words():
    words = training_words(
        ["~/a", "s3://bucket/b"],
        {
            "run": "r",
            "epochs": None,
            "size": (28, 42),
            "calibrate": False,
            "lora_rank": 8,
            "loss": {"l1": 1, "grad": 2.5},
            "betas": [0.9, 0.99],
            "dora": True,
        },
    )
    assert words == [
        f"{os.path.expanduser('~')}/a,s3://bucket/b",
        "--run=r",
        "--size=28x42",
        "--no-calibrate",
        "--lora-rank=8",
        "--loss=l1=1,grad=2.5",
        "--betas=0.9,0.99",
        "--dora",
    ]


def test_lines_of_before_and_unfinished_lines_are_no_news(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_reader = LogReader(path, since=time.time())
    assert list(log_reader.new_lines()) == []
    path.write_text('{"step": 1, "time": 5}\n{"step": 2, "time": 4e9}\n{"step": 3, "ti')
    assert [line["step"] for line in log_reader.new_lines()] == [2]
    with open(path, "a") as file:
        file.write('me": 4e9}\n')
    assert [line["step"] for line in log_reader.new_lines()] == [3]
    (tmp_path / "new").write_text('{"step": 2, "time": 4e9}\n')
    (tmp_path / "new").rename(path)  # as a resumed run drops what came after its state
    assert [line["step"] for line in log_reader.new_lines()] == [2]
