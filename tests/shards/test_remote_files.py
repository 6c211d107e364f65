"""Shards behind other file systems and shell commands."""

import os
import select
import sys
import threading

import pytest
from helpers.http_server import CONTENT
from helpers.remote import HALF, failure, get, make, put, sha256

from depthdist.shards import remote_cache as remote
from depthdist.shards.remote_cache import join

pytestmark = pytest.mark.usefixtures("soon")


def test_another_filesystem_of_fsspec_goes_on_where_it_was(cache):
    place = put("tires", {"a.tar": CONTENT["/a.tar"]})
    cache.folder.mkdir()
    (cache.folder / f"{sha256('/a.tar')}.shard.3000000.tmp").write_bytes(CONTENT["/a.tar"][:HALF])
    assert get(cache, place).read_bytes() == CONTENT["/a.tar"] == cache.small(place + "/a.tar")
    assert "there is no such file" in failure(cache.small, place + "/none")


def test_a_backend_that_hangs_for_ever_is_given_up(tmp_path, monkeypatch):
    place = put("hang", {"a.tar": CONTENT["/a.tar"]})
    cache, never = make(tmp_path, fetch_stall_s=0.2, fetch_retries=0), threading.Event()
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", lambda *args: never.wait())
    assert "no answer for 0.2 s" in failure(get, cache, place)
    never.set()


def test_an_index_without_end_is_given_up(cache, monkeypatch):
    monkeypatch.setattr(remote, "SMALL_MAX", 1 << 20)
    assert "more than 1 MiB" in failure(
        cache.small, put("tires", {"a.tar": CONTENT["/a.tar"]}) + "/a.tar"
    )


@pytest.mark.parametrize(
    "url, package",
    [
        ("s3://b/x", "s3fs"),
        ("gs://b/x", "gcsfs"),
        ("https://h/x", "aiohttp"),
        ("hf://datasets/a/b/x", "huggingface_hub"),
    ],
)
def test_a_missing_backend_names_the_package_to_install(cache, monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert (
        failure(cache.small, url)
        == f"{url}: {url.split(':')[0]}:// needs a package: pip install {package}"
    )


def test_an_unknown_protocol_fails_at_once(cache):
    assert "nosuch" in failure(cache.small, "nosuch://h/x")


def test_a_command_runs_only_where_it_was_allowed(tmp_path, folder):
    place = f"pipe:cat {folder}/{{}}"
    text = failure(get, make(tmp_path), place)
    assert "runs a shell command" in text and "--allow-pipe" in text
    cache = make(tmp_path, allow_pipe=True)
    assert (
        get(cache, place).read_bytes() == CONTENT["/a.tar"]
        and cache.small(join(place, "b.tar")) == CONTENT["/b.tar"]
    )


def test_a_command_that_fails_is_tried_again_and_told_with_its_last_words(tmp_path, folder):
    place = (
        f"pipe:echo >> {tmp_path}/runs; cat {folder}/{{}}; echo https://u:secret@host/x?sig=secret"
        " is >&2; echo down >&2; exit 3"
    )
    text = failure(get, make(tmp_path, allow_pipe=True), place)
    assert "exit code 3: https://host/x is down (3 attempts)" in text and "secret" not in text
    assert len((tmp_path / "runs").read_text()) == 3


def test_a_command_that_stalls_is_killed_with_all_that_it_started(tmp_path, folder):
    os.mkfifo(tmp_path / "alive")
    alive = os.open(
        tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK
    )  # at its end once nobody is left to write
    place = f"pipe:exec 3> {tmp_path}/alive; head -c 1000 {folder}/{{}}; sleep 1000 | cat"
    assert "no answer for" in failure(
        get, make(tmp_path, allow_pipe=True, fetch_stall_s=0.3, fetch_retries=0), place
    )
    assert select.select([alive], [], [], 20)[0] and os.read(alive, 1) == b""
    os.close(alive)
