"""Remote shards arrive whole or not at all: against a real server that drops, stalls, cuts, damages
and refuses."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers.http_server import CONTENT
from helpers.remote import HALF, failure, get, left, make, sha256

from depthdist.shards import remote_cache as remote
from depthdist.shards import remote_files
from depthdist.shards.remote_cache import CacheSettings, is_remote, join

pytestmark = pytest.mark.usefixtures("soon")


def wait_for(condition):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "waited 20 s"
        time.sleep(0.01)


# ------------------------------------------------------------------------------- names and settings


def test_a_url_and_a_command_are_remote_and_a_folder_is_not():
    assert [
        is_remote(p)
        for p in (
            "s3://b/x",
            "https://h/x",
            "hf://datasets/a/b",
            "pipe:cat {}",
            "data/tires",
            "/data",
            "file:///data",
        )
    ] == [
        *[True] * 4,
        *[False] * 3,
    ]


def test_a_files_name_is_joined_before_a_signature_and_quoted_for_a_shell():
    assert join("s3://b/tires/", "train/shard-000000.tar") == "s3://b/tires/train/shard-000000.tar"
    assert join("https://h/tires?sig=1", "index.json") == "https://h/tires/index.json?sig=1"
    assert join("pipe:cat /data/{}", "a b;rm") == "pipe:cat /data/'a b;rm'"
    assert "has no {}" in failure(join, "pipe:cat /data", "index.json")


def test_settings_say_all_that_is_wrong_with_them():
    problems = CacheSettings(cache_gb=0, fetch_retries=-1, fetch_stall_s=float("nan")).problems()
    assert [p.split()[0] for p in problems] == ["--cache-gb", "--fetch-stall-s", "--fetch-retries"]
    assert CacheSettings().problems() == []


# ----------------------------------------------------------------------------------------- fetching


def test_a_file_is_downloaded_once_and_named_by_its_content(server, cache):
    path = get(cache, server.url)
    assert path.name.startswith(sha256("/a.tar")) and path.read_bytes() == CONTENT["/a.tar"]
    assert get(cache, server.url) == get(make(cache.folder.parent), server.url) == path
    assert server.seen == [("/a.tar", None)] and os.listdir(cache.folder) == [path.name]
    assert cache.status(server.url + "/a.tar") == ""


def test_the_index_is_read_anew_each_time(server, cache):
    assert (
        cache.small(server.url + "/a.tar")
        == cache.small(server.url + "/a.tar")
        == CONTENT["/a.tar"]
    )
    assert len(server.seen) == 2 and not cache.folder.exists()


@pytest.mark.parametrize("fault", ["drop", "cut"])
def test_a_broken_connection_is_gone_on_with_where_it_broke(server, cache, fault):
    server.faults, server.arrived = [(fault, HALF)], lambda: wait_for(lambda: left(cache) == HALF)
    assert get(cache, server.url).read_bytes() == CONTENT["/a.tar"]
    assert server.seen == [("/a.tar", None), ("/a.tar", f"bytes={HALF}-")]


def test_a_server_without_ranges_starts_from_the_first_byte(server, cache):
    server.faults, server.arrived = (
        [("cut", HALF), ("no range", 0)],
        lambda: wait_for(lambda: left(cache) == HALF),
    )
    assert get(cache, server.url).read_bytes() == CONTENT["/a.tar"]
    assert server.seen == [("/a.tar", None), ("/a.tar", f"bytes={HALF}-")]


@pytest.mark.parametrize(
    "fault", [("stall", HALF), ("silent", 0), ("shorten", HALF), ("status", 500), ("status", 429)]
)
def test_what_may_pass_is_tried_again(server, tmp_path, fault):
    cache = make(tmp_path, fetch_stall_s=0.4, fetch_connect_s=0.4, fetch_retries=5)
    server.faults = [fault, fault]
    assert get(cache, server.url).read_bytes() == CONTENT["/a.tar"]
    server.faults = [fault, fault]
    assert cache.small(server.url + "/b.tar") == CONTENT["/b.tar"] or fault[0] == "shorten"


@pytest.mark.parametrize(
    "fault, told",
    [
        (("cut", 1000), "ClientPayloadError"),
        (("drop", 1000), "Client"),
        (("stall", 1000), "no answer "),
        (("silent", 0), "no answer "),
        (("shorten", HALF), "ended after 1,500,000 bytes; the index says 3,000,000"),
        (("status", 503), "503"),
    ],
)
def test_what_does_not_pass_fails_with_the_number_of_attempts_and_the_last_reason(
    server, tmp_path, fault, told
):
    server.faults = [fault] * 9
    text = failure(get, make(tmp_path, fetch_stall_s=0.4, fetch_connect_s=0.4), server.url)
    assert (
        told in text
        and text.startswith(server.url + "/a.tar: ")
        and text.endswith("(3 attempts)")
        and len(server.seen) == 3
    )


@pytest.mark.parametrize(
    "status, told", [(404, "there is no such file"), (403, "403"), (401, "401")]
)
def test_what_is_missing_or_forbidden_fails_at_once(server, cache, status, told):
    server.faults = [("status", status)] * 2
    assert told in failure(get, cache, server.url) and told in failure(
        cache.small, server.url + "/a.tar"
    )
    assert len(server.seen) == 2 and not os.listdir(cache.folder)


def test_a_server_that_does_not_accept_the_connection_is_given_up(tmp_path):
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for waiting in (first, second):  # its queue is full
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        cache = make(tmp_path, fetch_connect_s=0.3, fetch_stall_s=20, fetch_retries=0)
        assert "no answer " in failure(get, cache, f"http://127.0.0.1:{deaf.getsockname()[1]}")


@pytest.mark.parametrize("fault", [("stall", HALF), ("silent", 0)])
def test_http_has_a_limit_of_its_own_for_a_stall(server, tmp_path, monkeypatch, fault):
    within = remote_files.call_within
    monkeypatch.setattr(
        remote_files, "call_within", lambda seconds, call, *args: within(20, call, *args)
    )
    server.faults = [fault]
    assert "no answer in time" in failure(
        get, make(tmp_path, fetch_stall_s=0.2, fetch_retries=0), server.url
    )


def test_a_dead_server_is_told_as_such(cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "(3 attempts)" in failure(get, cache, f"http://127.0.0.1:{unused.getsockname()[1]}")


def test_damage_on_the_way_is_repaired_by_a_second_download(server, cache):
    server.faults = [("damage", 0)]
    assert get(cache, server.url).read_bytes() == CONTENT["/a.tar"]
    assert [wanted for _, wanted in server.seen] == [None, None]


@pytest.mark.parametrize(
    "fault, told", [("damage", "sha256 is "), ("lengthen", "more than 3,000,000 bytes")]
)
def test_other_bytes_than_the_index_says_fail_after_two_downloads(server, cache, fault, told):
    server.faults = [(fault, 0)] * 9
    text = failure(get, cache, server.url)
    assert (
        told in text
        and "the data there changed or is damaged (2 attempts)" in text
        and len(server.seen) == 2
    )
    assert fault == "lengthen" or sha256("/a.tar") in text
    assert not os.listdir(cache.folder)


def test_a_file_of_another_size_in_the_cache_is_fetched_anew(server, cache):
    path = get(cache, server.url)
    os.truncate(path, 10)
    assert get(cache, server.url).read_bytes() == CONTENT["/a.tar"] and len(server.seen) == 2


def test_a_left_part_longer_than_what_is_there_now_is_not_asked_for_again(
    server, cache, monkeypatch
):
    cache.folder.mkdir()
    name = sha256("/a.tar")
    (cache.folder / f"{name}.shard.3000000.tmp").write_bytes(CONTENT["/a.tar"][:HALF])
    monkeypatch.setitem(CONTENT, "/a.tar", CONTENT["/a.tar"][:1000])
    text = failure(cache.fetch, server.url + "/a.tar", name, 3_000_000)
    assert "ended after 1,000 bytes; the index says 3,000,000" in text


def test_a_wrong_sha256_in_an_index_names_no_file(cache):
    assert "64 hexadecimal digits" in failure(cache.fetch, "memory://x", "../../etc/passwd", 1)


def test_messages_hide_the_password_and_the_signature(server, cache):
    place = server.url.replace("http://", "http://user:secret@") + "?sig=secret"
    server.faults = [("status", 403), ("status", 404), *[("cut", 0)] * 3, *[("status", 500)] * 3]
    for text in [failure(get, cache, place) for _ in range(4)]:
        assert "secret" not in text and text.startswith(server.url + "/a.tar: ")


def test_status_says_what_is_happening(server, cache, monkeypatch):
    pauses, url = [], server.url + "/a.tar"
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: pauses.append(cache.status(url)))
    server.faults = [("status", 500), ("hold", 2_000_000)]
    monkeypatch.setattr(remote, "RETRY_S", 4.0)
    thread = threading.Thread(target=get, args=(cache, server.url))
    thread.start()
    server.reached.wait()
    while cache.status(url) != "downloading 2.0 of 3.0 MB":
        server.release.wait(0.01)
    server.release.set()
    thread.join()
    assert (
        pauses[0].startswith("retry 1 of 2 in 4 s: ")
        and "500" in pauses[0]
        and cache.status(url) == ""
    )


def test_waits_between_attempts_double(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    monkeypatch.setattr(remote, "RETRY_S", 1.0)
    server.faults = [("status", 500)] * 9
    failure(get, make(tmp_path, fetch_retries=7), server.url)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


# ---------------------------------------------------------------------------------------- processes

FETCH = """
import sys
from pathlib import Path
from depthdist.shards.remote_cache import Cache, CacheSettings
cache = Cache(CacheSettings(cache=Path(sys.argv[1])))
print(cache.fetch(sys.argv[2], sys.argv[3], int(sys.argv[4])))
"""


def fetching_process(cache, server):
    size = str(len(CONTENT["/a.tar"]))
    command = [
        sys.executable,
        "-c",
        FETCH,
        str(cache.folder),
        server.url + "/a.tar",
        sha256("/a.tar"),
        size,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_and_threads_that_want_one_file_download_it_once(server, cache):
    server.faults = [("hold", HALF)]
    with fetching_process(cache, server) as other:
        server.reached.wait(20)
        paths, threads = (
            [],
            [
                threading.Thread(target=lambda: paths.append(get(cache, server.url)))
                for _ in range(3)
            ],
        )
        for thread in threads:
            thread.start()
        wait_for(
            lambda: (
                cache.status(server.url + "/a.tar") == "waiting for another process to download it"
            )
        )
        server.release.set()
        for thread in threads:
            thread.join()
        assert {str(p) for p in paths} == {other.stdout.read().strip()} and len(paths) == 3
    assert (
        len(server.seen) == 1
        and paths[0].read_bytes() == CONTENT["/a.tar"]
        and len(os.listdir(cache.folder)) == 1
    )


def test_who_waited_downloads_it_where_the_one_before_failed(server, cache):
    server.faults = [("cut", HALF)]
    server.arrived = lambda: wait_for(
        lambda: cache.status(server.url + "/a.tar").startswith("waiting")
    )
    first = threading.Thread(
        target=failure, args=(get, make(cache.folder.parent, fetch_retries=0), server.url)
    )
    first.start()
    wait_for(lambda: left(cache))
    assert get(cache, server.url).read_bytes() == CONTENT["/a.tar"] and len(server.seen) == 2
    first.join()


def test_a_file_that_arrived_just_before_the_lock_is_not_downloaded_again(
    server, cache, monkeypatch
):
    path, hit, late = get(cache, server.url), remote._is_cached, iter([False])
    monkeypatch.setattr(remote, "_is_cached", lambda *args: next(late, None) is None and hit(*args))
    assert (
        get(cache, server.url) == path
        and len(server.seen) == 1
        and os.listdir(cache.folder) == [path.name]
    )


def test_what_a_killed_process_left_is_gone_on_with(server, cache):
    server.faults = [("hold", HALF)]
    with fetching_process(cache, server) as other:
        wait_for(lambda: left(cache) == HALF)
        other.send_signal(signal.SIGKILL)
    assert get(cache, server.url).read_bytes() == CONTENT["/a.tar"]
    assert (
        server.seen == [("/a.tar", None), ("/a.tar", f"bytes={HALF}-")]
        and len(os.listdir(cache.folder)) == 1
    )


def test_a_left_part_with_damage_is_started_anew(server, cache):
    cache.folder.mkdir()
    (cache.folder / f"{sha256('/a.tar')}.shard.3000000.tmp").write_bytes(bytes(HALF))
    assert get(cache, server.url).read_bytes() == CONTENT["/a.tar"]
    assert [wanted for _, wanted in server.seen] == [f"bytes={HALF}-", None]
