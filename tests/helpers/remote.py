"""A remote cache of a test: what is fetched, and what is left of it."""

import hashlib

import fsspec
import pytest

from depthdist.shards.remote_cache import Cache, CacheSettings, join
from helpers.http_server import CONTENT

HALF = 1_500_000


def make(folder, **settings):
    return Cache(
        CacheSettings(
            **{"cache": folder / "cache", "fetch_retries": 2, "fetch_stall_s": 20, **settings}
        )
    )


def sha256(name):
    return hashlib.sha256(CONTENT[name]).hexdigest()


def get(cache, place, name="/a.tar"):
    return cache.fetch(join(place, name[1:]), sha256(name), len(CONTENT[name]))


def failure(call, *args):
    with pytest.raises(ValueError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(cache):
    """Bytes of what is being fetched."""
    return sum(p.stat().st_size for p in cache.folder.glob("*.tmp"))


def put(folder, contents):
    system = fsspec.filesystem("memory")
    for name, content in contents.items():
        system.pipe_file(f"/{folder}/{name}", content)
    return f"memory://{folder}"
