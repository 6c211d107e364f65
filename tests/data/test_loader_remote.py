"""Shards behind HTTP give the same batches: fetched once, ahead of their turn, within the cache's
limit, and refused where they changed."""

import contextlib
import threading
from collections import Counter

import pytest
from helpers.http_server import CONTENT
from helpers.loaders import STRONG, decoders, exact, failure, loader, plan_of, real, taken

from depthdist.shards import remote_cache as remote


def fetched(server):
    return Counter(path for path, _ in server.seen if path.endswith(".tar"))


def test_a_served_dataset_gives_the_same_bytes_and_is_fetched_once(data, far, server):
    near, source = loader(data, augment=STRONG), far(data, augment=STRONG)
    for _ in range(2):
        for split in ("train", "val"):
            assert exact(taken(source.evaluate(split, 2, 0, 1))) == exact(
                taken(near.evaluate(split, 2, 0, 1))
            )
        assert exact(taken(source.train(plan_of(source), 0, 0, epochs=2))) == exact(
            taken(near.train(plan_of(near), 0, 0, epochs=2))
        )
        assert set(fetched(server).values()) == {1} and len(fetched(server)) == len(
            source.dataset.parts[0].shards
        )
        source = far(data, augment=STRONG)


def test_a_copy_that_went_bad_in_the_cache_is_fetched_again(data, far, server, tmp_path):
    source, near = far(data), loader(data)
    wanted = exact(taken(near.evaluate("val", 1, 0, 1)))
    assert exact(taken(source.evaluate("val", 1, 0, 1))) == wanted
    ref = source.dataset.parts[0].samples("val")[0]
    copy = tmp_path / "cache" / f"{source.dataset.parts[0].shards[ref.number]['sha256']}.shard"
    content = bytearray(copy.read_bytes())
    content[ref.members["depth.npy"][0] + 200] ^= 1
    copy.write_bytes(content)
    assert (
        exact(taken(source.evaluate("val", 1, 0, 1))) == wanted
        and max(fetched(server).values()) == 2
    )


def test_a_cache_of_two_shards_is_enough_where_shards_are_shuffled_one_at_a_time(
    in_both, far, server, tmp_path, monkeypatch
):
    monkeypatch.setattr(remote, "GRACE_S", -1.0)
    index = loader(in_both).dataset.parts[0]
    shards = [shard["bytes"] for shard in index.shards if shard["name"].startswith("train")]
    limit = 2 * max(shards) + index.raw["table"]["bytes"] + index.raw["names"]["bytes"]
    source, near = (
        far(in_both, shuffle_shards=1, cache_gb=limit / 1e9, threads=1),
        loader(in_both, shuffle_shards=1),
    )
    plan, batches = plan_of(near), []
    for packed in source.train(plan, 0, 0, epochs=3):
        batches.append(packed.to("cpu"))
        with contextlib.suppress(FileNotFoundError):  # one may go while they are counted
            assert (
                sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.shard")) <= limit
            )
    assert exact(batches) == exact(taken(near.train(plan, 0, 0, epochs=3)))
    assert len(fetched(server)) == len(shards) > 4 and sum(fetched(server).values()) <= 3 * len(
        shards
    ), "each once an epoch, none twice"
    assert real([taken(source.evaluate("val", 1, 0, 1))]) == list(range(5)) and not decoders()


def test_shards_are_fetched_ahead_of_their_turn_in_later_epochs_too(in_both, far, monkeypatch):
    source = far(in_both, shuffle_shards=1)
    cache, asked = source.dataset.parts[0].cache, Counter()

    def fetch(url, *how, real=cache.fetch):
        if url.endswith(".tar"):
            asked[url] += threading.current_thread().name.startswith("fetch")
        return real(url, *how)

    monkeypatch.setattr(cache, "fetch", fetch)
    assert len(taken(source.train(plan_of(source), 0, 0, epochs=5))) == 100
    assert len(asked) > 4 and all(count >= 3 for count in asked.values()), (
        "a small cache may have dropped them meanwhile"
    )


@pytest.mark.parametrize("damaged", ["stop", "quarantine"])
def test_a_shard_that_changed_on_the_server_is_refused(data, far, server, monkeypatch, damaged):
    source = far(data, damaged=damaged)
    content = CONTENT["/tires/train/shard-000001.tar"]
    monkeypatch.setitem(CONTENT, "/tires/train/shard-000001.tar", content[:-1] + b"x")
    text = failure(list, source.evaluate("train", 1, 0, 1))
    assert (
        text.startswith(f"{server.url}/tires/train/shard-000001.tar: sha256 is ")
        and "changed or is damaged" in text
    )
    monkeypatch.delitem(CONTENT, "/tires/train/shard-000001.tar")
    assert (
        "there is no such file" in failure(list, source.train(plan_of(source), 0, 0, epochs=1))
        and not decoders()
    )
