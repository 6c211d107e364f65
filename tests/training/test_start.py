"""What the start of a run reads: little of remote data, and each rank its share of the rest."""

from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from helpers.runs import make_shards, train

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.runs import seen_images
from depthdist.runs.seen_images import hashes_by_ranks, hashes_of
from depthdist.training.training_data import open_training_data
from depthdist.training.validation import near_duplicates_warnings

NUM_RANKS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """11 captures for training, 3 for validation, one a shard; two are the same scene."""
    from helpers.captures import write_capture

    folder = tmp_path_factory.mktemp("start")
    for i in range(14):
        names = f"images/{i:02d}_color.png", f"depth/{i:02d}_rawDepth.npy"
        write_capture(*(folder / "raw" / name for name in names), seed=min(i, 12))
    groups = folder / "groups.csv"
    sides = ["train"] * 11 + ["val"] * 3
    sides[12], sides[0] = "train", "val"  # 12 and 13 are one scene
    lines = [f"{i:02d},{side}\n" for i, side in enumerate(sides)]
    groups.write_text("".join(lines))
    return make_shards(folder, split="file", groups=str(groups), shard_mb=0.001)


def run_on(settings: DataSettings):
    """As much of a run as the look for near-duplicates needs, and what it said."""
    dataset, said = open_dataset(settings), []
    return SimpleNamespace(
        world=SimpleNamespace(rank=0),
        data=SimpleNamespace(
            dataset=dataset, loader=Loader(dataset, settings), has_validation=True
        ),
        settings=SimpleNamespace(train=SimpleNamespace(overfit=0)),
        output=SimpleNamespace(tracker=SimpleNamespace(say=said.append)),
    ), said


@pytest.fixture
def remote(shards, tmp_path):
    """The same behind a URL, with an empty cache; the URL, and the settings."""
    files = fsspec.filesystem("memory")
    place = f"memory://{tmp_path.name}/shards"
    for path in (path for path in shards.rglob("*") if path.is_file()):
        files.pipe(f"{place}/{path.relative_to(shards).as_posix()}", path.read_bytes())
    return place, DataSettings(data=(place,), cache=tmp_path / "cache")


def fetched(settings: DataSettings) -> int:
    """How many files are in the cache beside the table and the names."""
    return len(list(settings.cache.glob("*.shard"))) - 2


def test_near_duplicates_are_what_the_index_knows_and_no_remote_shard_is_fetched(remote):
    run, said = run_on(remote[1])
    (line,) = near_duplicates_warnings(run)
    assert "1 of 3 validation pictures" in line
    assert said == [] and fetched(remote[1]) == 0


def test_without_it_only_shards_that_are_here_are_looked_at_and_how_many_is_said(remote, shards):
    run, said = run_on(remote[1])
    index = run.data.dataset.parts[0]
    known = index.raw.pop("near_duplicates")
    assert near_duplicates_warnings(run) == [] and fetched(remote[1]) == 0
    assert "0 validation and 0 training images, of shards that are on this machine" in said[0]
    for split in ("train", "val"):  # all are here now
        list(run.data.loader.evaluate(split, 1, 0, 1))
    (line,) = near_duplicates_warnings(run)
    assert f"{known['val_with_twin']} of 3 validation pictures" in line
    assert "3 validation and 11 training images" in said[1]


def as_rank(monkeypatch, rank: int) -> SimpleNamespace:
    names = {"WORLD_SIZE": NUM_RANKS, "LOCAL_WORLD_SIZE": NUM_RANKS, "RANK": rank}
    for name, value in {**names, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    return SimpleNamespace(rank=rank, size=NUM_RANKS)


def test_the_ranks_of_a_machine_look_at_each_shard_once(shards, monkeypatch):
    looked_at: list[str] = []
    stat = Path.stat

    def counted(path, **how):
        if path.suffix == ".tar":
            looked_at.append(path.name + path.parent.name)
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", counted)
    monkeypatch.setattr("depthdist.training.same_on_ranks.broadcast_from_rank_0", lambda own: own)
    for rank in range(NUM_RANKS):
        world = as_rank(monkeypatch, rank)
        data = DataSettings(data=(str(shards),))
        assert data.problems() == []
        settings = SimpleNamespace(data=data, open_data=lambda data=data: data.opened)
        assert open_training_data(settings, world) is data.opened, "it is opened once"
    assert len(looked_at) == len(set(looked_at)) == 14


def test_a_missing_shard_ends_the_rank_that_looks_for_it(shards, monkeypatch, tmp_path):
    import shutil

    place = tmp_path / "shards"
    shutil.copytree(shards, place)
    (place / "train/shard-000002.tar").unlink()
    monkeypatch.setattr("depthdist.training.same_on_ranks.broadcast_from_rank_0", lambda own: own)
    found = []
    for rank in range(NUM_RANKS):
        world = as_rank(monkeypatch, rank)
        data = DataSettings(data=(str(place),))
        settings = SimpleNamespace(data=data, open_data=lambda data=data: data.opened)
        try:
            open_training_data(settings, world)
        except ValueError as err:
            found.append(str(err))
    (line,) = found
    assert "shard-000002.tar: the shard of 1 samples is missing" in line


def test_ranks_share_the_reading_of_what_a_run_has_seen(shards, monkeypatch):
    dataset = open_dataset(DataSettings(data=(str(shards),)))
    whole = hashes_of(dataset, "train")
    assert whole.all(), "every file's hash is known"
    sent = [
        hashes_by_ranks(dataset, "train", rank, NUM_RANKS, lambda own: [own])
        for rank in range(NUM_RANKS)
    ]
    shares = [np.count_nonzero(own[:, 0]) for own in sent]
    assert sorted(shares) == [2, 3, 3, 3], "each reads its share"
    parts = []
    for own in sent:
        numbers = np.flatnonzero(own[:, 0]).astype(np.uint32)
        parts.append((numbers, own[numbers, :2]))
    for rank in range(NUM_RANKS):
        found = hashes_by_ranks(dataset, "train", rank, NUM_RANKS, lambda own: parts)
        assert np.array_equal(found, whole)
    assert seen_images.hashes_by_ranks(dataset, "train", 0, 1, lambda own: 1 / 0) is not None


def test_an_evaluation_scores_the_limit_and_says_so_at_both_ends(data, tmp_path):
    done = train(data, tmp_path / "run", "--epochs", 1, "--val-images", 1)
    assert done.code == 0, done
    assert "validation   1 of 2 images, evenly spread, are scored" in done.out
    assert "on 1 of 2 validation images (--val-images)" in done.out
    whole = train(data, tmp_path / "whole", "--epochs", 1, "--val-images", 0)
    assert whole.code == 0 and "--val-images" not in whole.out
