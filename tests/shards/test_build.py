"""A dataset that grows, is made by many processes, and survives being killed: always the same bytes
as if nothing had happened."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.captures import ROOT, SHARD, capture, write_capture, write_raw
from helpers.commands import LAUNCHER, ON_CPU, command, free_port, on_srun, until
from PIL import Image

from depthdist.captures.sessions import number_sessions
from depthdist.core.settings import Size
from depthdist.shards.build import build_shards
from depthdist.shards.decoding import decode_sample
from depthdist.shards.index import read_index
from depthdist.shards.settings import ShardSettings
from depthdist.shards.verify import verify_dataset

SMALL = {"size": Size(28, 42), "workers": 1, "shard_mb": 0.015}
FLAGS = ["--size", "28x42", "--shard-mb", "0.015"]


def make(raw, out, **settings):
    return build_shards(ShardSettings(raw=str(raw), out=str(out), **{**SMALL, **settings}))


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a dataset."""
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def stems(out, split):
    return {ref.stem for ref in read_index(out).samples(split)}


def more(raw: Path, count: int, hour: int) -> None:
    """Captures of another session: `count` of them, a minute apart."""
    for i in range(count):
        stem = f"21-12-03-{hour:02d}-{i:02d}-00_Zivid_acquisition"
        write_capture(raw / f"images/{stem}_color.png", raw / f"depth/{stem}_rawDepth.npy", 100 + i)


# ------------------------------------------------------------------------------------------- append


def test_append_adds_new_captures_and_touches_no_old_shard(tmp_path, in_this_process):
    raw, out = write_raw(tmp_path / "raw", 8), tmp_path / "out"
    make(raw, out, val=0.25)
    old = contents(out)
    sides = stems(out, "train"), stems(out, "val")
    more(raw, 8, 15)
    index = make(raw, out, val=0.25, append=True)
    assert (index["held"], index["changed"], index["appended"]) == (8, True, 1)
    assert verify_dataset(out) == []
    assert all(
        contents(out)[name] == content
        for name, content in old.items()
        if name.startswith(("train/", "val/"))
    )
    assert sides[0] < stems(out, "train") and sides[1] < stems(out, "val"), "nobody changes sides"
    assert {name: split["count"] for name, split in index["splits"].items()} == {
        "train": 12,
        "val": 4,
    }
    keys = [ref.key for split in ("train", "val") for ref in read_index(out).samples(split)]
    assert len(set(keys)) == 16
    whole = make(
        raw, tmp_path / "whole", val=0.25
    )  # statistics are those of a dataset made at once, split by split they may differ
    for name in ("measured", "out_of_range_pixels"):
        assert index[name] == whole[name]
    assert sum(index["splits"][s]["stats"]["valid_pixels"] for s in index["splits"]) == sum(
        whole["splits"][s]["stats"]["valid_pixels"] for s in index["splits"]
    )


def test_append_with_nothing_new_changes_nothing(tmp_path, in_this_process):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    make(raw, out)
    old = contents(out)
    index = make(raw, out, append=True)
    assert not index["changed"]
    assert index["held"] == 6
    assert contents(out) == old


def test_append_to_nothing_is_an_ordinary_start(tmp_path, in_this_process):
    raw = write_raw(tmp_path / "raw", 6)
    make(raw, tmp_path / "a")
    make(raw, tmp_path / "b", append=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_captures_of_a_known_session_join_its_side(tmp_path, in_this_process):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for hour in (8, 10, 12, 14, 16):
        more(raw, 3, hour)
    make(raw, out, split="session", val=0.2)
    (hour,) = {stem.split("-")[3] for stem in stems(out, "val")}
    for i in range(3, 6):  # minutes later: the same session
        stem = f"21-12-03-{hour}-{i:02d}-00_Zivid_acquisition"
        write_capture(raw / f"images/{stem}_color.png", raw / f"depth/{stem}_rawDepth.npy", i)
    make(raw, out, split="session", val=0.2, append=True)
    assert {stem.split("-")[3] for stem in stems(out, "val")} == {hour}
    assert len(stems(out, "val")) == 6
    refs = [ref for split in ("train", "val") for ref in read_index(out).samples(split)]
    joint = dict(zip([r.stem for r in refs], number_sessions([r.stem for r in refs])))
    assert len({(r.session, joint[r.stem]) for r in refs}) == 5, "one number a session, old and new"


def test_what_cannot_be_appended_is_refused_in_one_line(tmp_path, in_this_process):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    make(raw, out)
    more(raw, 2, 15)
    with pytest.raises(ValueError, match=r"--far was 4000.0, is 3000.0; --append needs the same"):
        make(raw, out, far=3000.0, append=True)
    make(raw, out, append=True)
    with pytest.raises(ValueError, match="captures were added to it 1 times; --append adds more"):
        make(raw, out)
    next(out.glob("train/*.json")).write_text("{")
    with pytest.raises(ValueError, match="commit record cannot be read"):
        make(raw, out, append=True)


@pytest.mark.parametrize("harm", ["another version", "cut off", "gone"])
def test_append_never_begins_anew_over_shards_that_it_cannot_read(tmp_path, in_this_process, harm):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    make(raw, out)
    index = out / "index.json"
    {
        "another version": lambda: index.write_text(
            json.dumps({**json.loads(index.read_text()), "version": 1})
        ),
        "cut off": lambda: index.write_bytes(index.read_bytes()[:100]),
        "gone": index.unlink,
    }[harm]()
    kept = contents(out)
    more(raw, 2, 15)
    with pytest.raises(ValueError, match="--append adds to a whole dataset only"):
        make(raw, out, append=True)
    assert contents(out) == kept


def test_a_dataset_that_another_run_changed_since_planning_is_not_touched(
    tmp_path, in_this_process, monkeypatch
):
    import depthdist.shards.build as build

    raw, out, plan = write_raw(tmp_path / "raw", 6), tmp_path / "out", build.make_plan
    make(raw, out)
    more(raw, 2, 15)

    def slow(*given):
        planned = plan(*given)
        with monkeypatch.context() as patch:
            patch.setattr(build, "make_plan", plan)
            make(raw, out, append=True)  # the other run
        return planned

    with monkeypatch.context() as patch:
        patch.setattr(build, "make_plan", slow)
        with pytest.raises(
            ValueError, match="another depthdist shard changed it since this one began"
        ):
            make(raw, out, append=True)
    assert verify_dataset(out) == []
    assert len(stems(out, "train")) + len(stems(out, "val")) == 8


def test_bad_new_captures_are_rejected_and_the_old_rejects_stay(tmp_path, in_this_process):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    write_capture(raw / "odd.png", raw / "odd.npy", size=(20, 20))
    make(raw, out)
    more(raw, 2, 15)
    (raw / "alone.png").write_bytes((raw / "odd.png").read_bytes())
    index = make(raw, out, append=True)
    lines = [json.loads(line)["path"] for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert sorted(lines) == ["alone.png", "odd.npy"]
    assert index["rejects"] == 2
    assert verify_dataset(out) == []


# ------------------------------------------------------------------------------- codecs, statistics


@pytest.mark.parametrize("codec", ["npy", "png"])
def test_each_depth_codec_gives_the_same_depth(tmp_path, in_this_process, codec):
    raw = write_raw(tmp_path / "raw", 2)
    make(raw, tmp_path / "out", split="none", depth_codec=codec)
    index = read_index(tmp_path / "out")
    for ref in index.samples("train"):
        content = ref.shard.read_bytes()
        found = decode_sample(
            {m: content[offset : offset + size] for m, (offset, size, _) in ref.members.items()},
            index,
        )
        z = capture(int(ref.key))[1][:, :, 2]
        assert np.abs(found["depth"] * index.step_mm - z)[np.isfinite(z)].max() <= index.step_mm / 2
        np.testing.assert_array_equal(found["mask"], np.isfinite(z))
        if codec == "png":  # opens anywhere
            offset, size, _ = ref.members["depth.png"]
            (tmp_path / "depth.png").write_bytes(content[offset : offset + size])
            np.testing.assert_array_equal(
                np.asarray(Image.open(tmp_path / "depth.png")), found["depth"]
            )
    assert verify_dataset(tmp_path / "out") == []


def test_percentiles_are_numpys_to_a_bin_of_the_histogram(tmp_path, in_this_process):
    stats = make(write_raw(tmp_path / "raw", 6), tmp_path / "out", split="none")["splits"]["train"][
        "stats"
    ]
    z = np.concatenate([c[np.isfinite(c)] for c in (capture(i)[1][:, :, 2] for i in range(6))])
    for name, value in stats["percentiles_mm"].items():
        assert value == pytest.approx(
            np.percentile(z, float(name)), abs=stats["histogram"]["bin_mm"]
        )
    assert list(stats["percentiles_mm"]) == ["0.1", "1", "5", "50", "95", "99", "99.9"]


# ----------------------------------------------------------------------------------- many processes


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "srun"])
def test_ranks_share_the_work_and_leave_the_bytes_of_one_process(tmp_path, launcher):
    raw, command = (
        write_raw(tmp_path / "raw", 9),
        [str(ROOT / "tools/shard.py"), str(tmp_path / "raw"), str(tmp_path / "many"), *FLAGS],
    )
    env = {**os.environ, **ON_CPU}
    if launcher == "deepspeed":
        starts = [
            (
                [
                    str(LAUNCHER),
                    "--num_accelerators",
                    "3",
                    "--master_port",
                    str(free_port()),
                    *command,
                ],
                env,
            )
        ]
    elif launcher == "torchrun":
        starts = [
            (
                [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nproc-per-node",
                    "3",
                    "--master-port",
                    str(free_port()),
                    *command,
                ],
                env,
            )
        ]
    else:  # what srun tells its tasks
        port = str(free_port())
        told = [
            {
                "SLURM_PROCID": str(r),
                "SLURM_NTASKS": "3",
                "SLURM_STEP_NUM_TASKS": "3",
                "SLURM_NODELIST": "127.0.0.1",
                "MASTER_PORT": port,
            }
            for r in range(3)
        ]
        starts = [([sys.executable, *command], {**env, **extra}) for extra in told]
    running = [
        subprocess.Popen(
            words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for words, env in starts
    ]
    texts = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), texts
    assert sum(text.count("dataset   ") for text in texts) == 1, "rank 0 alone speaks"
    assert (
        subprocess.run(
            [*SHARD, str(raw), str(tmp_path / "one"), *FLAGS], capture_output=True
        ).returncode
        == 0
    )
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) > 10


def test_what_goes_wrong_on_one_rank_stops_all_with_its_words(tmp_path):
    raw = write_raw(tmp_path / "raw", 6)
    (tmp_path / "out").write_text("")
    command = [str(ROOT / "tools/shard.py"), str(raw), str(tmp_path / "out"), *FLAGS]
    words = [str(LAUNCHER), "--num_accelerators", "2", "--master_port", str(free_port()), *command]
    done = subprocess.run(
        words, env={**os.environ, **ON_CPU}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "shard.py: error:" in line]
    assert "rank 0: " in line
    assert "is a file; expected a folder for the dataset" in line


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGUSR1"])
def test_a_signal_to_one_rank_ends_all_and_the_same_command_goes_on(tmp_path, how):
    raw, out = write_raw(tmp_path / "raw", 300), tmp_path / "out"
    flags = [*FLAGS, "--shard-mb", "0.05"]
    ranks = on_srun(2, "tools/shard.py", raw, out, *flags)
    until(lambda: list(out.glob(".build/*/*.json")))
    ranks[1].process.send_signal(signal.Signals[how])
    first, second = [rank.done(60) for rank in ranks]
    assert not (out / "index.json").exists() and list(out.glob(".build/*/*.json"))
    line = first.err.splitlines()[-1]
    if how == "SIGKILL":
        assert (first.code, second.code) == (1, -signal.SIGKILL), (first, second)
        assert line.startswith("shard.py: rank 1 on ") and "): gone without a word" in line, line
    else:
        assert (first.code, second.code, second.err) == (75, 75, ""), (first, second)
        assert line.startswith(f"shard.py: stopped by {how} "), line
    assert line.removesuffix(")").endswith("; the same command goes on"), line
    again = [rank.done() for rank in on_srun(2, "tools/shard.py", raw, out, *flags)]
    assert [rank.code for rank in again] == [0, 0], again
    assert command("tools/shard.py", raw, tmp_path / "alone", *flags).code == 0
    assert contents(out) == contents(tmp_path / "alone")


# ------------------------------------------------------------------------------------------ kill -9


def cpu_s(process: psutil.Process) -> float:
    """Seconds of CPU time that the command and its processes have used, ended ones included."""
    used = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(one.cpu_times()[:4])
    return used


def killed_after(words: list[str], seconds: float) -> bool:
    """Start the command in a group of its own, and kill the group once it used so much CPU time.

    That comes at the same place of its work however busy the machine is. Whether it was still at
    work.
    """
    process = psutil.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None:
        if cpu_s(process) >= seconds:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("append", [False, True])
def test_sharding_killed_at_random_moments_ends_in_the_bytes_of_a_run_that_was_not(
    tmp_path, append
):
    """Each try is killed a little later than the start-up takes, at a drawn moment.

    What it left must be whole, and goes on.
    """
    raw, out, start, whole, chance = (
        write_raw(tmp_path / "raw", 6),
        *(tmp_path / name for name in ("out", "start", "whole")),
        random.Random(0),
    )
    flags = [*FLAGS, "--workers", "2"]
    if append:
        subprocess.run([*SHARD, str(raw), str(out), *flags], check=True, capture_output=True)
        shutil.copytree(out, start)
        shutil.copytree(out, whole)
    more(raw, 20, 15)
    words = [*SHARD, str(raw), str(out), *flags, *(["--append"] if append else [])]
    before = os.times()
    subprocess.run(
        [*SHARD, str(raw), str(whole), *words[len(SHARD) + 2 :]], check=True, capture_output=True
    )
    takes, kills = sum(os.times()[2:4]) - sum(before[2:4]), 0
    for _ in range(40):
        if killed_after(words, takes * chance.uniform(0.3, 1)):
            kills += 1
            if append or (out / "index.json").exists():
                assert [p for p in verify_dataset(out) if "does not belong here" not in p] == [], (
                    "what is there is whole"
                )
        else:  # it was through before: begin anew
            assert contents(out) == contents(whole)
            shutil.rmtree(out)
            if append:
                shutil.copytree(start, out)
        if kills == 6:
            break
    assert kills == 6
    subprocess.run(words, check=True, capture_output=True)
    assert contents(out) == contents(whole)
    assert verify_dataset(out) == []


def test_a_folder_of_indexed_tars_is_never_written_over(tmp_path, in_this_process):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    make(raw, out)
    raw_index = json.loads((out / "index.json").read_text())
    depth = {**raw_index["depth"], "dtype": "uint16", "unit_mm": 1.0, "resize": False}
    (out / "index.json").write_text(json.dumps({**raw_index, "foreign": True, "depth": depth}))
    kept = contents(out)
    for how in ({}, {"append": True}):
        with pytest.raises(ValueError, match="holds somebody else's tars"):
            make(raw, out, **how)
    assert contents(out) == kept
