"""Training where each machine has its own disk: the run is on that of rank 0, the data on each.

Two ranks take part as if on two machines, each in a working folder of its own: a relative path is
another place for each of them."""

import json
import shutil
import socket
from pathlib import Path

import pytest
from helpers.commands import on_srun, script
from helpers.runs import deepspeed_json, log
from helpers.second_stages import train, words, write_captures
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("quietly_on_one_thread")
STAGES = ["--detail", "--detail-steps", 2, "--detail-crops", 2, "--detail-crop", 64]
STAGES += ["--completion", "--completion-steps", 2, "--completion-images", 2]
FILES = ["best/adapter_model.safetensors", "detail/best/detail.safetensors"]
FILES += ["completion/best/completion.safetensors"]


def on_own_machine(folder, *given):
    """launch/train.py on the disk of this rank's machine, FOLDER/diskRANK, with a cache there."""
    import os
    from pathlib import Path

    from depthdist.core.command import run_command
    from depthdist.training.command import main

    rank = os.environ["SLURM_PROCID"]
    os.environ |= {"SLURM_NODEID": rank, "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    os.environ["TMPDIR"] = str(Path(folder, f"tmp{rank}"))
    os.environ["DEPTHDIST_CACHE"] = str(Path(folder, f"disk{rank}", "cache"))
    os.chdir(Path(folder, f"disk{rank}"))
    run_command(lambda: main(list(given)))


def on_two_machines(folder, *given, **env):
    for rank in range(2):
        for name in ("disk", "tmp"):
            (folder / f"{name}{rank}").mkdir(exist_ok=True)
    ranks = on_srun(2, script(on_own_machine, folder), folder, *given, **env)
    return [rank.done() for rank in ranks]


def spoil(run: Path) -> None:
    """Make of a run another one of that name: other settings, another adapter."""
    record = json.loads((run / "run.json").read_text())
    record["settings"]["lr"] = 0.5
    (run / "run.json").write_text(json.dumps(record))
    path = run / "best/adapter_model.safetensors"
    save_file({name: 3 * t for name, t in load_file(path).items()}, path, {"format": "pt"})


@pytest.fixture(scope="module")
def whole(place):
    """A run with both stages of one rank, which equals that of two on one disk."""
    run = place / "whole"
    done = train(place, run, *STAGES)
    assert done.code == 0, done
    return run


def test_an_older_run_of_that_name_on_another_disk_is_never_read(place, whole, tmp_path):
    spoil(shutil.copytree(whole, tmp_path / "disk1/runs/x"))
    before = {p: p.read_bytes() for p in (tmp_path / "disk1").rglob("*") if p.is_file()}
    done = on_two_machines(tmp_path, *words(place, "runs/x", *STAGES)[1:])
    assert [rank.code for rank in done] == [0, 0], done
    host = socket.gethostname()
    line = (
        f"run folder   runs/x is on a disk of {host} alone (rank 1 on {host} does not see it): rank"
        " 0 keeps everything"
    )
    assert done[0].out.splitlines().count(line) == 1
    run = tmp_path / "disk0/runs/x"
    for name in FILES:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    (mine,), (its,) = log(run, of="best/loss"), log(whole, of="best/loss")
    best = [name for name in its if name.startswith("best/")]
    assert [mine[name] for name in best] == pytest.approx([its[name] for name in best], rel=1e-12)
    mine, its = (json.loads((one / "detail/scores.json").read_text()) for one in (run, whole))
    for row, scores in its["scores"].items():
        assert mine["scores"][row] == pytest.approx(scores, rel=1e-12, nan_ok=True)
    assert {p: p.read_bytes() for p in (tmp_path / "disk1").rglob("*") if p.is_file()} == before
    assert not list((tmp_path / "tmp1").glob("depthdist-*")), "the copy is gone"
    assert not list(run.glob(".seen-*"))


def test_captures_on_each_disk_are_the_same_data_or_it_is_said_whose_differ(tmp_path):
    write_captures(tmp_path / "disk0/captures", 6)
    shutil.copytree(tmp_path / "disk0/captures", tmp_path / "disk1/captures")
    deepspeed_json(tmp_path / "batch2.json", train_batch_size=2)
    given = ["--data", "captures", "--run", "x", "--deepspeed", tmp_path / "batch2.json"]
    given += ["--model", "tiny", "--epochs", 1, "--pictures", 0, "--size", "28x42"]
    done = on_two_machines(tmp_path, *given)
    assert [rank.code for rank in done] == [0, 0], done
    shutil.rmtree(tmp_path / "disk0/x")
    image = next((tmp_path / "disk1/captures/images").iterdir())
    shutil.copyfile(tmp_path / "disk0/captures/images/5_color.png", image)
    done = on_two_machines(tmp_path, *given)
    assert [rank.code for rank in done] == [2, 2], done
    assert "[rank 1] --data" in done[1].err
    assert f"rank 1 on {socket.gethostname()} sees other data than rank 0" in done[1].err
    assert "each machine makes shards of the captures that it has" in done[1].err
