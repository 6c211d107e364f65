"""What a run keeps is written, read back and removed once before the first step."""

from helpers.disks import small_disk
from helpers.runs import train

from depthdist.runs.state_files import states


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


def test_a_disk_with_too_little_room_for_the_run_is_a_warning(data, batch4, tmp_path):
    with small_disk(tmp_path / "disk", "24m") as disk:
        done = train(data, disk / "run", "--epochs", 1, "--keep", 9, deepspeed=batch4)
    assert done.code == 0 and "MiB of room; the run needs" in done.out
    assert "10 states of" in done.out


def test_a_disk_full_from_the_start_is_known_before_training(data, batch4, tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        done = train(data, disk / "run", "--epochs", 1, deepspeed=batch4)
        (line,) = done.errors
        assert "so nothing was trained" in line and "No space left on device" in line
        assert states(disk / "run/last") == []
