"""Shards become batches: every sample once at any world size, the order from seed and epoch alone, and damage that is seen."""

import itertools
import re
import shutil
import tarfile
import threading
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from captures import capture, write_raw
from PIL import Image

from depthdist import stream
from depthdist.config import Size
from depthdist.pairs import resize_rgb
from depthdist.shards import read_index
from depthdist.shards.build import shard
from depthdist.shards.plan import ShardSettings
from depthdist.shards.writer import write_shard
from depthdist.stream import DataSettings, TrainPlan, epoch_order, eval_batches, load_samples, train_epoch

NUM = 11  # captures: 8 in train, 3 in val


def make(folder, **settings):
    """The index of a small dataset in `folder`, of several shards."""
    with pytest.MonkeyPatch.context() as patch:  # no worker processes: starting them costs a second
        patch.setattr("depthdist.shards.build.write_all", lambda jobs, workers: [write_shard(job) for job in jobs])
        raw = write_raw(folder.parent / (folder.name + "_raw"), NUM)
        shard(ShardSettings(**{"raw": str(raw), "out": str(folder), "size": Size(28, 42), "val": 0.3, "shard_mb": 0.02, **settings}))
    return read_index(folder)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data") / "tires")


@pytest.fixture
def copied(index, tmp_path):
    """A copy of the dataset that a test may damage."""
    shutil.copytree(index.folder, tmp_path / "tires")
    return read_index(tmp_path / "tires")


def decoders():
    return [t for t in threading.enumerate() if t.name.startswith("decode")]


def everything(batches):
    """(sample, weight) of every slot, in order."""
    return [(sample, float(weight)) for batch in batches for sample, weight in zip(batch.samples, batch.weight)]


# ------------------------------------------------------------------------------------------------------- order


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(seed, epoch, 46).tolist() for seed in (0, 1, 2**63) for epoch in range(4)}
    np.random.seed(3)
    torch.manual_seed(3)
    assert all(epoch_order(*key, 46).tolist() == order for key, order in orders.items())
    assert all(sorted(order) == list(range(46)) for order in orders.values())
    assert len(set(map(tuple, orders.values()))) == len(orders), "each seed and each epoch has its own"


def test_the_order_is_the_same_on_any_machine_and_version():
    assert epoch_order(0, 0, 8).tolist() == [5, 0, 6, 1, 7, 2, 4, 3] and epoch_order(7, 3, 8).tolist() == [4, 3, 5, 6, 0, 7, 1, 2]


GRID = [
    (num, world, micro, world * micro * accumulation)
    for num, world, micro, accumulation in itertools.product((1, 2, 7, 8, 9, 46), (1, 2, 3, 4), (1, 2, 3), (1, 2, 4))
]


def epoch_slots(plan, epoch):
    order = epoch_order(5, epoch, plan.num_samples)
    return [list(plan.slots(order, rank)) for rank in range(plan.world)]


@pytest.mark.parametrize(("num", "world", "micro", "batch"), GRID)
def test_over_all_ranks_an_epoch_holds_every_sample_once_in_full_batches(num, world, micro, batch):
    plan = TrainPlan(num, batch, micro, world)
    ranks = epoch_slots(plan, 0)
    assert sorted(slot.sample for rank in ranks for slot in rank if slot.weight == 1) == list(range(num))
    assert all(slot.weight in (0, 1) and 0 <= slot.sample < num for rank in ranks for slot in rank)
    assert {len(rank) for rank in ranks} == {plan.steps_per_epoch * plan.accumulation * micro}
    assert plan.accumulation * micro * world == batch and plan.steps_per_epoch == -(-num // batch)
    share = plan.accumulation * micro
    for step in range(plan.steps_per_epoch):
        real = sum(slot.weight for rank in ranks for slot in rank[step * share : (step + 1) * share])
        assert real == plan.num_real(step) == (batch if step < plan.steps_per_epoch - 1 else num - step * batch)


@pytest.mark.parametrize("num", [5, 24, 46, 47])
def test_each_global_batch_is_the_same_set_at_every_world_size(num):
    batch, found = 24, {}
    for world, micro in itertools.product((1, 2, 3, 4, 6, 8), (1, 2, 3)):
        if batch % (world * micro):
            continue
        plan = TrainPlan(num, batch, micro, world)
        share, ranks = batch // world, epoch_slots(plan, 2)
        sets = [sorted(s.sample for r in ranks for s in r[k * share : (k + 1) * share] if s.weight) for k in range(plan.steps_per_epoch)]
        found[world, micro] = sets
    assert len(found) > 10 and all(sets == found[1, 1] for sets in found.values())


def test_46_images_in_batches_of_8_are_6_steps_and_the_last_holds_6():
    plan = TrainPlan(46, 8, 1, 4)
    assert (plan.steps_per_epoch, plan.accumulation, [plan.num_real(s) for s in range(6)]) == (6, 2, [8, 8, 8, 8, 8, 6])


@pytest.mark.parametrize(("batch", "micro", "world"), [(8, 1, 3), (8, 3, 1), (8, 2, 8), (12, 5, 1), (8, 16, 1), (7, 2, 3), (9, 2, 1)])
def test_a_batch_that_does_not_divide_names_numbers_that_do(batch, micro, world):
    with pytest.raises(ValueError) as caught:
        TrainPlan(46, batch, micro, world)
    text = str(caught.value)
    assert f"train_batch_size {batch} " in text and f"{world} ranks x micro-batches of {micro}" in text and "\n" not in text
    ranks = re.search(r": ([\d, ]+) ranks would do", text)
    named = [int(n) for n in ranks[1].split(", ")] if ranks else []
    assert named == [w for w in range(1, batch + 1) if batch % (w * micro) == 0] and (named or "no number of ranks would do" in text)
    batches = [int(n) for n in re.search(r"or train_batch_size ([\d or]+)$", text)[1].split(" or ")]
    for good in [(batch, w) for w in named] + [(b, world) for b in batches]:
        TrainPlan(46, good[0], micro, good[1])
    assert batches and all(abs(b - batch) < micro * world for b in batches)


def test_no_sample_is_no_epoch():
    with pytest.raises(ValueError, match="no training sample"):
        TrainPlan(0, 8, 1, 1)


# ------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("world", "micro", "batch"), [(1, 1, 3), (2, 3, 6), (3, 1, 6), (2, 2, 12)])
def test_training_batches_are_the_plan_carried_out(index, world, micro, batch):
    plan = TrainPlan(len(index.samples("train")), batch, micro, world)
    for epoch in (0, 1):
        expected = [[tuple(slot) for slot in plan.slots(epoch_order(9, epoch, plan.num_samples), rank)] for rank in range(world)]
        epochs = [list(train_epoch(index, plan, 9, epoch, rank)) for rank in range(world)]
        assert [everything(batches) for batches in epochs] == expected
        assert all(len(b.samples) == len(b.rgb) == micro for batches in epochs for b in batches)
        stems = [ref.stem for ref in index.samples("train")]
        assert all(b.keys == [stems[s] for s in b.samples] for batches in epochs for b in batches)


def test_epochs_and_seeds_differ_and_repeat_and_threads_do_not_matter(index):
    plan = TrainPlan(len(index.samples("train")), 8, 1, 1)
    runs = {(s, e, t): everything(train_epoch(index, plan, s, e, 0, t)) for s, e, t in [(0, 0, 1), (0, 0, 1), (0, 0, 5), (0, 1, 1), (1, 0, 1)]}
    assert runs[0, 0, 1] == runs[0, 0, 5] and len({tuple(r) for r in runs.values()}) == 3


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("split", ["train", "val"])
def test_evaluation_sees_every_sample_exactly_once(index, split, world, micro):
    ranks = [list(eval_batches(index, split, micro, rank, world)) for rank in range(world)]
    real = [sample for batches in ranks for sample, weight in everything(batches) if weight == 1]
    assert sorted(real) == list(range(len(index.samples(split))))
    assert len({len(batches) for batches in ranks}) == 1 and all(len(b.samples) == micro for batches in ranks for b in batches)
    assert {weight for batches in ranks for _, weight in everything(batches)} <= {0.0, 1.0}


def raw_of(key):
    """The capture that a sample's name tells of: write_raw counts minutes."""
    return capture(int(re.search(r"-\d\d-(\d\d)-00_", key + "_")[1]))


def jpeg_error(rgb):
    """Mean error that another encoder makes of this picture at the same quality; noise of every colour is the worst case."""
    Image.fromarray(rgb).save(file := BytesIO(), "JPEG", quality=95, subsampling="4:2:0")
    return np.abs(np.asarray(Image.open(file)).astype(int) - rgb).mean()


@pytest.mark.parametrize("codec", ["jpeg", "png"])
def test_a_batch_holds_what_the_raw_capture_holds(index, codec, tmp_path):
    if codec == "png":
        index = make(tmp_path / "tires", rgb="png")
    seen = 0
    for batch in itertools.chain(eval_batches(index, "train", 2, 0, 1), eval_batches(index, "val", 1, 0, 1)):
        assert batch.rgb.dtype == torch.uint8 and batch.depth_mm.dtype == torch.float32 and batch.mask.dtype == torch.bool
        assert batch.rgb.shape[1:] == (28, 42, 3) and batch.depth_mm.shape[1:] == batch.mask.shape[1:] == (30, 40)
        for key, rgb, depth_mm, mask, weight in zip(batch.keys, batch.rgb, batch.depth_mm, batch.mask, batch.weight):
            raw_rgb, xyz = raw_of(key)
            measured = torch.from_numpy(np.isfinite(xyz[:, :, 2]))
            assert torch.equal(mask, measured) and (depth_mm[~mask] == 0).all()
            difference = depth_mm.double() - torch.from_numpy(xyz[:, :, 2]).double()
            assert difference[measured].abs().max() <= index.step_mm / 2 + 1e-4  # float32 at 1 m is 6e-5 mm
            wanted = resize_rgb(raw_rgb, Size(28, 42))
            apart = np.abs(rgb.numpy().astype(int) - wanted)
            assert apart.mean() <= (jpeg_error(wanted) * 1.1 if codec == "jpeg" else 0)
            seen += int(weight)
    assert seen == NUM


def test_chosen_samples_come_in_the_order_asked_for(index):
    batch = load_samples(index, "train", iter([4, 0, 4]))
    assert batch.samples == [4, 0, 4] and batch.weight.tolist() == [1, 1, 1]
    assert torch.equal(batch.depth_mm[0], batch.depth_mm[2]) and not torch.equal(batch.depth_mm[0], batch.depth_mm[1])
    assert batch.keys == [index.samples("train")[i].stem for i in (4, 0, 4)]


def test_a_batch_moves_to_a_device_as_a_whole(index):
    moved = load_samples(index, "val", [0, 1]).to(torch.device("meta"))
    assert {t.device.type for t in (moved.rgb, moved.depth_mm, moved.mask, moved.weight)} == {"meta"} and moved.samples == [0, 1]


def test_an_unknown_split_names_those_there_are(index):
    with pytest.raises(ValueError, match=r"no split 'test'; it has train, val"):
        eval_batches(index, "test", 1, 0, 1)


# ------------------------------------------------------------------------------------------------------- damage and threads


@pytest.mark.parametrize("member", ["depth.npy", "mask.npy", "meta.json", "rgb.jpg"])
def test_a_flipped_byte_names_shard_key_member_and_place(copied, member):
    ref = copied.samples("train")[3]
    offset, size, _ = ref.members[member]
    with open(ref.shard, "r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)
        file.seek(offset + size // 2)
        file.write(bytes([byte[0] ^ 1]))
    plan = TrainPlan(len(copied.samples("train")), 4, 1, 1)
    with pytest.raises(ValueError) as caught:
        list(train_epoch(copied, plan, 0, 0, 0))
    text = str(caught.value)
    assert all(part in text for part in (str(ref.shard), ref.key, ref.stem, f"member {member} at byte {offset}", "CRC-32", "--verify"))
    assert "\n" not in text and not decoders()
    with tarfile.open(ref.shard) as tar:
        assert tar.getmember(f"{ref.key}.{member}").offset_data == offset, "the place is the tar's own"
    others = [i for i in range(plan.num_samples) if i != 3]
    assert load_samples(copied, "train", others).samples == others, "the other samples can still be read"


def test_a_shard_cut_short_or_gone_during_training_is_one_line(copied):
    ref = copied.samples("val")[-1]
    with open(ref.shard, "r+b") as file:
        file.truncate(ref.members["rgb.jpg"][0] + 3)
    with pytest.raises(ValueError, match=r"rgb\.jpg at byte \d+: 3 bytes, expected"):
        list(eval_batches(copied, "val", 1, 0, 1))
    ref.shard.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{ref.shard}: sample ")):
        list(eval_batches(copied, "val", 1, 0, 1))


def test_leaving_the_iterator_early_leaves_no_thread_behind(index):
    plan = TrainPlan(len(index.samples("train")), 8, 1, 1)
    for batch in train_epoch(index, plan, 0, 0, 0, threads=3):
        assert decoders() and batch.samples
        break
    deadline = time.monotonic() + 5
    while decoders() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not decoders()


def test_an_error_of_the_reader_of_batches_leaves_no_thread_behind(index):
    with pytest.raises(RuntimeError, match="ours"):
        for _ in eval_batches(index, "train", 1, 0, 1):
            raise RuntimeError("ours")
    assert not decoders()


def test_samples_are_read_only_a_few_ahead(index, monkeypatch):
    loaded, load = [], stream._load
    monkeypatch.setattr("depthdist.stream._load", lambda *given: loaded.append(given[2].sample) or load(*given))
    plan = TrainPlan(2000, 8, 1, 1)
    monkeypatch.setattr("depthdist.stream.epoch_order", lambda *given: np.zeros(plan.num_samples, int))
    batches = iter(train_epoch(index, plan, 0, 0, 0, threads=2))
    next(batches)
    time.sleep(0.1)
    assert len(loaded) <= 2 + 2 + 2, "memory does not grow with the epoch"
    batches.close()


# ------------------------------------------------------------------------------------------------------- settings


def test_a_missing_dataset_names_both_commands_that_make_one(tmp_path):
    (line,) = DataSettings(data=tmp_path / "tires").problems()
    assert f"`python tools/make_tires.py {tmp_path}/tires_raw`" in line and f"`python tools/shard.py {tmp_path}/tires_raw {tmp_path}/tires`" in line
    assert line.startswith(f"--data {tmp_path}/tires: no such folder") and "\n" not in line


def test_another_size_than_the_shards_is_a_problem_that_names_both(index):
    assert DataSettings(data=index.folder).problems() == DataSettings(data=index.folder, size=Size(28, 42)).problems() == []
    (line,) = DataSettings(data=index.folder, size=Size(756, 1260)).problems()
    assert "--size is 756x1260" in line and "28x42" in line and "leave it out" in line


def test_all_that_is_wrong_is_listed(index, tmp_path):
    assert len(DataSettings(data=index.folder, size=Size(14, 14), threads=0).problems()) == 2
    assert len(DataSettings(data=tmp_path, threads=0).problems()) == 2


def test_a_broken_dataset_is_one_line_without_advice_to_make_another(copied):
    copied.samples("train")[0].shard.unlink()
    (line,) = DataSettings(data=copied.folder).problems()
    assert "the shard is missing" in line and "make_tires" not in line
