"""--verify-first: every byte of the local shards is read before training."""

import shutil

import pytest
from helpers.commands import Launch
from helpers.http_server import CONTENT
from helpers.runs import train, train_words


@pytest.fixture
def damaged(data, tmp_path):
    """A copy of the shards with one damaged byte in that of validation, and the shard's name."""
    copy = shutil.copytree(data, tmp_path / "shards")
    shard = next(copy.glob("val/*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    return copy, f"val/{shard.name}"


def test_a_damaged_byte_is_found_before_training(damaged, batch4, tmp_path):
    shards, name = damaged
    done = train(shards, tmp_path / "run", "--epochs", 1, "--verify-first", deepspeed=batch4)
    assert any(line.startswith(f"{shards}: {name}: ") for line in done.errors)
    assert not (tmp_path / "run").exists()


def test_a_damaged_sample_in_training_names_both_ways_to_find_all(damaged, batch4, tmp_path):
    (line,) = train(damaged[0], tmp_path / "run", "--epochs", 1, deepspeed=batch4).errors
    assert "--verify-first" in line and f"depthdist shard --verify {damaged[0]}" in line


def test_every_byte_that_is_right_is_one_line(data, batch4, tmp_path):
    done = train(data, tmp_path / "run", "--epochs", 1, "--verify-first", deepspeed=batch4)
    assert done.code == 0 and "verified     9 samples, every byte" in done.out


def test_two_ranks_on_a_machine_read_it_once_and_end_together(damaged, batch4, tmp_path):
    words = train_words(damaged[0], tmp_path / "run", batch4)
    done = Launch(2, *words, "--verify-first").done()
    assert len(done.errors) == len(set(done.errors)) and damaged[1] in done.errors[0]
    assert not (tmp_path / "run/last").exists()


def test_remote_shards_are_checked_when_they_arrive_and_that_is_said(
    data, batch4, tmp_path, server, monkeypatch
):
    for path in data.rglob("*.*"):
        monkeypatch.setitem(CONTENT, f"/tires/{path.relative_to(data)}", path.read_bytes())
    words = ("--epochs", 1, "--verify-first", "--cache", tmp_path / "cache")
    done = train(f"{server.url}/tires", tmp_path / "run", *words, deepspeed=batch4)
    assert done.code == 0 and "each is checked when it is fetched" in done.out
    assert "verified " not in done.out
