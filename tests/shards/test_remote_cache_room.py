"""The remote cache stays within its limit, and a full disk is one line."""

import hashlib
import itertools
import os
import threading
import time
from types import SimpleNamespace

import pytest
from helpers.http_server import CONTENT
from helpers.remote import HALF, failure, get, make, put, sha256

from depthdist.shards import remote_cache as remote
from depthdist.shards.remote_cache import join

pytestmark = pytest.mark.usefixtures("soon")


OLD = time.time() - 3600


TWO = 7e-3  # GB: two files of 3 MB fit


def names(cache):
    return {n for n in CONTENT if (cache.folder / f"{sha256(n)}.shard").exists()}


def test_the_least_recently_used_file_makes_room(server, tmp_path):
    cache = make(tmp_path, cache_gb=TWO)
    for name, age in (("/a.tar", 20), ("/b.tar", 10)):
        os.utime(get(cache, server.url, name), (OLD, OLD - age))
    get(cache, server.url, "/a.tar")  # a hit
    get(cache, server.url, "/c.tar")
    assert names(cache) == {"/a.tar", "/c.tar"}


def test_only_files_that_the_cache_wrote_are_removed(server, tmp_path):
    cache = make(tmp_path, cache_gb=TWO)
    cache.folder.mkdir()
    own = [
        cache.folder / n
        for n in (
            "notes.txt",
            "a.shard",
            "f" * 64,
            "f" * 64 + ".tar",
            "e" * 64 + ".shard.bak",
            ".hidden",
        )
    ]
    for path in own:
        path.write_bytes(bytes(5_000_000))
        os.utime(path, (OLD, OLD))
    (cache.folder / ("d" * 64 + ".shard")).symlink_to(own[0])
    for name in CONTENT:
        get(cache, server.url, name)
    assert names(cache) == {"/c.tar", "/d.tar"} and all(p.stat().st_size == 5_000_000 for p in own)


def test_what_a_killed_process_left_makes_room_too(server, tmp_path):
    cache = make(tmp_path, cache_gb=TWO)
    cache.folder.mkdir()
    left = cache.folder / ("0" * 64 + ".shard.5000000.tmp")
    left.write_bytes(b"some")
    os.utime(left, (OLD, OLD))
    get(cache, server.url)
    assert not left.exists()


def test_a_file_that_is_being_fetched_or_was_just_handed_out_stays(server, tmp_path, monkeypatch):
    cache = make(tmp_path, cache_gb=TWO)
    server.faults = [("hold", HALF)]
    thread = threading.Thread(target=get, args=(cache, server.url, "/a.tar"))
    thread.start()
    server.reached.wait(20)
    get(cache, server.url, "/b.tar")
    get(cache, server.url, "/c.tar")
    assert names(cache) == {"/c.tar"}
    monkeypatch.setattr(remote, "GRACE_S", 60.0)
    get(cache, server.url, "/d.tar")
    server.release.set()
    thread.join()
    assert names(cache) == {"/a.tar", "/c.tar", "/d.tar"}


def test_many_threads_in_a_small_cache_all_get_what_they_want(tmp_path):
    contents = {f"{i}": bytes([i]) * 1000 for i in range(20)}
    place = put("many", contents)
    caches, wrong = [make(tmp_path, cache_gb=4.5e-6) for _ in range(2)], []

    def work(cache):
        for name, content in contents.items():
            while True:
                try:
                    with open(
                        cache.fetch(join(place, name), hashlib.sha256(content).hexdigest(), 1000),
                        "rb",
                    ) as file:
                        wrong.extend([name] if file.read() != content else [])
                    break
                except FileNotFoundError:
                    continue  # evicted before it was opened

    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (
        not wrong
        and 1 <= len(os.listdir(caches[0].folder)) <= 8
        and not list(caches[0].folder.glob("*.tmp"))
    )


def test_a_file_larger_than_the_limit_is_refused_before_anything_else(server, tmp_path):
    cache = make(tmp_path, cache_gb=2e-3)
    assert "0.003 GB do not fit the cache's 0.002 GB; raise --cache-gb" in failure(
        get, cache, server.url
    )
    assert not server.seen and not cache.folder.exists()


def test_a_full_disk_is_told_in_one_line_after_the_old_files_went(server, cache, monkeypatch):
    os.utime(get(cache, server.url, "/a.tar"), (OLD, OLD))
    free = itertools.chain([1_000_000], itertools.repeat(4_000_000))
    monkeypatch.setattr(
        remote.shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(free))
    )
    get(cache, server.url, "/b.tar")
    assert names(cache) == {"/b.tar"}
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    assert f"cannot be kept in {cache.folder} (No space left on device, 3.0 MB)" in failure(
        get, cache, server.url, "/c.tar"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_meanwhile_is_not_tried_again(server, cache):
    cache.folder.mkdir()
    (cache.folder / f"{sha256('/a.tar')}.shard.3000000.tmp").symlink_to("/dev/full")
    assert "cannot be kept" in failure(get, cache, server.url) and len(server.seen) <= 1


def test_a_cache_that_cannot_be_written_is_told(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "cannot be kept in" in failure(get, make(tmp_path), server.url)
