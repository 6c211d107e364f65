"""Shards become batches: the plan carried out to the byte, by threads and by real ranks."""

import itertools
import json
import pickle
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers.captures import capture
from helpers.commands import on_ranks
from helpers.loaders import (
    STRONG,
    everything,
    exact,
    failure,
    loader,
    make,
    plan_of,
    real,
    seed_of,
    taken,
)
from PIL import Image

from depthdist.core.settings import Size
from depthdist.data.batch import Buffers
from depthdist.data.sample_order import Position, TrainPlan, eval_groups, train_groups
from depthdist.data.sample_reader import read_batch
from depthdist.geometry.image_resizing import resize_rgb

# ------------------------------------------------------------------------------- ranks of their own


def streams(out, data, token):
    """An epoch and an evaluation; then an epoch from its middle on, and from where `token` says."""
    import json
    from pathlib import Path

    from helpers.runs import make_loader

    from depthdist.data.sample_order import Position, TrainPlan
    from depthdist.distributed.process_group import start, stop, sum_over_ranks

    world, loader = start(), make_loader(Path(data))
    plan, sha256 = TrainPlan(20, 8, 1, world.size), loader.dataset.sha256

    def seen(batches, most=None):
        found = []
        for packed in batches:
            assert sum_over_ranks([1.0]) == [
                world.size
            ]  # all are here, or this would wait for ever
            found += [(loaded.sample, loaded.weight) for loaded in packed.loaded]
            if packed.group.position == most:
                break
        return found, packed.group.position.token(sha256, 0)

    found = {
        "train": seen(loader.train(plan, 0, world.rank, epochs=1)),
        "val": seen(loader.evaluate("val", 2, world.rank, world.size)),
    }
    found["until"] = seen(loader.train(plan, 0, world.rank), Position(1, 8))
    found["from"] = seen(
        loader.train(plan, 0, world.rank, Position.from_token(json.loads(token), sha256, 0, 20), 2)
    )
    Path(out, f"{world.rank}.json").write_text(json.dumps(found))
    stop()


TOKEN_AT = Position(1, 8)


@pytest.fixture(scope="module", autouse=True)
def at_work(in_both, tmp_path_factory):
    """`streams` on 2 and on 4 ranks, while the other tests run."""
    token, launches = json.dumps(TOKEN_AT.token(loader(in_both).dataset.sha256, 0)), {}
    for world in (2, 4):
        out = tmp_path_factory.mktemp(f"ranks{world}")
        launches[world] = out, on_ranks(world, streams, out, out, in_both, token)
    yield launches
    for _, launch in launches.values():
        launch.kill()


# ----------------------------------------------------------------------------- the plan carried out


@pytest.mark.parametrize(
    ("world", "micro", "batch", "threads"),
    [(1, 1, 3, 1), (2, 3, 6, 2), (3, 1, 6, 5), (2, 2, 12, 0), (16, 1, 16, 1)],
)
def test_training_batches_are_the_plan_carried_out(data, world, micro, batch, threads):
    source = loader(data, threads=threads)
    plan, order, stems = (
        plan_of(source, batch, micro, world),
        source.dataset.order(9),
        [f"x{i}" for i in range(11)],
    )
    for rank in range(world):
        groups = list(train_groups(order, plan, rank, Position(1, 3), 3))
        batches = taken(source.train(plan, 9, rank, Position(1, 3), 3))
        assert [b.group for b in batches] == groups
        assert everything(batches) == [slot[:2] for group in groups for slot in group.slots]
        assert all(len(b.samples) == len(b.rgb) == len(b.depth_mm) == micro for b in batches)
        assert all(
            b.stems == [source.dataset.find("train", i)[1].stem for i in b.samples]
            and set(b.stems) < set(stems)
            for b in batches
        )


@pytest.mark.parametrize("augment", [None, STRONG])
def test_any_number_of_threads_gives_the_same_bytes(data, augment):
    found = []
    for threads in (1, 2, 5):
        source = loader(data, threads=threads, augment=augment)
        found.append(exact(taken(source.train(plan_of(source, 4, 2), 0, 0, epochs=3))))
    assert found[0] == found[1] == found[2] and len(found[0]) == 12
    assert augment is None or len({row[4] for row in found[0]}) == 12, "drawn anew in each epoch"


def test_augmentation_changes_training_and_nothing_else(data):
    plain, strong = loader(data), loader(data, augment=STRONG)
    plan = plan_of(plain)
    pairs = list(
        zip(taken(plain.train(plan, 0, 0, epochs=1)), taken(strong.train(plan, 0, 0, epochs=1)))
    )
    assert [a.samples for a, _ in pairs] == [b.samples for _, b in pairs] and not any(
        torch.equal(a.rgb, b.rgb) for a, b in pairs
    )
    flipped = [
        torch.equal(a.depth_mm.flip(-1), b.depth_mm) and torch.equal(a.mask.flip(-1), b.mask)
        for a, b in pairs
    ]
    assert 0 < sum(flipped) < 8 and all(
        same or torch.equal(a.depth_mm, b.depth_mm) for same, (a, b) in zip(flipped, pairs)
    )
    assert exact(taken(strong.evaluate("train", 2, 0, 1))) == exact(
        taken(plain.evaluate("train", 2, 0, 1))
    )
    assert torch.equal(
        strong.samples("train", [3]).to("cpu").rgb, plain.samples("train", [3]).to("cpu").rgb
    )


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("world", "micro"), [(1, 1), (1, 4), (2, 1), (2, 2), (3, 1), (5, 2), (16, 1)]
)
def test_evaluation_sees_every_sample_exactly_once(data, split, world, micro):
    source = loader(data)
    ranks = [taken(source.evaluate(split, micro, rank, world)) for rank in range(world)]
    assert real(ranks) == list(range(source.dataset.count(split)))
    assert [[b.group for b in batches] for batches in ranks] == [
        list(eval_groups(range(source.dataset.count(split)), micro, rank, world))
        for rank in range(world)
    ]
    assert {weight for batches in ranks for _, weight in everything(batches)} <= {0.0, 1.0}


@pytest.mark.parametrize("world", [1, 2, 4, 16])
def test_one_shard_is_enough_for_any_number_of_ranks(one_shard, world):
    source = loader(one_shard)
    assert len(source.dataset.parts[0].shards) == 1
    ranks = [
        taken(source.train(plan_of(source, 16, 1, world), 0, rank, epochs=1))
        for rank in range(world)
    ]
    share, order = 16 // world, source.dataset.order(0).epoch(0).tolist()
    assert {len(batches) for batches in ranks} == {2 * share}
    for step, samples in enumerate((order[:16], order[16:])):
        assert real([batches[step * share : (step + 1) * share] for batches in ranks]) == sorted(
            samples
        )
    assert real([taken(source.evaluate("train", 1, rank, world)) for rank in range(world)]) == list(
        range(20)
    )


def jpeg_error(rgb):
    """Mean error that another encoder makes of this picture at the same quality.

    Noise of every colour is the worst case.
    """
    Image.fromarray(rgb).save(file := BytesIO(), "JPEG", quality=95, subsampling="4:2:0")
    return np.abs(np.asarray(Image.open(file)).astype(int) - rgb).mean()


def compare(batches, step_mm, lossless=False):
    """Each sample of the batches with the capture that it was made of; how many counted.

    `step_mm(key)` is its dataset's.
    """
    for batch in batches:
        assert (
            batch.rgb.dtype == torch.uint8
            and batch.depth_mm.dtype == torch.float32
            and batch.mask.dtype == torch.bool
        )
        assert batch.rgb.shape[1:] == (28, 42, 3) and batch.depth_mm.shape[1:] == batch.mask.shape[
            1:
        ] == (30, 40)
        for key, rgb, depth_mm, mask in zip(batch.stems, batch.rgb, batch.depth_mm, batch.mask):
            raw_rgb, xyz = capture(seed_of(key))
            measured = torch.from_numpy(np.isfinite(xyz[:, :, 2]))
            assert torch.equal(mask, measured) and (depth_mm[~mask] == 0).all()
            difference = depth_mm.double() - torch.from_numpy(xyz[:, :, 2]).double()
            assert (
                difference[measured].abs().max() <= step_mm(key) / 2 + 1e-4
            )  # float32 at 1 m is 6e-5 mm
            wanted = resize_rgb(raw_rgb, Size(28, 42))
            assert np.abs(rgb.numpy().astype(int) - wanted).mean() <= (
                0 if lossless else jpeg_error(wanted) * 1.1
            )
    return sum(int(batch.weight.sum()) for batch in batches)


@pytest.mark.parametrize(
    "settings", [{}, {"rgb": "png"}, {"rgb": "raw"}, {"rgb": "png", "depth_codec": "png"}]
)
def test_a_batch_holds_what_the_raw_capture_holds(data, settings, tmp_path):
    source = loader(
        make(tmp_path, count=11, split="random", val=0.3, **settings) if settings else data
    )
    batches = taken(
        itertools.chain(source.evaluate("train", 2, 0, 1), source.evaluate("val", 1, 0, 1))
    )
    assert compare(batches, lambda key: 4000 / 65535, lossless="rgb" in settings) == 11


def test_mixed_datasets_give_each_its_own_millimetres(two):
    source = loader(*two, weights=(1.0, 2.0))
    batches = taken(source.train(TrainPlan(12, 4, 4, 1), 0, 0, epochs=4))
    assert compare(batches, lambda key: (4000 if seed_of(key) < 100 else 2500) / 65535) == 48
    assert any(len({seed_of(key) < 100 for key in batch.stems}) == 2 for batch in batches), (
        "both in one batch"
    )
    assert Counter(key for batch in batches for key in batch.stems) == {
        **{f"x{i}": 4 for i in range(4)},
        **{f"x{i}": 8 for i in range(100, 104)},
    }


def test_chosen_samples_come_in_the_order_asked_for(data):
    source = loader(data)
    packed = source.samples("train", iter([4, 0, 4]))
    source.samples("train", [1])
    batch = packed.to("cpu")
    assert batch.samples == [4, 0, 4] and batch.weight.tolist() == [1, 1, 1]
    assert torch.equal(batch.depth_mm[0], batch.depth_mm[2]) and not torch.equal(
        batch.depth_mm[0], batch.depth_mm[1]
    )
    assert batch.stems == [source.dataset.find("train", i)[1].stem for i in (4, 0, 4)]


def test_a_batch_moves_to_a_device_as_a_whole(data):
    moved = loader(data).samples("val", [0, 1]).to("cpu").to(torch.device("meta"))
    assert {t.device.type for t in (moved.rgb, moved.depth_mm, moved.mask, moved.weight)} == {
        "meta"
    } and moved.samples == [0, 1]


def test_an_unknown_split_names_those_there_are(data):
    assert "no split 'test'; it has train, val" in failure(loader(data).evaluate, "test", 1, 0, 1)


def test_batches_can_be_gone_through_again_and_twice_at_once(data):
    source = loader(data)
    for batches in (
        source.evaluate("train", 2, 0, 1),
        source.train(plan_of(source), 0, 0, epochs=1),
    ):
        whole = exact(taken(batches))
        assert len(whole) > 3 and exact(taken(batches)) == whole
        for side in zip(*((a.to("cpu"), b.to("cpu")) for a, b in zip(batches, batches))):
            assert exact(side) == whole


def test_a_reader_can_be_pickled(data):
    source = loader(data)
    reader = pickle.loads(pickle.dumps(source._reader("train", augment=STRONG, seed=3)))
    group = next(iter(train_groups(source.dataset.order(3), plan_of(source, 4, 4), 0)))
    packed = read_batch(reader, group, Buffers(source.dataset.arrays(4), pin=False))
    assert (
        exact([packed.to("cpu")])
        == exact(taken(loader(data, augment=STRONG).train(plan_of(source, 4, 4), 3, 0, epochs=1)))[
            :1
        ]
    )


# --------------------------------------------------------------------------------------- real ranks


@pytest.mark.parametrize("world", [2, 4])
def test_real_ranks_see_every_sample_once_and_go_on_where_others_stopped(at_work, in_both, world):
    out, launch = at_work[world]
    assert launch.done().code == 0, launch.done()
    ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(world)]

    def together(what):
        assert len({len(rank[what][0]) for rank in ranks}) == 1
        return sorted(sample for rank in ranks for sample, weight in rank[what][0] if weight)

    assert together("train") == list(range(20)) and together("val") == list(range(5))
    source = loader(in_both)
    first, second = (source.dataset.order(0).epoch(epoch).tolist() for epoch in (0, 1))
    assert together("until") == sorted(first + second[:8]) and together("from") == sorted(
        second[8:]
    )
    (token,) = {json.dumps(rank["until"][1]) for rank in ranks}
    position = Position.from_token(json.loads(token), source.dataset.sha256, 0, 20)
    for other in (1, 8):
        after = [
            taken(source.train(plan_of(source, 8, 1, other), 0, rank, position, 2))
            for rank in range(other)
        ]
        assert sorted(together("until") + real(after)) == sorted(2 * list(range(20)))


def test_processes_become_threads_where_shared_memory_is_small(data, monkeypatch, capfd):
    plan = plan_of(loader(data))
    expected = exact(taken(loader(data, threads=2).train(plan, 0, 0, epochs=1)))
    monkeypatch.setattr("depthdist.data.loader.free_shared_memory", lambda: 1000.0)
    found = exact(taken(loader(data, processes=2).train(plan, 0, 0, epochs=1)))
    assert found == expected
    assert "--processes 2 takes" in capfd.readouterr().err
