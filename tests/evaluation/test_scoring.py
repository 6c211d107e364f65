"""Scoring of a split: padding, damage and broken predictions."""

import math
import pickle

import pytest
import torch
from helpers.runs import make_loader

from depthdist.evaluation.row_kinds import RowKind
from depthdist.evaluation.scoring import Row, mean_scores, score, score_rows
from depthdist.geometry.depth_range import normalize_depth
from depthdist.losses.settings import LossSettings
from depthdist.training.run_facts import training_bounds


def test_padding_never_counts_whatever_it_holds(data):
    loader = make_loader(data)
    bounds = training_bounds(loader.dataset)

    def predict(batch):
        return normalize_depth(batch.depth_mm, bounds)[0] + 0.01

    def spoiled():
        for packed in loader.evaluate("val", 2, 0, 1):
            batch = packed.to("cpu")
            empty = batch.weight == 0
            batch.depth_mm[empty], batch.mask[empty] = 1100.0, True
            batch.rgb[empty] = 0
            yield batch

    row = {"ours": Row(predict, RowKind.ADAPTER)}
    how = {"bounds": bounds, "loss": LossSettings(), "device": torch.device("cpu")}
    plain = score_rows(row, loader.evaluate("val", 1, 0, 1), num_samples=3, **how)["ours"]
    found = score_rows(row, spoiled(), num_samples=3, **how)["ours"]
    assert (
        found.means() == pytest.approx(plain.means(), rel=1e-6)
        and found.keys == plain.keys
        and len(set(found.keys)) == 3
    )
    with pytest.raises(AssertionError, match=r"met 3 \+ 0 samples of 4"):
        score(predict, spoiled(), 4, bounds, LossSettings(), torch.device("cpu"))


def test_a_split_of_which_nothing_can_be_read_has_no_score(data):
    loader = make_loader(data)

    def unread():
        for packed in loader.evaluate("val", 1, 0, 1):
            batch = packed.to("cpu")
            batch.weight[:] = 0
            yield batch

    with pytest.raises(ValueError, match="none of the 3 samples could be read"):
        score(
            lambda batch: batch.depth_mm * 0,
            unread(),
            3,
            training_bounds(loader.dataset),
            LossSettings(),
            torch.device("cpu"),
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_no_number_is_named_and_no_score(data, value):
    loader = make_loader(data)

    def broken(batch):
        pred = torch.full_like(batch.depth_mm, 0.5)
        pred[:, 3, 4] = value
        return pred

    with pytest.raises(ValueError, match="the prediction is not finite in 1 of 1200 pixels"):
        score(
            broken,
            loader.evaluate("val", 1, 0, 1),
            3,
            training_bounds(loader.dataset),
            LossSettings(),
            torch.device("cpu"),
        )


def test_ranks_send_each_other_sums_of_one_size_and_have_the_means_of_one_process(data):
    loader = make_loader(data)
    bounds = training_bounds(loader.dataset)
    rows = {
        "ours": Row(lambda batch: normalize_depth(batch.depth_mm, bounds)[0] * 0.9, RowKind.ADAPTER)
    }
    how = {"bounds": bounds, "loss": LossSettings(), "device": torch.device("cpu")}
    whole = score_rows(rows, loader.evaluate("train", 1, 0, 1), num_samples=11, **how)["ours"]

    sent = []

    class Alone(Exception):
        """One rank has told what it has."""

    def keep(own):
        sent.append(pickle.dumps(own))
        raise Alone

    for rank in range(4):
        with pytest.raises(Alone):
            batches = loader.evaluate("train", 1, rank, 4)
            mean_scores(rows, batches, num_samples=11, gather=keep, **how)
    parts = [pickle.loads(own) for own in sent]
    assert [part.num_images for part in parts] == [3, 3, 3, 2]
    found = mean_scores(rows, [], num_samples=11, gather=lambda own: parts, **how)["ours"]
    assert found.means() == whole.means(), "to the last bit, NaN included"
    assert max(map(len, sent)) < 150 * len(found.of_names) + 500, "whatever the number of images"
