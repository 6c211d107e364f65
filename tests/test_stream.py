"""Shards become batches: the plan carried out to the byte, by threads, processes and real ranks, and damage that is never passed on."""

import contextlib
import gc
import io
import itertools
import json
import multiprocessing
import os
import pickle
import re
import shutil
import sys
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from captures import capture, write_capture
from PIL import Image
from ranks import make_shards, on_ranks
from test_remote import CONTENT, server  # noqa: F401

from depthdist import stream
from depthdist.augment import AugmentSettings
from depthdist.config import Size
from depthdist.dataset import DataSettings, open_dataset
from depthdist.order import Position, TrainPlan, eval_groups, train_groups
from depthdist.pairs import resize_rgb
from depthdist.shards import remote
from depthdist.shards.verify import verify
from depthdist.stream import Loader

STRONG = AugmentSettings(flip=0.5, exposure=0.5, colour=0.15, noise=6, jpeg=60)


def make(folder, first=0, count=4, **settings):
    """Shards of captures from seed `first` on, which a stem ends with."""
    for seed in range(first, first + count):
        write_capture(folder / f"raw/images/x{seed}_color.png", folder / f"raw/depth/x{seed}_rawDepth.npy", seed)
    return make_shards(folder, **{"split": "none", "rgb": "jpeg", **settings})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """8 training samples in 4 shards, 3 for validation."""
    return make(tmp_path_factory.mktemp("tires"), count=11, split="random", val=0.3, shard_mb=0.02)


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory):
    """20 training samples in it."""
    return make(tmp_path_factory.mktemp("one"), count=20)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two datasets of one shard with 4 training samples each, which have the same keys and other depth steps."""
    return make(tmp_path_factory.mktemp("a")), make(tmp_path_factory.mktemp("b"), 100, far=2500.0)


@pytest.fixture
def copies(two, tmp_path):
    """The same, for a test to damage."""
    return [Path(shutil.copytree(place, tmp_path / name)) for place, name in zip(two, "ab")]


def loader(*places, augment=None, **settings):
    """A Loader of those places; what it tells of damage is in `told`."""
    told, given = [], DataSettings(data=tuple(map(str, places)), **settings)
    made = Loader(open_dataset(given), given, augment, on_damage=told.append)
    made.told = told
    return made


def plan_of(loader, batch=4, micro=1, world=1):
    return TrainPlan(loader.dataset.count("train"), batch, micro, world)


def taken(batches):
    return [packed.to("cpu") for packed in batches]


def everything(batches):
    """(sample, weight) of every slot, in order."""
    return [(sample, weight) for batch in batches for sample, weight in zip(batch.samples, batch.weight.tolist())]


def real(ranks):
    return sorted(sample for batches in ranks for sample, weight in everything(batches) if weight)


def exact(batches):
    """All that batches hold, to be compared."""
    return [(b.group, b.samples, b.keys, b.weight.tolist(), *(t.numpy().tobytes() for t in (b.rgb, b.depth_mm, b.mask))) for b in batches]


def seed_of(key):
    """Of the capture that a sample was made of."""
    return int(key.removeprefix("x"))


def decoders():
    return [t.name for t in threading.enumerate() if t.name.startswith("decode")]


def failure(call, *args):
    with pytest.raises(ValueError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- ranks of their own


def streams(out, data, token):
    """An epoch and an evaluation; then an epoch from its middle on, and from where `token` says."""
    import json
    from pathlib import Path

    from ranks import make_loader

    from depthdist.world import start, stop, sum_over_ranks
    from depthdist.order import Position, TrainPlan

    world, loader = start(), make_loader(Path(data))
    plan, sha256 = TrainPlan(20, 8, 1, world.size), loader.dataset.sha256

    def seen(batches, most=None):
        found = []
        for packed in batches:
            assert sum_over_ranks([1.0]) == [world.size]  # all are here, or this would wait for ever
            found.append([(loaded.sample, loaded.weight) for loaded in packed.loaded])
            if packed.group.position == most:
                break
        return sum(found, []), packed.group.position.token(sha256, 0)

    found = {"train": seen(loader.train(plan, 0, world.rank, epochs=1)), "val": seen(loader.evaluate("val", 2, world.rank, world.size))}
    found["until"] = seen(loader.train(plan, 0, world.rank), Position(1, 8))
    found["from"] = seen(loader.train(plan, 0, world.rank, Position.from_token(json.loads(token), sha256, 0, 20), 2))
    Path(out, f"{world.rank}.json").write_text(json.dumps(found))
    stop()


TOKEN_AT = Position(1, 8)


@pytest.fixture(scope="module")
def in_both(tmp_path_factory):
    """20 training and 5 validation samples."""
    return make(tmp_path_factory.mktemp("both"), count=25, split="random", val=0.2, shard_mb=0.03)


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


# ------------------------------------------------------------------------------------------------------- the plan carried out


@pytest.mark.parametrize(("world", "micro", "batch", "threads"), [(1, 1, 3, 1), (2, 3, 6, 2), (3, 1, 6, 5), (2, 2, 12, 0), (16, 1, 16, 1)])
def test_training_batches_are_the_plan_carried_out(data, world, micro, batch, threads):
    source = loader(data, threads=threads)
    plan, order, stems = plan_of(source, batch, micro, world), source.dataset.order(9), [f"x{i}" for i in range(11)]
    for rank in range(world):
        groups = list(train_groups(order, plan, rank, Position(1, 3), 3))
        batches = taken(source.train(plan, 9, rank, Position(1, 3), 3))
        assert [b.group for b in batches] == groups
        assert everything(batches) == [slot[:2] for group in groups for slot in group.slots]
        assert all(len(b.samples) == len(b.rgb) == len(b.depth_mm) == micro for b in batches)
        assert all(b.keys == [source.dataset.find("train", i)[1].stem for i in b.samples] and set(b.keys) < set(stems) for b in batches)


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
    pairs = list(zip(taken(plain.train(plan, 0, 0, epochs=1)), taken(strong.train(plan, 0, 0, epochs=1))))
    assert [a.samples for a, _ in pairs] == [b.samples for _, b in pairs] and not any(torch.equal(a.rgb, b.rgb) for a, b in pairs)
    flipped = [torch.equal(a.depth_mm.flip(-1), b.depth_mm) and torch.equal(a.mask.flip(-1), b.mask) for a, b in pairs]
    assert 0 < sum(flipped) < 8 and all(same or torch.equal(a.depth_mm, b.depth_mm) for same, (a, b) in zip(flipped, pairs))
    assert exact(taken(strong.evaluate("train", 2, 0, 1))) == exact(taken(plain.evaluate("train", 2, 0, 1)))
    assert torch.equal(strong.samples("train", [3]).to("cpu").rgb, plain.samples("train", [3]).to("cpu").rgb)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 4), (2, 1), (2, 2), (3, 1), (5, 2), (16, 1)])
def test_evaluation_sees_every_sample_exactly_once(data, split, world, micro):
    source = loader(data)
    ranks = [taken(source.evaluate(split, micro, rank, world)) for rank in range(world)]
    assert real(ranks) == list(range(source.dataset.count(split)))
    assert [[b.group for b in batches] for batches in ranks] == [list(eval_groups(source.dataset.count(split), micro, rank, world)) for rank in range(world)]
    assert {weight for batches in ranks for _, weight in everything(batches)} <= {0.0, 1.0}


@pytest.mark.parametrize("world", [1, 2, 4, 16])
def test_one_shard_is_enough_for_any_number_of_ranks(one_shard, world):
    source = loader(one_shard)
    assert len(source.dataset.parts[0].shards) == 1
    ranks = [taken(source.train(plan_of(source, 16, 1, world), 0, rank, epochs=1)) for rank in range(world)]
    share, order = 16 // world, source.dataset.order(0).epoch(0).tolist()
    assert {len(batches) for batches in ranks} == {2 * share}
    for step, samples in enumerate((order[:16], order[16:])):
        assert real([batches[step * share : (step + 1) * share] for batches in ranks]) == sorted(samples)
    assert real([taken(source.evaluate("train", 1, rank, world)) for rank in range(world)]) == list(range(20))


def jpeg_error(rgb):
    """Mean error that another encoder makes of this picture at the same quality; noise of every colour is the worst case."""
    Image.fromarray(rgb).save(file := BytesIO(), "JPEG", quality=95, subsampling="4:2:0")
    return np.abs(np.asarray(Image.open(file)).astype(int) - rgb).mean()


def compare(batches, step_mm, lossless=False):
    """Each sample of the batches with the capture that it was made of; how many counted. `step_mm(key)` is its dataset's."""
    for batch in batches:
        assert batch.rgb.dtype == torch.uint8 and batch.depth_mm.dtype == torch.float32 and batch.mask.dtype == torch.bool
        assert batch.rgb.shape[1:] == (28, 42, 3) and batch.depth_mm.shape[1:] == batch.mask.shape[1:] == (30, 40)
        for key, rgb, depth_mm, mask in zip(batch.keys, batch.rgb, batch.depth_mm, batch.mask):
            raw_rgb, xyz = capture(seed_of(key))
            measured = torch.from_numpy(np.isfinite(xyz[:, :, 2]))
            assert torch.equal(mask, measured) and (depth_mm[~mask] == 0).all()
            difference = depth_mm.double() - torch.from_numpy(xyz[:, :, 2]).double()
            assert difference[measured].abs().max() <= step_mm(key) / 2 + 1e-4  # float32 at 1 m is 6e-5 mm
            wanted = resize_rgb(raw_rgb, Size(28, 42))
            assert np.abs(rgb.numpy().astype(int) - wanted).mean() <= (0 if lossless else jpeg_error(wanted) * 1.1)
    return sum(int(batch.weight.sum()) for batch in batches)


@pytest.mark.parametrize("settings", [{}, {"rgb": "png"}, {"rgb": "raw"}, {"rgb": "png", "depth_codec": "png"}])
def test_a_batch_holds_what_the_raw_capture_holds(data, settings, tmp_path):
    source = loader(make(tmp_path, count=11, split="random", val=0.3, **settings) if settings else data)
    batches = taken(itertools.chain(source.evaluate("train", 2, 0, 1), source.evaluate("val", 1, 0, 1)))
    assert compare(batches, lambda key: 4000 / 65535, lossless="rgb" in settings) == 11


def test_mixed_datasets_give_each_its_own_millimetres(two):
    source = loader(*two, weights=(1.0, 2.0))
    batches = taken(source.train(TrainPlan(12, 4, 4, 1), 0, 0, epochs=4))
    assert compare(batches, lambda key: (4000 if seed_of(key) < 100 else 2500) / 65535) == 48
    assert any(len({seed_of(key) < 100 for key in batch.keys}) == 2 for batch in batches), "both in one batch"
    assert Counter(key for batch in batches for key in batch.keys) == {**{f"x{i}": 4 for i in range(4)}, **{f"x{i}": 8 for i in range(100, 104)}}


def test_chosen_samples_come_in_the_order_asked_for(data):
    source = loader(data)
    packed = source.samples("train", iter([4, 0, 4]))
    source.samples("train", [1])
    batch = packed.to("cpu")
    assert batch.samples == [4, 0, 4] and batch.weight.tolist() == [1, 1, 1]
    assert torch.equal(batch.depth_mm[0], batch.depth_mm[2]) and not torch.equal(batch.depth_mm[0], batch.depth_mm[1])
    assert batch.keys == [source.dataset.find("train", i)[1].stem for i in (4, 0, 4)]


def test_a_batch_moves_to_a_device_as_a_whole(data):
    moved = loader(data).samples("val", [0, 1]).to("cpu").to(torch.device("meta"))
    assert {t.device.type for t in (moved.rgb, moved.depth_mm, moved.mask, moved.weight)} == {"meta"} and moved.samples == [0, 1]


def test_an_unknown_split_names_those_there_are(data):
    assert "no split 'test'; it has train, val" in failure(loader(data).evaluate, "test", 1, 0, 1)


def test_batches_can_be_gone_through_again_and_twice_at_once(data):
    source = loader(data)
    for batches in (source.evaluate("train", 2, 0, 1), source.train(plan_of(source), 0, 0, epochs=1)):
        whole = exact(taken(batches))
        assert len(whole) > 3 and exact(taken(batches)) == whole
        for side in zip(*((a.to("cpu"), b.to("cpu")) for a, b in zip(batches, batches))):
            assert exact(side) == whole


# ------------------------------------------------------------------------------------------------------- buffers


def test_a_packed_batch_is_refused_once_the_next_one_was_asked_for(data):
    source = loader(data)
    for batches in (source.train(plan_of(source), 0, 0, epochs=1), source.evaluate("train", 1, 0, 1)):
        packed = list(batches)
        assert len(packed) == 8
        for stale in packed:
            with pytest.raises(AssertionError, match="valid until the next one is asked for"):
                stale.to("cpu")
    (last,) = itertools.islice(source.evaluate("train", 1, 0, 1), 1)
    list(source.evaluate("train", 1, 0, 1))
    assert torch.equal(last.to("cpu").depth_mm, source.samples("train", [0]).to("cpu").depth_mm), "the last one before leaving stays valid"


def test_what_was_moved_does_not_change_when_its_buffers_are_used_again(one_shard):
    source = loader(one_shard)
    batches = taken(source.train(plan_of(source, 2, 2), 0, 0, epochs=3))
    for batch in batches:
        fresh = source.samples("train", batch.samples).to("cpu")
        assert all(torch.equal(getattr(batch, name), getattr(fresh, name)) for name in ("rgb", "depth_mm", "mask"))


@pytest.mark.parametrize(("threads", "micro"), [(1, 1), (2, 3), (4, 1)])
def test_buffers_are_used_again_and_memory_has_the_bound_that_is_told(one_shard, threads, micro):
    source, kept = loader(one_shard, threads=threads), []
    training = iter(source.train(plan_of(source, micro, micro), 0, 0, epochs=20))
    for _ in range(6):
        kept += [next(training).buffers for _ in range(20)]
        kept += [packed.buffers for packed in source.evaluate("train", micro, 0, 1)]
    training.close()
    places = {t.data_ptr(): t.nbytes for buffers in kept for t in (buffers.rgb, buffers.depth, buffers.mask)}
    assert len(kept) > 150 and len(places) <= 3 * 2 * (2 + -(-2 * threads // micro))
    sample = sum(array.nbytes for array in source.dataset.arrays())
    assert sum(places.values()) + 2 * threads * sample <= source.memory_bytes(micro)


class Reading:
    """Stands in for read_sample: counts what was begun, holds the stems `held` back until `go`, and fails at one while others are held."""

    def __init__(self, monkeypatch, held=(), fail=None):
        self.begun, self.many, self.go, self.held, self.fail = [], threading.Condition(), threading.Event(), held, fail
        monkeypatch.setattr(stream, "read_sample", self)

    def __call__(self, fd, ref, index, out, real=stream.read_sample):
        with self.many:
            self.begun.append(ref.stem)
            self.many.notify_all()
        if self.fail == ref.stem:
            self.wait_for(3)
            self.go.set()
            raise RuntimeError("ours")
        if ref.stem in self.held:
            assert self.go.wait(20)
        real(fd, ref, index, out)

    def wait_for(self, count):
        with self.many:
            assert self.many.wait_for(lambda: len(self.begun) >= count, 20), self.begun


@pytest.mark.parametrize(("threads", "micro"), [(1, 1), (2, 1), (2, 4)])
def test_samples_are_read_only_as_far_ahead_as_there_are_buffers(one_shard, monkeypatch, threads, micro):
    source, reading = loader(one_shard, threads=threads), Reading(monkeypatch)
    ring = 2 + -(-2 * threads // micro)
    batches = iter(source.train(plan_of(source, micro, micro), 0, 0))
    for taken_so_far in range(1, 8):
        next(batches)
        reading.wait_for((taken_so_far + ring - 2) * micro)
    batches.close()
    assert len(reading.begun) <= (7 + ring - 2) * micro, "memory does not grow with the epoch"


def test_the_next_epoch_is_read_while_the_last_batch_of_this_one_is_worked_on(data, monkeypatch):
    source, reading = loader(data, threads=2), Reading(monkeypatch)
    batches = iter(source.train(plan_of(source), 0, 0))
    assert [next(batches).group.epoch for _ in range(8)] == [0] * 8
    reading.wait_for(8 + 4)
    assert reading.begun[8:12] and next(batches).group.epoch == 1


# ------------------------------------------------------------------------------------------------------- leaving, failing


def test_leaving_the_iterator_early_leaves_no_thread_behind(data):
    source = loader(data, threads=3)
    for batch in source.train(plan_of(source), 0, 0):
        assert len(decoders()) >= 2 and batch.loaded
        break
    assert not decoders()
    whole = exact(taken(loader(data).train(plan_of(source), 0, 0, epochs=2)))
    assert exact(taken(source.train(plan_of(source), 0, 0, epochs=2))) == whole, "and nothing of it in later batches"


def test_an_error_of_the_reader_of_batches_leaves_no_thread_behind(data):
    with pytest.raises(RuntimeError, match="ours"):
        for _ in loader(data).evaluate("train", 1, 0, 1):
            raise RuntimeError("ours")
    assert not decoders()


def test_an_error_in_one_thread_while_others_write_leaves_neither_threads_nor_half_batches(data, monkeypatch):
    source = loader(data, threads=4)
    plan, stems = plan_of(source, 4, 2), [source.dataset.find("train", i)[1].stem for i in source.dataset.order(0).epoch(0)]
    whole = exact(taken(source.train(plan, 0, 0, epochs=1)))
    with monkeypatch.context() as patch:
        Reading(patch, held=stems, fail=stems[2])
        with pytest.raises(RuntimeError, match="ours"):
            list(source.train(plan, 0, 0, epochs=1))
    assert not decoders() and exact(taken(source.train(plan, 0, 0, epochs=1))) == whole


def test_closing_while_threads_write_waits_for_them(data, monkeypatch):
    source = loader(data, threads=2)
    whole = exact(taken(source.evaluate("train", 1, 0, 1)))
    with monkeypatch.context() as patch:
        reading = Reading(patch, held=[source.dataset.find("train", i)[1].stem for i in (1, 2)])
        batches = iter(source.evaluate("train", 1, 0, 1))
        next(batches)
        reading.wait_for(3)
        closing = threading.Thread(target=batches.close)
        closing.start()
        reading.go.set()
        closing.join(20)
    assert not closing.is_alive() and not decoders() and exact(taken(source.evaluate("train", 1, 0, 1))) == whole


def test_an_iterator_that_is_forgotten_leaves_no_thread_behind(data):
    batches = iter(loader(data).evaluate("train", 1, 0, 1))
    next(batches)
    del batches
    gc.collect()
    assert not decoders()


@pytest.mark.parametrize("micro", [1, 2])
def test_training_and_evaluation_at_once_do_not_disturb_each_other(data, micro):
    source, alone = loader(data, augment=STRONG), loader(data, augment=STRONG)
    plan, mixed = plan_of(source, 4, micro), {"train": [], "val": []}
    for packed in source.train(plan, 0, 0, epochs=2):
        mixed["val"] += [inner.to("cpu") for inner in source.evaluate("val", micro, 0, 1)]
        mixed["train"].append(packed.to("cpu"))
    assert exact(mixed["train"]) == exact(taken(alone.train(plan, 0, 0, epochs=2)))
    assert exact(mixed["val"]) == exact(taken(alone.evaluate("val", micro, 0, 1))) * len(mixed["train"])


# ------------------------------------------------------------------------------------------------------- processes


def test_worker_processes_give_the_same_bytes_and_tell_of_the_same_damage(copies, monkeypatch):
    hurt(copies[0], "a flipped byte in a payload")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    found = []
    for settings in ({"threads": 2}, {"processes": 1, "stall": 0.5}):
        source = loader(f"file://{copies[0]}", copies[1], augment=STRONG, damaged="quarantine", **settings)
        found.append((exact(taken(source.train(plan_of(source, 4, 2), 0, 0, Position(0, 2), epochs=3))), source.told))
    assert found[0] == found[1] and len(found[0][1]) == 1
    assert "waiting for a worker process that decodes train samples" in sys.stderr.getvalue(), "while it starts"
    assert not multiprocessing.active_children()


def test_damage_that_a_worker_process_meets_is_one_line(copies):
    hurt(copies[0], "a flipped byte in a payload")
    source = loader(copies[0], processes=1)
    assert "CRC-32" in failure(list, source.train(plan_of(source), 0, 0)) and not multiprocessing.active_children()


def test_a_reader_can_be_pickled(data):
    source = loader(data)
    reader = pickle.loads(pickle.dumps(source._reader("train", augment=STRONG, seed=3)))
    group = next(iter(train_groups(source.dataset.order(3), plan_of(source, 4, 4), 0)))
    packed = stream._packed(reader, group, stream.Buffers(source.dataset.arrays(4), pin=False))
    assert exact([packed.to("cpu")]) == exact(taken(loader(data, augment=STRONG).train(plan_of(source, 4, 4), 3, 0, epochs=1)))[:1]


# ------------------------------------------------------------------------------------------------------- damage


def flip(file, at):
    file.seek(at)
    byte = file.read(1)
    file.seek(at)
    file.write(bytes([byte[0] ^ 1]))


def zero(file, at):
    file.seek(at)
    file.write(bytes(1024))


# what happens to the first of two shards with samples 0-3 and 4-7: how; the samples that are lost; the first one's member,
# and where it is; what plain webdataset 1.0.2 makes of both shards: whole samples, half samples, or an error
DAMAGE = {
    "cut at a member boundary": (lambda file, refs: file.truncate(refs[2].start), [2, 3], "depth.npy", (6, 0)),
    "a flipped byte in a tar header": (lambda file, refs: flip(file, refs[1].start + 3), [1], "tar header", (5, 0)),
    "a zeroed KiB": (lambda file, refs: zero(file, refs[1].start), [1], "depth.npy", (5, 0)),
    "cut between depth and RGB": (lambda file, refs: file.truncate(refs[1].members["rgb.jpg"][0] - 512), [1, 2, 3], "rgb.jpg", (5, 1)),
    "a flipped byte in a payload": (lambda file, refs: flip(file, refs[1].members["depth.npy"][0] + 999), [1], "depth.npy", (8, 0)),
    "cut in the middle of a payload": (lambda file, refs: file.truncate(refs[1].members["rgb.jpg"][0] + 1000), [1, 2, 3], "rgb.jpg", None),
    "cut before a shard with the same keys": (lambda file, refs: file.truncate(refs[0].members["rgb.jpg"][0] + 1000), [0, 1, 2, 3], "rgb.jpg", None),
}


def hurt(place, kind):
    """Damage the place's shard so; its samples' places."""
    refs = open_dataset(DataSettings(data=(str(place),))).parts[0].samples("train")
    with open(refs[0].shard, "r+b") as file:
        DAMAGE[kind][0](file, refs)
    return refs


def facts_of(kind, refs):
    """Shard, key, stem and member of each lost sample, and where the first one's is."""
    _, lost, member, _ = DAMAGE[kind]
    offset = refs[lost[0]].members[member][0] if member in refs[lost[0]].members else refs[lost[0]].start
    return [(str(refs[i].shard), refs[i].key, refs[i].stem) for i in lost], member, offset


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_stops_with_one_line_that_names_shard_key_member_and_offset(copies, kind):
    source = loader(*copies)  # damage comes after all was found in order
    refs = hurt(copies[0], kind)
    facts, member, offset = facts_of(kind, refs)
    for batches in (source.evaluate("train", 1, 0, 1), source.evaluate("train", 8, 0, 1)):
        text = failure(list, batches)
        assert all(part in text for part in (*facts[0], f"{member} at byte {offset}: ", "`tools/shard.py --verify ", "--damaged quarantine"))
    assert facts[0][0] in failure(list, source.train(plan_of(source), 0, 0)) and not decoders() and not source.told
    others = [i for i in range(8) if i not in DAMAGE[kind][1]]
    assert source.samples("train", others).to("cpu").samples == others, "the others can still be read"
    if refs[0].shard.stat().st_size < refs.index.shards[0]["bytes"]:
        assert "cut off" in failure(loader, copies[0])


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_quarantine_goes_on_with_the_next_samples_and_tells_of_each_once(two, copies, kind, world):
    facts, member, offset = facts_of(kind, hurt(copies[0], kind))
    lost, whole = DAMAGE[kind][1], loader(*two)
    intact, order = exact(taken(whole.evaluate("train", 1, 0, 1))), whole.dataset.order(0)
    sources = [loader(*copies, damaged="quarantine") for _ in range(world)]
    plan = plan_of(sources[0], 4, 1, world)
    done = list(zip(*(taken(source.train(plan, 0, rank, epochs=2)) for rank, source in enumerate(sources)), strict=True))
    assert len(done) == 2 * plan.steps_per_epoch * plan.accumulation
    for rank, batches in enumerate(zip(*done)):
        assert [b.group for b in batches] == list(train_groups(order, plan, rank, epochs=2)), "steps as if all was well"
    flat = [batch for row in done for batch in row]
    for batch in flat:
        (slot,) = batch.group.slots
        assert batch.samples == [next(i for i in (slot.sample, *slot.stand_ins) if i not in lost)] and batch.weight.tolist() == [1]
        assert exact([batch])[0][1:] == intact[batch.samples[0]][1:], "never RGB of one with depth of another"
    told = [[t["sample"] for t in source.told] for source in sources]
    assert all(len(set(samples)) == len(samples) for samples in told) and set(sum(told, [])) == set(lost)
    first = next(t for source in sources for t in source.told if t["sample"] == lost[0])
    assert [first[name] for name in ("split", "shard", "key", "stem", "offset")] == ["train", *facts[0], offset] and member in first["member"]
    assert {(t["shard"], t["key"], t["stem"]) for source in sources for t in source.told} == set(facts) and first["reason"]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 3), (3, 2)])
def test_evaluation_gives_damaged_samples_weight_0_and_meets_all_others_once(copies, kind, world, micro):
    hurt(copies[0], kind)
    sources = [loader(*copies, damaged="quarantine") for _ in range(world)]
    for _ in range(2):
        ranks = [taken(source.evaluate("train", micro, rank, world)) for rank, source in enumerate(sources)]
        assert real(ranks) == [i for i in range(8) if i not in DAMAGE[kind][1]]
        slots = [(slot, weight) for batches in ranks for b in batches for slot, weight in zip(b.group.slots, b.weight.tolist())]
        assert sorted(slot.sample for slot, weight in slots if slot.weight and not weight) == DAMAGE[kind][1], "what was to count and did not"
        lost = [(b, i) for batches in ranks for b in batches for i in range(micro) if b.samples[i] in DAMAGE[kind][1]]
        assert all(b.depth_mm[i].sum() == b.mask[i].sum() == b.rgb[i].sum() == b.weight[i] == 0 for b, i in lost)
    assert sorted(t["sample"] for source in sources for t in source.told) == DAMAGE[kind][1], "once, though it was met twice"


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_every_damaged_sample(copies, kind):
    facts, _, _ = facts_of(kind, hurt(copies[0], kind))
    problems = verify(copies[0])
    assert all(any(key in line for line in problems) for _, key, _ in facts) and all("shard-000000.tar" in line for line in problems)
    assert verify(copies[1]) == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_why_not_plain_webdataset_it_loses_samples_and_says_nothing(copies, kind):
    """Not a promise of ours: version 1.0.2, and here so that we notice when a later one does better."""
    hurt(copies[0], kind)
    shards = [str(copy / "train/shard-000000.tar") for copy in copies]

    def samples(handler):
        return list(wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples(handler=handler)))

    def whole(sample):
        return {"depth.npy", "mask.npy", "meta.json", "rgb.jpg"} <= sample.keys()

    if DAMAGE[kind][3] is None:
        with pytest.raises(Exception, match="unexpected end of data"):
            samples(wds.reraise_exception)
    else:
        found = samples(wds.reraise_exception)
        assert (sum(map(whole, found)), sum(not whole(sample) for sample in found)) == DAMAGE[kind][3]
    if kind == "cut before a shard with the same keys":
        mixed, a, b = samples(wds.ignore_and_continue)[0], *(reference(copy) for copy in copies)
        assert mixed["depth.npy"] == a["depth.npy"] != b["depth.npy"] and mixed["rgb.jpg"] == b["rgb.jpg"], "depth of one, RGB of the other"


def reference(place):
    """The members of a shard's first sample, read by offset up to where the file ends."""
    ref = open_dataset(DataSettings(data=(str(place),), damaged="quarantine")).find("train", 0)[1]
    content = ref.shard.read_bytes()
    return {name: content[offset : offset + size] for name, (offset, size, _) in ref.members.items()}


# ------------------------------------------------------------------------------------------------------- more damage


@pytest.mark.parametrize(("most", "stops"), [(0, True), (2, True), (3, False)])
def test_more_damage_than_allowed_stops_with_one_line(copies, most, stops):
    hurt(copies[0], "cut in the middle of a payload")  # 3 samples
    source = loader(*copies, damaged="quarantine", max_damaged=most)
    for batches in (source.evaluate("train", 1, 0, 1), source.train(plan_of(source), 0, 0, epochs=1)):
        source.damaged.clear()
        if stops:
            text = failure(list, batches)
            assert f"{most + 1} damaged samples of train, --max-damaged is {most}; the last: 0000000" in text and text.startswith(str(copies[0]))
        else:
            assert len(list(batches)) == 8
    assert not decoders()


def test_where_everything_is_damaged_training_stops(copies):
    for copy in copies:
        os.truncate(copy / "train/shard-000000.tar", 100)
    source = loader(*copies, damaged="quarantine", max_damaged=100)
    text = failure(list, source.train(plan_of(source), 0, 0))
    assert re.search(r"sample \d of train and the 8 after it are all damaged", text)


@pytest.mark.parametrize(("how", "told"), [(Path.unlink, "the file is missing"), (lambda shard: (shard.unlink(), shard.mkdir()), "cannot be read: Is a directory")])
def test_a_missing_shard_stops_or_is_quarantined(copies, how, told):
    before = loader(*copies)
    how(copies[0] / "train/shard-000000.tar")
    assert told in failure(list, before.evaluate("train", 1, 0, 1))
    source = loader(*copies, damaged="quarantine")
    assert {i for i, _ in everything(taken(source.train(plan_of(source), 0, 0, epochs=1)))} == {4, 5, 6, 7}
    assert sorted(t["sample"] for t in source.told) == [0, 1, 2, 3] and all(told in t["reason"] for t in source.told)


def test_damage_is_told_of_once_by_training_and_evaluation_together(copies):
    hurt(copies[0], "a zeroed KiB")
    source = loader(*copies, damaged="quarantine")
    training, evaluation = source.train(plan_of(source), 0, 0, epochs=2), source.evaluate("train", 2, 0, 1)  # neither knows of it yet
    for batches in (training, evaluation, source.evaluate("train", 2, 0, 1)):
        list(batches)
    assert len(source.told) == 1 and source.damaged == {"train": {1}}


# ------------------------------------------------------------------------------------------------------- waiting


class Told(io.StringIO):
    """A stderr that does something once it was told what is waited for."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def write(self, text):
        super().write(text)
        if "waiting for" in text:
            self.act()


def test_a_reader_that_hangs_is_named_and_gone_on_with_when_it_is_released(data, monkeypatch):
    source, go = loader(data, threads=2, stall=0.2), threading.Event()
    whole, ref = exact(taken(source.evaluate("train", 1, 0, 1))), source.dataset.find("train", 0)[1]
    monkeypatch.setattr(sys, "stderr", Told(go.set))
    monkeypatch.setattr(os, "preadv", lambda *args, real=os.preadv: go.wait(20) and real(*args))
    assert exact(taken(source.evaluate("train", 1, 0, 1))) == whole
    said = sys.stderr.getvalue()
    assert re.match(rf"WARNING      no sample for \d s; waiting for sample {ref.key} \({ref.stem}\) of {ref.shard}; its threads are in wait \(threading.py:\d+\)\n$", said)


def test_a_slow_user_of_batches_is_not_a_stall(data, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    batches = iter(loader(data, stall=0.05).evaluate("train", 1, 0, 1))
    next(batches)
    threading.Event().wait(0.3)
    next(batches)
    assert not sys.stderr.getvalue()


# ------------------------------------------------------------------------------------------------------- remote


@pytest.fixture
def far(server, monkeypatch, tmp_path):
    """Opens a folder's dataset behind HTTP, with a cache in tmp_path."""
    monkeypatch.setattr(remote, "RETRY_S", 0.01)

    def served(place, **settings):
        for path in place.rglob("*.*"):
            if path.is_file():
                monkeypatch.setitem(CONTENT, f"/tires/{path.relative_to(place)}", path.read_bytes())
        return loader(f"{server.url}/tires", **{"cache": tmp_path / "cache", "fetch_retries": 1, **settings})

    return served


def fetched(server):
    return Counter(path for path, _ in server.seen if path.endswith(".tar"))


def test_a_served_dataset_gives_the_same_bytes_and_is_fetched_once(data, far, server):
    near, source = loader(data, augment=STRONG), far(data, augment=STRONG)
    for _ in range(2):
        for split in ("train", "val"):
            assert exact(taken(source.evaluate(split, 2, 0, 1))) == exact(taken(near.evaluate(split, 2, 0, 1)))
        assert exact(taken(source.train(plan_of(source), 0, 0, epochs=2))) == exact(taken(near.train(plan_of(near), 0, 0, epochs=2)))
        assert set(fetched(server).values()) == {1} and len(fetched(server)) == len(source.dataset.parts[0].shards)
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
    assert exact(taken(source.evaluate("val", 1, 0, 1))) == wanted and max(fetched(server).values()) == 2


def test_a_cache_of_two_shards_is_enough_where_shards_are_shuffled_one_at_a_time(in_both, far, server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "GRACE_S", -1.0)
    index = loader(in_both).dataset.parts[0]
    shards = [shard["bytes"] for shard in index.shards if shard["name"].startswith("train")]
    limit = 2 * max(shards) + index.raw["table"]["bytes"] + index.raw["names"]["bytes"]
    source, near = far(in_both, shuffle_shards=1, cache_gb=limit / 1e9, threads=1), loader(in_both, shuffle_shards=1)
    plan, batches = plan_of(near), []
    for packed in source.train(plan, 0, 0, epochs=3):
        batches.append(packed.to("cpu"))
        with contextlib.suppress(FileNotFoundError):  # one may go while they are counted
            assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.shard")) <= limit
    assert exact(batches) == exact(taken(near.train(plan, 0, 0, epochs=3)))
    assert len(fetched(server)) == len(shards) > 4 and sum(fetched(server).values()) <= 3 * len(shards), "each once an epoch, none twice"
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
    assert len(asked) > 4 and all(count >= 3 for count in asked.values()), "a small cache may have dropped them meanwhile"


@pytest.mark.parametrize("damaged", ["stop", "quarantine"])
def test_a_shard_that_changed_on_the_server_is_refused(data, far, server, monkeypatch, damaged):
    source = far(data, damaged=damaged)
    content = CONTENT["/tires/train/shard-000001.tar"]
    monkeypatch.setitem(CONTENT, "/tires/train/shard-000001.tar", content[:-1] + b"x")
    text = failure(list, source.evaluate("train", 1, 0, 1))
    assert text.startswith(f"{server.url}/tires/train/shard-000001.tar: sha256 is ") and "changed or is damaged" in text
    monkeypatch.delitem(CONTENT, "/tires/train/shard-000001.tar")
    assert "there is no such file" in failure(list, source.train(plan_of(source), 0, 0, epochs=1)) and not decoders()


def test_a_download_that_hangs_is_named_with_how_far_it_is(data, far, server, monkeypatch):
    source, near = far(data, stall=0.2), loader(data)
    server.faults = [("hold", 1000), ("hold", 1000)]
    monkeypatch.setattr(sys, "stderr", Told(server.release.set))
    assert exact(taken(source.evaluate("val", 1, 0, 1))) == exact(taken(near.evaluate("val", 1, 0, 1)))
    assert re.search(rf"waiting for sample \d+ \(x\d+\) of {server.url}/tires/val/shard-000000.tar, downloading 0.0 of 0.0 MB", sys.stderr.getvalue())


# ------------------------------------------------------------------------------------------------------- real ranks


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
    assert together("until") == sorted(first + second[:8]) and together("from") == sorted(second[8:])
    (token,) = {json.dumps(rank["until"][1]) for rank in ranks}
    position = Position.from_token(json.loads(token), source.dataset.sha256, 0, 20)
    for other in (1, 8):
        after = [taken(source.train(plan_of(source, 8, 1, other), 0, rank, position, 2)) for rank in range(other)]
        assert sorted(together("until") + real(after)) == sorted(2 * list(range(20)))
