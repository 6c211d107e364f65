"""Bounds and statistics of a dataset: no single pixel, and no single capture's patch, decides."""

import json
from io import BytesIO

import numpy as np
import pytest
from helpers.captures import SMALL, make
from helpers.shards import members
from helpers.views import boxes

from depthdist.shards.build import build_shards
from depthdist.shards.dataset_warnings import dataset_warnings, small_scale
from depthdist.shards.depth_limits import MARGIN
from depthdist.shards.index import read_index
from depthdist.shards.settings import ShardSettings

NUM = 8


def write(folder, change=lambda number, xyz: None, count=NUM, first=0):
    """Write `count` captures of boxes; `change` may alter each point map."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        view = boxes(number)
        change(number, view.xyz)
        view.image.save(folder / f"cap{number:03d}.png")
        np.save(folder / f"cap{number:03d}.npy", view.xyz)
    return folder


def shards(folder, name="out", **settings):
    return make(folder / "raw", folder / name, **{"split": "none", **settings})


def warnings_of(folder, words, **settings):
    """The warnings about a dataset of the captures in `folder` that hold some words."""
    given = ShardSettings(
        raw=str(folder / "raw"), out=str(folder / "out"), **{**SMALL, "split": "none", **settings}
    )
    return [line for line in dataset_warnings(build_shards(given), given) if words in line]


def stats_of(folder, name="out", **settings):
    return shards(folder, name, **settings)["splits"]["train"]["stats"]


def stray(number, xyz):
    if number == 3:
        xyz[60, 80] = [0, 0, 40]  # one pixel, 40 mm before the lens


def expected_bounds(without=()):
    z = np.stack([boxes(n).xyz[..., 2] for n in range(NUM) if n not in without])
    return float(np.nanmin(z)), float(np.nanmax(z))


def test_bounds_are_the_exact_extremes_where_nothing_is_stray(tmp_path):
    write(tmp_path / "raw")
    stats = stats_of(tmp_path)
    assert (stats["min_mm"], stats["max_mm"]) == pytest.approx(expected_bounds(), abs=0.04)
    assert "left_out" not in stats


def test_one_stray_pixel_changes_no_statistic(tmp_path):
    write(tmp_path / "raw")
    clean = stats_of(tmp_path, "clean")
    write(tmp_path / "raw", stray)
    stats = stats_of(tmp_path)
    left_out = stats["left_out"]["nearer"]
    assert left_out["pixels"] == 1
    assert left_out["captures"] == ["cap003"]
    assert left_out["extreme_mm"] == pytest.approx(40, abs=0.04)
    assert stats["min_mm"] == clean["min_mm"]
    assert stats["mean_mm"] == pytest.approx(clean["mean_mm"], abs=0.01)
    assert stats["std_mm"] == pytest.approx(clean["std_mm"], abs=0.01)
    assert stats["percentiles_mm"]["0.1"] == pytest.approx(clean["percentiles_mm"]["0.1"], abs=0.1)
    assert "farther" not in stats["left_out"]


def test_a_stray_pixel_far_behind_is_left_out_as_well(tmp_path):
    def far(number, xyz):
        if number == 5:
            xyz[10, 10] *= 3900 / xyz[10, 11, 2]
            xyz[10, 10, 2] = 3900

    write(tmp_path / "raw", far)
    stats = stats_of(tmp_path)
    assert stats["left_out"]["farther"]["captures"] == ["cap005"]
    assert stats["max_mm"] == pytest.approx(expected_bounds()[1], abs=0.04)


def test_a_patch_in_one_capture_is_left_out_and_in_two_it_counts(tmp_path):
    def patch(*numbers):
        def change(number, xyz):
            if number in numbers:
                xyz[20:30, 30:40] *= 100 / xyz[20:30, 30:40, 2:]

        return change

    write(tmp_path / "raw", patch(2))
    one = stats_of(tmp_path, "one")
    assert one["left_out"]["nearer"]["num_captures"] == 1
    assert 85 <= one["left_out"]["nearer"]["pixels"] <= 100
    write(tmp_path / "raw", patch(2, 6))
    two = stats_of(tmp_path, "two")
    assert two["min_mm"] == pytest.approx(100, abs=0.04)
    assert "left_out" not in two


def test_a_large_object_in_one_capture_counts(tmp_path):
    def near(number, xyz):
        if number == 2:
            xyz[20:80, 30:90] *= 300 / xyz[20:80, 30:90, 2:]

    write(tmp_path / "raw", near)
    stats = stats_of(tmp_path)
    assert stats["min_mm"] == pytest.approx(300, abs=0.04)


def test_flying_pixels_in_every_capture_do_not_count(tmp_path):
    def speckle(number, xyz):
        rows, columns = np.mgrid[5:120:9, 5:160:9].reshape(2, -1)  # 1 % of the pixels
        depth = np.random.default_rng(number).uniform(60, 400, len(rows))
        xyz[rows, columns, 2] = depth

    write(tmp_path / "raw", speckle)
    stats = stats_of(tmp_path, check_view=False)
    assert stats["left_out"]["nearer"]["num_captures"] == NUM
    assert stats["min_mm"] >= (1 - MARGIN) * 850


def test_near_and_far_win(tmp_path):
    write(tmp_path / "raw", stray)
    stats = stats_of(tmp_path, near=39)
    assert stats["min_mm"] == pytest.approx(40, abs=0.04)
    assert "left_out" not in stats


def test_workers_shards_and_append_change_nothing(tmp_path):
    write(tmp_path / "raw", stray)
    whole = stats_of(tmp_path, "whole")
    cut = stats_of(tmp_path, "cut", shard_mb=0.2, workers=2)
    assert cut == whole
    write(tmp_path / "some/raw", stray, count=3)
    shards(tmp_path / "some")
    write(tmp_path / "some/raw", stray)
    assert stats_of(tmp_path / "some", append=True) == whole


def test_older_shards_keep_their_bounds_when_captures_are_added(tmp_path):
    write(tmp_path / "raw", stray, count=5)
    shards(tmp_path)
    path = tmp_path / "out/train/shard-000000.json"
    record = json.loads(path.read_text())
    for name in ("bins", "tails", "no_value"):
        del record["stats"][name]
    for name in ("warnings", "edges"):
        del record[name]
    path.write_text(json.dumps(record))
    index = json.loads((tmp_path / "out/index.json").read_text())
    del index["settings"]["check_view"]
    (tmp_path / "out/index.json").write_text(json.dumps(index))
    write(tmp_path / "raw", stray)
    stats = stats_of(tmp_path, append=True)
    assert stats["min_mm"] == pytest.approx(40, abs=0.04)
    assert "left_out" not in stats


def test_what_is_left_out_is_stored_all_the_same(tmp_path):
    write(tmp_path / "raw", stray)
    shards(tmp_path)
    index = read_index(tmp_path / "out")
    ref = next(ref for ref in index.samples("train") if ref.stem == "cap003")
    depth = np.load(BytesIO(members(ref)["depth.npy"]))
    assert depth[60, 80] * index.step_mm == pytest.approx(40, abs=0.04)


def test_what_is_left_out_is_told_with_the_flag_that_keeps_it(tmp_path):
    write(tmp_path / "raw", stray)
    (line,) = warnings_of(tmp_path, "stray")
    assert "1 stray pixel does not count" in line
    assert "to 40.0 mm, in cap003" in line
    assert line.endswith("--near 39 keeps them")


def test_a_small_used_scale_is_told_with_what_helps():
    percentiles = {"1": 1450.0, "99": 1550.0}
    stats = {"min_mm": 100.0, "max_mm": 1600.0, "percentiles_mm": percentiles}
    text = small_scale(stats)
    assert "use only 0.5 % of the normalized scale" in text
    assert "--near 1305 --far 1705: 25 %" in text
    assert small_scale({**stats, "min_mm": 1300.0}) is None


def test_masked_depths_beyond_ten_medians_are_never_advised_to_be_kept(tmp_path):
    def glint(number, xyz):
        if number == 1:
            xyz[50, 50] *= 40

    write(tmp_path / "raw", glint)
    (line,) = warnings_of(tmp_path, "far")
    assert "10 times the median depth and more is no measurement" in line
    assert "keeps" not in line


@pytest.mark.parametrize(
    ("factor", "words"),
    [(10, "centimetres (1"), (25.4, "inches (1"), (0.1, "tenths of a millimetre (1")],
)
def test_another_unit_is_told(tmp_path, factor, words):
    def other_unit(number, xyz):
        xyz /= factor

    write(tmp_path / "raw", other_unit)
    (line,) = warnings_of(tmp_path, "is it in", far=40000)
    assert words in line


def test_captures_beyond_far_are_refused_with_the_unit_that_they_may_have(tmp_path):
    def tenths(number, xyz):
        xyz *= 10

    write(tmp_path / "raw", tenths)
    with pytest.raises(ValueError, match=r"no valid pixel.*tenths of a millimetre"):
        shards(tmp_path)


def test_an_outermost_depth_that_all_captures_share_is_told(tmp_path):
    def far_plane(number, xyz):
        xyz[:30] *= 3500 / xyz[:30, :, 2:]

    write(tmp_path / "raw", far_plane)
    (line,) = warnings_of(tmp_path, "very same depth")
    assert "in 8 of 8 captures" in line
    assert "3500.0 mm, the farthest there is" in line
    assert line.endswith("shard with --far 3499")
