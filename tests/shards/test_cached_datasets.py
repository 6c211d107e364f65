"""Shards of folders of captures in the cache: made once, continued, never changed under a run."""

import os
import shutil
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
from helpers.captures import SMALL, capture, write_capture, write_raw
from helpers.disks import fill, make_room, small_disk

from depthdist.core.errors import SettingsError
from depthdist.core.file_lock import hold
from depthdist.shards import cached_datasets
from depthdist.shards.cached_datasets import cached_shards, find_cached
from depthdist.shards.index import read_index
from depthdist.shards.remote_cache import CacheSettings
from depthdist.shards.settings import ShardSettings
from depthdist.shards.verify import verify_dataset
from depthdist.shards.writer import write_shard

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "RAW", 4)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def given(raw, **settings):
    return ShardSettings(raw=str(raw), **{**SMALL, "val": 0.5, **settings})


def state(folder):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def more_captures(raw, first=10, count=2):
    for i in range(first, first + count):
        write_capture(raw / f"late/{i}.png", raw / f"late/{i}.npy", i)


def test_shards_are_made_once_and_used_at_once_after_that(raw, cache, capsys):
    folder = cached_shards(given(raw), cache)
    made = capsys.readouterr().out
    assert f"4 in {raw}: making shards of them, once, in {folder}" in made
    assert "2 train, 2 val" in made and f"{cache}/datasets now has 1 dataset" in made
    assert verify_dataset(folder) == []
    before = state(cache)
    assert cached_shards(given(raw), cache) == folder
    assert capsys.readouterr().out == f"captures     shards of {raw}, made before: {folder}\n"
    assert state(cache) == before


def test_other_settings_are_another_dataset_and_another_spelling_of_the_folder_is_not(raw, cache):
    folder = cached_shards(given(raw), cache)
    link = raw.with_name("link")
    link.symlink_to(raw)
    assert cached_shards(given(link), cache) == folder
    for other in ({"near": 900.0}, {"unit": 2.0}, {"min_snr": 3.0}, {"registered": True}):
        assert find_cached(given(raw, **other), cache).folder != folder


def test_more_captures_are_appended_and_earlier_shards_stay_as_they_were(raw, cache, capsys):
    first = cached_shards(given(raw), cache)
    before = state(first)
    more_captures(raw)
    second = cached_shards(given(raw), cache)
    assert f"2 more in {raw} than before: appended" in capsys.readouterr().out
    assert state(first) == before and verify_dataset(first) == verify_dataset(second) == []
    assert read_index(second).num_samples == 6
    tar = "train/shard-000000.tar"
    assert (first / tar).samefile(second / tar), "what is there is linked, not copied"
    more_captures(raw, first=20)
    third = cached_shards(given(raw), cache)
    assert read_index(third).raw["appended"] == 2 and verify_dataset(third) == []


def test_without_hard_links_the_earlier_shards_are_copied(raw, cache, monkeypatch):
    first = cached_shards(given(raw), cache)
    more_captures(raw)

    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("os.link", refuse)
        second = cached_shards(given(raw), cache)
    tar = "train/shard-000000.tar"
    assert not (first / tar).samefile(second / tar) and verify_dataset(second) == []


def test_changed_and_removed_captures_make_a_new_dataset_that_says_so(raw, cache, capsys):
    first = cached_shards(given(raw), cache)
    clouds = sorted((raw / "depth").iterdir())
    np.save(clouds[0], capture(7)[1])
    clouds[1].unlink()
    second = cached_shards(given(raw), cache)
    assert "1 changed and 1 are gone" in capsys.readouterr().out
    assert read_index(first).num_samples == 4 and read_index(second).num_samples == 3


def test_a_groups_file_that_says_something_else_makes_a_new_dataset(raw, cache, tmp_path):
    groups = tmp_path / "groups.csv"
    stems = sorted(path.name[: -len("_color.png")] for path in (raw / "images").iterdir())
    found = []
    for side in ("train", "val"):
        lines = [f"{stem},{'val' if stem == stems[0] else 'train'}" for stem in stems]
        lines[1] = f"{stems[1]},{side}"
        groups.write_text("\n".join(lines))
        found.append(cached_shards(given(raw, split="file", groups=str(groups)), cache))
    assert [len(read_index(folder).samples("train")) for folder in found] == [3, 2]


def test_an_interrupted_call_goes_on_where_it_stopped(raw, cache, monkeypatch, capsys):
    def power_cut(jobs, *how):
        write_shard(jobs[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("depthdist.shards.build.write_shards", power_cut)
        with pytest.raises(KeyboardInterrupt):
            cached_shards(given(raw), cache)
    found = find_cached(given(raw), cache)
    (built,) = found.folder.glob(".build/*/*.tar")
    inode = built.stat().st_ino
    assert not found.is_whole()
    assert cached_shards(given(raw), cache) == found.folder
    assert inode in {path.stat().st_ino for path in found.folder.glob("*/*.tar")}


@pytest.mark.parametrize("appended", [False, True])
def test_a_call_killed_before_its_last_file_ends_as_one_that_was_not(
    raw, cache, monkeypatch, appended
):
    if appended:
        cached_shards(given(raw), cache)
        more_captures(raw)

    def killed(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cached_datasets, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            cached_shards(given(raw), cache)
    assert not find_cached(given(raw), cache).is_whole()
    folder = cached_shards(given(raw), cache)
    assert verify_dataset(folder) == []
    assert read_index(folder).num_samples == (6 if appended else 4)


def test_shards_that_are_gone_from_the_cache_are_made_again(raw, cache):
    folder = cached_shards(given(raw), cache)
    content = (folder / "index.json").read_bytes()
    (folder / "train/shard-000000.tar").unlink()
    assert cached_shards(given(raw), cache) == folder and verify_dataset(folder) == []
    shutil.rmtree(folder)
    assert cached_shards(given(raw), cache) == folder
    assert (folder / "index.json").read_bytes() == content


def test_bad_captures_are_named_and_the_others_used(raw, cache, capsys):
    bad = sorted((raw / "depth").iterdir())[0]
    np.save(bad, capture()[1] / 1000)
    folder = cached_shards(given(raw), cache)
    said = capsys.readouterr().out
    assert f"rejected  depth/{bad.name}: looks like metres" in said
    assert f"1 files are not used, all in {folder}/rejects.jsonl" in said


def test_a_cache_that_cannot_be_written_is_one_line_that_names_the_flag(raw, cache, monkeypatch):
    cache.write_text("")
    with pytest.raises(
        ValueError, match=r"cannot be written .*--cache names another folder"
    ) as err:
        cached_shards(given(raw), cache)
    assert len(str(err.value).splitlines()) == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SettingsError, match="local rank 0 made no shards"):
        cached_shards(given(raw), cache)  # at once, not when the first rank was waited for


def test_the_environment_moves_the_cache(monkeypatch):
    for name in ("DEPTHDIST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert str(CacheSettings().cache) == "~/.cache/depthdist/shards"
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert str(CacheSettings().cache) == "/fast/depthdist/shards"
    monkeypatch.setenv("DEPTHDIST_CACHE", "/faster")
    assert str(CacheSettings().cache) == "/faster"


def test_a_full_disk_is_one_line_and_the_next_call_succeeds(raw, tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk, free=40_000)
        with pytest.raises(ValueError, match=r"No space left on device.*--cache names") as err:
            cached_shards(given(raw), disk)
        assert len(str(err.value).splitlines()) == 1
        assert not find_cached(given(raw), disk).is_whole()
        make_room(disk)
        assert verify_dataset(cached_shards(given(raw), disk)) == []


# ------------------------------------------------------------------------------- several at a time


def test_of_two_commands_one_makes_the_shards_and_the_other_waits(raw, cache, monkeypatch, capsys):
    monkeypatch.setattr(cached_datasets, "SAID_AFTER_S", 0.0)
    working, allowed = threading.Event(), threading.Event()

    def slowly(jobs, *how):
        working.set()
        assert allowed.wait(20)
        for job in jobs:
            write_shard(job)

    monkeypatch.setattr("depthdist.shards.build.write_shards", slowly)
    both = [threading.Thread(target=cached_shards, args=(given(raw), cache)) for _ in range(2)]
    both[0].start()
    assert working.wait(20)
    both[1].start()
    said = ""
    while "another command makes shards" not in said:
        both[1].join(0.05)
        assert both[1].is_alive()
        said += capsys.readouterr().out
    allowed.set()
    for thread in both:
        thread.join(20)
    said += capsys.readouterr().out
    assert said.count("making shards of them") == said.count("sharded: ") == 1


def test_another_rank_of_the_machine_waits_for_the_first_and_says_nothing(
    raw, cache, monkeypatch, capsys
):
    waiting = threading.Thread(target=cached_shards, args=(given(raw), cache))
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_RANK", "1")
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not cache.exists(), "nobody but the first rank begins"
    cached_shards(given(raw), cache)
    said = capsys.readouterr().out
    waiting.join(20)
    assert not waiting.is_alive() and capsys.readouterr().out == "" and "making shards" in said


def test_another_rank_that_comes_after_the_first_has_failed_ends_at_once(raw, cache, monkeypatch):
    for path in raw.glob("depth/*"):
        path.write_bytes(b"no array")
    with pytest.raises(ValueError, match="no usable pair"):
        cached_shards(given(raw), cache)
    with monkeypatch.context() as patch:
        patch.setenv("LOCAL_RANK", "1")
        with pytest.raises(SettingsError, match="local rank 0 made no shards"):
            cached_shards(given(raw), cache)
        patch.setattr("os.getppid", lambda: 1)  # of another launcher: its first rank may succeed
        patch.setattr(cached_datasets, "BEGIN_S", 0.5)
        began = time.monotonic()
        with pytest.raises(SettingsError):
            cached_shards(given(raw), cache)
        assert time.monotonic() - began > 0.4


def test_another_rank_ends_when_the_first_has_made_nothing(raw, cache, monkeypatch):
    monkeypatch.setattr(cached_datasets, "END_S", 0.1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    lock = cached_datasets._lock_path(find_cached(given(raw), cache))
    lock.parent.mkdir(parents=True)
    with ExitStack() as first:
        file = first.enter_context(open(lock, "ab"))
        first.enter_context(hold(file, lock, wait=False))
        threading.Timer(0.3, first.pop_all().close).start()
        with pytest.raises(SettingsError, match="local rank 0 made no shards"):
            cached_shards(given(raw), cache)
    assert os.listdir(lock.parent) == [lock.name]
