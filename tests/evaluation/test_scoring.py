"""Scoring of a split: padding, damage and broken predictions."""

import math

import pytest
import torch
from helpers.runs import make_loader

from depthdist.evaluation.scoring import score
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

    plain = score(
        predict, loader.evaluate("val", 1, 0, 1), 3, bounds, LossSettings(), torch.device("cpu")
    )["none"]
    found = score(predict, spoiled(), 3, bounds, LossSettings(), torch.device("cpu"))["none"]
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
