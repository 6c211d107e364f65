"""Damaged shards: every damage stops the reader with its place, or is set aside, counted and never
passed on."""

import io
import multiprocessing
import os
import re
import sys
from pathlib import Path

import pytest
import webdataset as wds
from helpers.loaders import (
    STRONG,
    decoders,
    everything,
    exact,
    failure,
    loader,
    plan_of,
    real,
    taken,
)

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.sample_order import Position, train_groups
from depthdist.shards.verify import verify_dataset


def flip(file, at):
    file.seek(at)
    byte = file.read(1)
    file.seek(at)
    file.write(bytes([byte[0] ^ 1]))


def zero(file, at):
    file.seek(at)
    file.write(bytes(1024))


# what happens to the first of two shards with samples 0-3 and 4-7: how; the samples that are lost;
# the first one's member,
# and where it is; what plain webdataset 1.0.2 makes of both shards: whole samples, half samples, or
# an error
DAMAGE = {
    "cut at a member boundary": (
        lambda file, refs: file.truncate(refs[2].start),
        [2, 3],
        "depth.npy",
        (6, 0),
    ),
    "a flipped byte in a tar header": (
        lambda file, refs: flip(file, refs[1].start + 3),
        [1],
        "tar header",
        (5, 0),
    ),
    "a zeroed KiB": (lambda file, refs: zero(file, refs[1].start), [1], "depth.npy", (5, 0)),
    "cut between depth and RGB": (
        lambda file, refs: file.truncate(refs[1].members["rgb.jpg"][0] - 512),
        [1, 2, 3],
        "rgb.jpg",
        (5, 1),
    ),
    "a flipped byte in a payload": (
        lambda file, refs: flip(file, refs[1].members["depth.npy"][0] + 999),
        [1],
        "depth.npy",
        (8, 0),
    ),
    "cut in the middle of a payload": (
        lambda file, refs: file.truncate(refs[1].members["rgb.jpg"][0] + 1000),
        [1, 2, 3],
        "rgb.jpg",
        None,
    ),
    "cut before a shard with the same keys": (
        lambda file, refs: file.truncate(refs[0].members["rgb.jpg"][0] + 1000),
        [0, 1, 2, 3],
        "rgb.jpg",
        None,
    ),
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
    offset = (
        refs[lost[0]].members[member][0] if member in refs[lost[0]].members else refs[lost[0]].start
    )
    return [(str(refs[i].shard), refs[i].key, refs[i].stem) for i in lost], member, offset


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_stops_with_one_line_that_names_shard_key_member_and_offset(copies, kind):
    source = loader(*copies)  # damage comes after all was found in order
    refs = hurt(copies[0], kind)
    facts, member, offset = facts_of(kind, refs)
    for batches in (source.evaluate("train", 1, 0, 1), source.evaluate("train", 8, 0, 1)):
        text = failure(list, batches)
        assert all(
            part in text
            for part in (
                *facts[0],
                f"{member} at byte {offset}: ",
                "`depthdist shard --verify ",
                "--damaged quarantine",
            )
        )
    assert (
        facts[0][0] in failure(list, source.train(plan_of(source), 0, 0))
        and not decoders()
        and not source.told
    )
    others = [i for i in range(8) if i not in DAMAGE[kind][1]]
    assert source.samples("train", others).to("cpu").samples == others, (
        "the others can still be read"
    )
    if refs[0].shard.stat().st_size < source.dataset.parts[0].shards[0]["bytes"]:
        assert "cut off" in failure(loader, copies[0])


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_quarantine_goes_on_with_the_next_samples_and_tells_of_each_once(two, copies, kind, world):
    facts, member, offset = facts_of(kind, hurt(copies[0], kind))
    lost, whole = DAMAGE[kind][1], loader(*two)
    intact, order = exact(taken(whole.evaluate("train", 1, 0, 1))), whole.dataset.order(0)
    sources = [loader(*copies, damaged="quarantine") for _ in range(world)]
    plan = plan_of(sources[0], 4, 1, world)
    done = list(
        zip(
            *(taken(source.train(plan, 0, rank, epochs=2)) for rank, source in enumerate(sources)),
            strict=True,
        )
    )
    assert len(done) == 2 * plan.steps_per_epoch * plan.accumulation
    for rank, batches in enumerate(zip(*done)):
        assert [b.group for b in batches] == list(train_groups(order, plan, rank, epochs=2)), (
            "steps as if all was well"
        )
    flat = [batch for row in done for batch in row]
    for batch in flat:
        (slot,) = batch.group.slots
        assert batch.samples == [
            next(i for i in (slot.sample, *slot.stand_ins) if i not in lost)
        ] and batch.weight.tolist() == [1]
        assert exact([batch])[0][1:] == intact[batch.samples[0]][1:], (
            "never RGB of one with depth of another"
        )
    told = [[t["sample"] for t in source.told] for source in sources]
    assert all(len(set(samples)) == len(samples) for samples in told) and {
        sample for samples in told for sample in samples
    } == set(lost)
    first = next(t for source in sources for t in source.told if t["sample"] == lost[0])
    assert [first[name] for name in ("split", "shard", "key", "stem", "offset")] == [
        "train",
        *facts[0],
        offset,
    ] and member in first["member"]
    assert {(t["shard"], t["key"], t["stem"]) for source in sources for t in source.told} == set(
        facts
    ) and first["reason"]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 3), (3, 2)])
def test_evaluation_gives_damaged_samples_weight_0_and_meets_all_others_once(
    copies, kind, world, micro
):
    hurt(copies[0], kind)
    sources = [loader(*copies, damaged="quarantine") for _ in range(world)]
    for _ in range(2):
        ranks = [
            taken(source.evaluate("train", micro, rank, world))
            for rank, source in enumerate(sources)
        ]
        assert real(ranks) == [i for i in range(8) if i not in DAMAGE[kind][1]]
        slots = [
            (slot, weight)
            for batches in ranks
            for b in batches
            for slot, weight in zip(b.group.slots, b.weight.tolist())
        ]
        assert (
            sorted(slot.sample for slot, weight in slots if slot.weight and not weight)
            == DAMAGE[kind][1]
        ), "what was to count and did not"
        lost = [
            (b, i)
            for batches in ranks
            for b in batches
            for i in range(micro)
            if b.samples[i] in DAMAGE[kind][1]
        ]
        assert all(
            b.depth_mm[i].sum() == b.mask[i].sum() == b.rgb[i].sum() == b.weight[i] == 0
            for b, i in lost
        )
    assert sorted(t["sample"] for source in sources for t in source.told) == DAMAGE[kind][1], (
        "once, though it was met twice"
    )


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_every_damaged_sample(copies, kind):
    facts, _, _ = facts_of(kind, hurt(copies[0], kind))
    problems = verify_dataset(copies[0])
    assert all(any(key in line for line in problems) for _, key, _ in facts) and all(
        "shard-000000.tar" in line for line in problems
    )
    assert verify_dataset(copies[1]) == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_why_not_plain_webdataset_it_loses_samples_and_says_nothing(copies, kind):
    """Not a promise of ours: version 1.0.2, and here so that we notice when a later one does
    better."""
    hurt(copies[0], kind)
    shards = [str(copy / "train/shard-000000.tar") for copy in copies]

    def samples(handler):
        return list(
            wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples(handler=handler))
        )

    def whole(sample):
        return {"depth.npy", "mask.npy", "meta.json", "rgb.jpg"} <= sample.keys()

    if DAMAGE[kind][3] is None:
        with pytest.raises(Exception, match="unexpected end of data"):
            samples(wds.reraise_exception)
    else:
        found = samples(wds.reraise_exception)
        assert (sum(map(whole, found)), sum(not whole(sample) for sample in found)) == DAMAGE[kind][
            3
        ]
    if kind == "cut before a shard with the same keys":
        mixed, a, b = samples(wds.ignore_and_continue)[0], *(reference(copy) for copy in copies)
        assert (
            mixed["depth.npy"] == a["depth.npy"] != b["depth.npy"]
            and mixed["rgb.jpg"] == b["rgb.jpg"]
        ), "depth of one, RGB of the other"


def reference(place):
    """The members of a shard's first sample, read by offset up to where the file ends."""
    ref = open_dataset(DataSettings(data=(str(place),), damaged="quarantine")).find("train", 0)[1]
    content = ref.shard.read_bytes()
    return {
        name: content[offset : offset + size] for name, (offset, size, _) in ref.members.items()
    }


# -------------------------------------------------------------------------------------- more damage


@pytest.mark.parametrize(("most", "stops"), [(0, True), (2, True), (3, False)])
def test_more_damage_than_allowed_stops_with_one_line(copies, most, stops):
    hurt(copies[0], "cut in the middle of a payload")  # 3 samples
    source = loader(*copies, damaged="quarantine", max_damaged=most)
    for batches in (
        source.evaluate("train", 1, 0, 1),
        source.train(plan_of(source), 0, 0, epochs=1),
    ):
        source.damaged.clear()
        if stops:
            text = failure(list, batches)
            assert (
                f"{most + 1} damaged samples of train, --max-damaged is {most}; the last: 0000000"
                in text
                and text.startswith(str(copies[0]))
            )
        else:
            assert len(list(batches)) == 8
    assert not decoders()


def test_where_everything_is_damaged_training_stops(copies):
    for copy in copies:
        os.truncate(copy / "train/shard-000000.tar", 100)
    source = loader(*copies, damaged="quarantine", max_damaged=100)
    text = failure(list, source.train(plan_of(source), 0, 0))
    assert re.search(r"sample \d of train and the 8 after it are all damaged", text)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (Path.unlink, "the file is missing"),
        (lambda shard: (shard.unlink(), shard.mkdir()), "cannot be read: Is a directory"),
    ],
)
def test_a_missing_shard_stops_or_is_quarantined(copies, how, told):
    before = loader(*copies)
    how(copies[0] / "train/shard-000000.tar")
    assert told in failure(list, before.evaluate("train", 1, 0, 1))
    source = loader(*copies, damaged="quarantine")
    assert {i for i, _ in everything(taken(source.train(plan_of(source), 0, 0, epochs=1)))} == {
        4,
        5,
        6,
        7,
    }
    assert sorted(t["sample"] for t in source.told) == [0, 1, 2, 3] and all(
        told in t["reason"] for t in source.told
    )


def test_damage_is_told_of_once_by_training_and_evaluation_together(copies):
    hurt(copies[0], "a zeroed KiB")
    source = loader(*copies, damaged="quarantine")
    training, evaluation = (
        source.train(plan_of(source), 0, 0, epochs=2),
        source.evaluate("train", 2, 0, 1),
    )  # neither knows of it yet
    for batches in (training, evaluation, source.evaluate("train", 2, 0, 1)):
        list(batches)
    assert len(source.told) == 1 and source.damaged == {"train": {1}}


# ---------------------------------------------------------------------------------------- processes


def test_worker_processes_give_the_same_bytes_and_tell_of_the_same_damage(copies, monkeypatch):
    hurt(copies[0], "a flipped byte in a payload")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    found = []
    for settings in ({"threads": 2}, {"processes": 1, "stall": 0.5}):
        source = loader(
            f"file://{copies[0]}", copies[1], augment=STRONG, damaged="quarantine", **settings
        )
        found.append(
            (
                exact(taken(source.train(plan_of(source, 4, 2), 0, 0, Position(0, 2), epochs=3))),
                source.told,
            )
        )
    assert found[0] == found[1] and len(found[0][1]) == 1
    assert "waiting for a worker process that decodes train samples" in sys.stderr.getvalue(), (
        "while it starts"
    )
    assert not multiprocessing.active_children()


def test_damage_that_a_worker_process_meets_is_one_line(copies):
    hurt(copies[0], "a flipped byte in a payload")
    source = loader(copies[0], processes=1)
    assert (
        "CRC-32" in failure(list, source.train(plan_of(source), 0, 0))
        and not multiprocessing.active_children()
    )
