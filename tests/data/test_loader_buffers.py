"""The loader's buffers go round: nothing in them is used too late or written too early, and no
thread stays behind."""

import gc
import itertools
import threading

import pytest
import torch
from helpers.loaders import STRONG, decoders, exact, loader, plan_of, taken

from depthdist.data import sample_reader


def test_a_packed_batch_is_refused_once_the_next_one_was_asked_for(data):
    source = loader(data)
    for batches in (
        source.train(plan_of(source), 0, 0, epochs=1),
        source.evaluate("train", 1, 0, 1),
    ):
        packed = list(batches)
        assert len(packed) == 8
        for stale in packed:
            with pytest.raises(AssertionError, match="valid until the next one is asked for"):
                stale.to("cpu")
    (last,) = itertools.islice(source.evaluate("train", 1, 0, 1), 1)
    list(source.evaluate("train", 1, 0, 1))
    assert torch.equal(last.to("cpu").depth_mm, source.samples("train", [0]).to("cpu").depth_mm), (
        "the last one before leaving stays valid"
    )


def test_what_was_moved_does_not_change_when_its_buffers_are_used_again(one_shard):
    source = loader(one_shard)
    batches = taken(source.train(plan_of(source, 2, 2), 0, 0, epochs=3))
    for batch in batches:
        fresh = source.samples("train", batch.samples).to("cpu")
        assert all(
            torch.equal(getattr(batch, name), getattr(fresh, name))
            for name in ("rgb", "depth_mm", "mask")
        )


@pytest.mark.parametrize(("threads", "micro"), [(1, 1), (2, 3), (4, 1)])
def test_buffers_are_used_again_and_memory_has_the_bound_that_is_told(one_shard, threads, micro):
    source, kept = loader(one_shard, threads=threads), []
    training = iter(source.train(plan_of(source, micro, micro), 0, 0, epochs=20))
    for _ in range(6):
        kept += [next(training).buffers for _ in range(20)]
        kept += [packed.buffers for packed in source.evaluate("train", micro, 0, 1)]
    training.close()
    places = {
        t.data_ptr(): t.nbytes
        for buffers in kept
        for t in (buffers.rgb, buffers.depth, buffers.mask)
    }
    assert len(kept) > 150 and len(places) <= 3 * 2 * (2 + -(-2 * threads // micro))
    sample = sum(array.nbytes for array in source.dataset.arrays())
    assert sum(places.values()) + 2 * threads * sample <= source.memory_bytes(micro)


class Reading:
    """Stands in for read_sample: counts what was begun, holds the stems `held` back until `go`, and
    fails at one while others are held."""

    def __init__(self, monkeypatch, held=(), fail=None):
        self.begun, self.many, self.go, self.held, self.fail = (
            [],
            threading.Condition(),
            threading.Event(),
            held,
            fail,
        )
        monkeypatch.setattr(sample_reader, "read_sample", self)

    def __call__(self, fd, ref, index, out, real=sample_reader.read_sample):
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
def test_samples_are_read_only_as_far_ahead_as_there_are_buffers(
    one_shard, monkeypatch, threads, micro
):
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


# --------------------------------------------------------------------------------- leaving, failing


def test_leaving_the_iterator_early_leaves_no_thread_behind(data):
    source = loader(data, threads=3)
    for batch in source.train(plan_of(source), 0, 0):
        assert len(decoders()) >= 2 and batch.loaded
        break
    assert not decoders()
    whole = exact(taken(loader(data).train(plan_of(source), 0, 0, epochs=2)))
    assert exact(taken(source.train(plan_of(source), 0, 0, epochs=2))) == whole, (
        "and nothing of it in later batches"
    )


def test_an_error_of_the_reader_of_batches_leaves_no_thread_behind(data):
    with pytest.raises(RuntimeError, match="ours"):
        for _ in loader(data).evaluate("train", 1, 0, 1):
            raise RuntimeError("ours")
    assert not decoders()


def test_an_error_in_one_thread_while_others_write_leaves_neither_threads_nor_half_batches(
    data, monkeypatch
):
    source = loader(data, threads=4)
    plan, stems = (
        plan_of(source, 4, 2),
        [source.dataset.find("train", i)[1].stem for i in source.dataset.order(0).epoch(0)],
    )
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
    assert (
        not closing.is_alive()
        and not decoders()
        and exact(taken(source.evaluate("train", 1, 0, 1))) == whole
    )


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
    assert exact(mixed["val"]) == exact(taken(alone.evaluate("val", micro, 0, 1))) * len(
        mixed["train"]
    )
