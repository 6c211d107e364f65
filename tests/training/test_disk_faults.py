"""What a run keeps is tried before the first step; a full disk, a folder that is gone or read-only
in mid-run is one line, and the last saved state stays and is gone on from."""

import shutil
import subprocess

import pytest
from helpers.runs import saved_state, train

from depthdist.runs.state_files import states


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder])


def fill(disk):
    """Leave not one byte of room."""
    with open(disk / "filler", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def before_call(patch, owner, name, call, harm):
    """Do `harm` before the `call`-th call of a function."""
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def harmed(*arguments, **named):
        if next(calls) == call:
            harm()
        return real(*arguments, **named)

    patch.setattr(owner, name, harmed)


WRITERS = {  # the function before which the disk is full in epoch 2, and at which of its calls
    "state": ("keeping", "save_state", 2),
    "best adapter": ("keeping", "save_adapter", 2),
    "metrics.jsonl and TensorBoard": ("loop", "log_step", 3),
    "run.json": ("keeping", "mark_as_scored", 1),
}


def harmed_run(writer, harm, words, monkeypatch):
    """How a run ends in which `harm` is done before that writer writes."""
    from depthdist.training import keeping, loop

    owner, name, call = WRITERS[writer]
    with monkeypatch.context() as patch:
        # every epoch is better than the one before
        patch.setattr(keeping, "is_better", lambda *scores: True)
        before_call(patch, {"keeping": keeping, "loop": loop}[owner], name, call, harm)
        return train(*words[0], deepspeed=words[1])


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_the_run_goes_on_after_room_is_made(
    writer, data, batch4, disk, monkeypatch
):
    run = disk / "run"
    words = (data, run, "--epochs", 2), batch4
    done = harmed_run(writer, lambda: fill(disk), words, monkeypatch)
    (line,) = done.errors
    assert "No space left on device" in line and "the same command goes on from" in line
    epoch = saved_state(run)[1]["train"]["epoch"]
    assert epoch == (2 if writer == "run.json" else 1)
    assert (run / "best/depthdist.json").exists(), "the old best adapter is gone"
    (disk / "filler").unlink()
    done = train(data, run, "--epochs", 2, deepspeed=batch4)
    assert done.code == 0 and "going on     from" in done.out


@pytest.mark.parametrize("writer", ["state", "metrics.jsonl and TensorBoard"])
def test_a_read_only_disk_is_one_line_and_the_run_goes_on_afterwards(
    writer, data, batch4, disk, monkeypatch
):
    run = disk / "run"

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)

    words = (data, run, "--epochs", 2), batch4
    (line,) = harmed_run(writer, lambda: remount("ro"), words, monkeypatch).errors
    assert "Read-only file system" in line and "the same command goes on from" in line
    remount("rw")
    assert train(data, run, "--epochs", 2, deepspeed=batch4).code == 0


@pytest.mark.parametrize("writer", ["state", "metrics.jsonl and TensorBoard"])
def test_a_run_whose_folder_is_removed_ends_in_one_line_and_makes_no_other(
    writer, data, batch4, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    words = (data, run, "--epochs", 2), batch4
    (line,) = harmed_run(writer, lambda: shutil.rmtree(run), words, monkeypatch).errors
    assert "No such file or directory" in line and "no state is saved" in line
    assert not run.exists()


def test_a_file_in_the_place_of_the_states_is_known_before_training(data, batch4, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "last").write_text("a file")
    done = train(data, run, "--epochs", 1, deepspeed=batch4)
    (line,) = done.errors
    assert "cannot be saved, so nothing was trained" in line and "File exists" in line
    assert "before training" not in done.out


def test_a_state_that_cannot_be_gathered_is_known_before_training(
    data, batch4, tmp_path, monkeypatch
):
    from depthdist.training.master_weights import MasterWeights

    def fails(self, name, kind="weights"):
        if kind != "weights":
            raise ValueError(f"{kind} not found in optimizer state fragment")
        return real(self, name, kind)

    real = MasterWeights.get
    monkeypatch.setattr(MasterWeights, "get", fails)
    done = train(data, tmp_path / "run", "--epochs", 1, deepspeed=batch4)
    assert "exp_avg not found" in done.errors[0] and "before training" not in done.out


def test_the_trial_leaves_nothing_and_says_what_it_took(data, batch4, tmp_path):
    run = tmp_path / "run"
    done = train(data, run, "--epochs", 1, deepspeed=batch4)
    assert "MiB the adapter: written, read back and removed in" in done.out
    assert [path.name for path in (run / "last").iterdir()] == [states(run / "last")[0].name]


def test_a_disk_with_too_little_room_for_the_run_is_a_warning(data, batch4, disk):
    done = train(data, disk / "run", "--epochs", 1, "--keep", 9, deepspeed=batch4)
    assert (
        done.code == 0 and "10 states of" in done.out and "MiB of room; the run needs" in done.out
    )


def test_verify_first_finds_a_damaged_byte_before_training(data, batch4, tmp_path):
    copy = shutil.copytree(data, tmp_path / "shards")
    shard = next(copy.glob("val/*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    done = train(copy, tmp_path / "run", "--epochs", 1, "--verify-first", deepspeed=batch4)
    assert any(f"val/{shard.name}" in line for line in done.errors)
    assert not (tmp_path / "run").exists()


def test_verify_first_says_that_every_byte_is_right(data, batch4, tmp_path):
    done = train(data, tmp_path / "run", "--epochs", 1, "--verify-first", deepspeed=batch4)
    assert done.code == 0 and "verified     9 samples, every byte" in done.out
