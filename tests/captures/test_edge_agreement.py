"""Edges of image and depth: those of right captures agree, others are named."""

import re

import numpy as np
import pytest
from helpers.views import REAL, boxes, built_in, real, sparse
from PIL import Image, ImageOps

from depthdist.captures.edge_agreement import (
    AGREE,
    EdgeScores,
    describe_capture,
    describe_dataset,
    edge_scores,
)


def scores_of(views, change=lambda image: image):
    return [edge_scores(change(view.image), view.xyz[..., 2]) for view in views]


def shifted(image):
    return Image.fromarray(np.roll(np.asarray(image), image.width // 10, axis=1))


def views():
    return [*(boxes(seed) for seed in range(6)), *built_in()]


def test_edges_of_right_captures_agree():
    found = scores_of(views())
    assert all(scores and scores.turned[0] >= AGREE for scores in found)
    assert not any(map(describe_capture, found))
    assert describe_dataset(found) is None


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
def test_of_130_real_captures_none_is_accused():
    found = scores_of(real())
    assert not any(map(describe_capture, found))
    for folder in {view.name.split("/")[0] for view in real()}:
        chosen = [s for s, v in zip(found, real()) if v.name.startswith(folder)]
        assert describe_dataset(chosen) is None, folder


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
def test_real_captures_with_the_images_of_others_are_named_together():
    tables = [view for view in real() if view.name.startswith("pcl_mosd")]
    others = tables[50:] + tables[:50]
    found = [edge_scores(b.image, a.xyz[..., 2]) for a, b in zip(tables, others)]
    assert "do images and point maps belong together?" in (describe_dataset(found) or "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (ImageOps.mirror, "mirrored left to right"),
        (ImageOps.flip, "upside down"),
        (lambda image: image.rotate(180), "turned by 180 degrees"),
    ],
)
def test_a_mirrored_or_turned_image_is_named(change, words):
    found = scores_of(views(), change)
    assert f"the images look {words}" in (describe_dataset(found) or "")
    named = [text for text in map(describe_capture, found) if text]
    assert len(named) >= len(found) / 3
    assert all(f"the image looks {words}" in text for text in named)


def test_a_shifted_image_is_named_with_the_way_back():
    crates = built_in()[:6]
    named = [text for text in map(describe_capture, scores_of(crates, shifted)) if text]
    assert len(named) >= 3
    words = r"moved down by (-?\d+) % and to the right by (-\d+) %"
    moves = [re.search(words, text) for text in named]
    assert all(move and abs(int(move[1])) <= 1 for move in moves)
    assert all(move and abs(int(move[2]) + 10) <= 1 for move in moves)


def test_sparse_depth_tells_nothing():
    for view in built_in():
        assert edge_scores(view.image, sparse(view.xyz)[..., 2]) is None, view.name


@pytest.mark.parametrize("depth_mm", [np.nan, 0.0, 900.0])
def test_depth_without_edges_tells_nothing(depth_mm):
    flat = np.full((120, 160), depth_mm, np.float32)
    assert edge_scores(boxes(0).image, flat) is None


def test_an_image_without_any_edge_is_not_accused_alone():
    grey = Image.new("RGB", (160, 120), (90, 90, 90))
    assert describe_capture(edge_scores(grey, boxes(0).xyz[..., 2])) is None


def test_few_captures_are_not_judged_as_a_dataset():
    bad = EdgeScores(turned=(0.1, 0.2, 0.3, 0.1), best=3.0, shift=(0.0, 0.0))
    assert describe_dataset([bad] * 3) is None
    assert "agree in only 0 of 4 captures" in (describe_dataset([bad] * 4) or "")
