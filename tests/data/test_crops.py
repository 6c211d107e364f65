"""Which crops the detail stage learns on: arithmetic on a seed, three in four of them on relief."""

from itertools import islice

import numpy as np
import pytest
import torch
from helpers.captures import make, write_capture

from depthdist.core.settings import Size
from depthdist.data.crops import (
    ALIGNED,
    CELL,
    GAMMA,
    RELIEF_SHARE,
    CropDraw,
    CropPlan,
    expose,
    find_relief,
    place,
)
from depthdist.data.full_size import FullSizeReader
from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.resampling import upsample
from depthdist.models.detail import coarse_log
from depthdist.training.detail.coarse import Coarse, CoarseFiles
from depthdist.training.detail.crop_batches import CropReader, training_crops

SIZE = (1200, 1944)
CENTERED = CropDraw(0, True, 0.0, 0.5, 0.5, False, False, np.ones(3))


def as_numbers(draws):
    return [(*draw[:-1], *draw.gains.tolist()) for draw in draws]


def test_each_image_comes_once_in_as_many_crops_as_there_are_images():
    plan = CropPlan(num_images=7, batch=3, seed=5)
    images = [draw.image for step in range(7) for draw in plan.step(step)]
    turns = [images[first : first + 7] for first in (0, 7, 14)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert turns[0] != turns[1]


def test_crop_k_is_the_same_in_steps_of_any_size_and_another_with_another_seed():
    by_two, by_six = (CropPlan(5, batch, seed=1) for batch in (2, 6))
    two = [draw for step in range(6) for draw in by_two.step(step)]
    six = [draw for step in range(2) for draw in by_six.step(step)]
    assert as_numbers(two) == as_numbers(six)
    assert len(set(as_numbers(two))) == 12
    assert as_numbers(CropPlan(5, 2, seed=2).step(0)) != as_numbers(two[:2])


def test_three_crops_in_four_are_to_lie_on_relief_and_gains_stay_near_one():
    draws = [draw for step in range(50) for draw in CropPlan(9, 8, seed=0).step(step)]
    share = np.mean([draw.on_relief for draw in draws])
    assert share == pytest.approx(RELIEF_SHARE, abs=0.06)
    for name in ("flip_rows", "flip_columns"):
        assert np.mean([getattr(draw, name) for draw in draws]) == pytest.approx(0.5, abs=0.08)
    gains = np.array([draw.gains for draw in draws])
    assert 0.55 < gains.min() < 0.8 < 1.2 < gains.max() < 1.8
    assert 0.01 < np.std(gains[:, 0] / gains[:, 1]) < 0.1  # a cast of color


@pytest.mark.parametrize("draw", CropPlan(4, 30, seed=3).step(0))
def test_a_crop_lies_on_the_drawn_square_and_inside_the_image(draw):
    cells = np.array([(0, 0), (18, 30), (36, 59)], np.int16)
    side = 256
    top, left = place(draw, cells, SIZE, side)
    assert top % ALIGNED == left % ALIGNED == 0
    assert 0 <= top <= SIZE[0] - side and 0 <= left <= SIZE[1] - side
    if draw.on_relief:
        row, column = cells[int(draw.cell * 3)] * CELL
        assert top < row + CELL and row < top + side
        assert left < column + CELL and column < left + side


def test_the_square_with_relief_is_in_the_middle_of_the_crop_away_from_the_border():
    cells = np.array([(18, 30)], np.int16)
    assert place(CENTERED, cells, SIZE, 256) == (18 * 32 + 16 - 128, 30 * 32 + 16 - 128)


def test_without_relief_a_crop_lies_anywhere():
    none = np.zeros((0, 2), np.int16)
    assert place(CENTERED, none, SIZE, 256) == ((1200 - 256) // 2, (1944 - 256) // 2)
    corner = CENTERED._replace(row=1.0, column=1.0)
    assert place(corner, none, (65, 67), 64) == (0, 0)  # 1 and 3, at multiples of 4


def plane(size=(160, 192)):
    row, column = np.mgrid[: size[0], : size[1]]
    return (1500 + 0.4 * row - 0.3 * column).astype(np.float32)


def test_relief_is_found_on_a_groove_and_neither_on_a_plane_nor_at_a_silhouette():
    depth = plane()
    everywhere = np.ones(depth.shape, bool)
    assert len(find_relief(depth, everywhere)) == 0
    silhouette = depth + 100 * (np.arange(192) > 80)
    assert len(find_relief(silhouette, everywhere)) == 0
    grooved = depth.copy()
    grooved[:, 76:84] += 5  # it lies in the square 2, and its walls
    found = find_relief(grooved, everywhere)
    assert found.dtype == np.int16 and found.tolist() == [[row, 2] for row in range(5)]
    lying = depth.copy()
    lying[76:84] += 5
    assert find_relief(lying, everywhere).tolist() == [[2, column] for column in range(6)]
    unmeasured = everywhere.copy()
    unmeasured[64:, 64:96] = False
    assert find_relief(grooved, unmeasured).tolist() == [[0, 2], [1, 2]]


def test_an_image_of_a_few_pixels_has_no_relief():
    assert find_relief(plane((8, 200)), np.ones((8, 200), bool)).shape == (0, 2)


def test_exposure_multiplies_linear_light():
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    gains = np.array([0.7, 1.0, 1.4])
    linear = (rgb / 255.0) ** GAMMA * gains
    expected = np.clip(np.rint(linear ** (1 / GAMMA) * 255), 0, 255)
    assert np.array_equal(expose(rgb, gains), expected.astype(np.uint8))
    assert np.array_equal(expose(rgb, np.ones(3)), rgb)


@pytest.fixture(scope="module")
def crops(tmp_path_factory, quietly_on_one_thread):
    """Reads crops of 64 x 64 of two training images of 72 x 101, whose coarse depth is drawn."""
    from depthdist.data.dataset import DataSettings, open_dataset

    folder = tmp_path_factory.mktemp("crops")
    for i in range(3):
        names = f"images/a{i}_color.png", f"depth/a{i}_rawDepth.npy"
        write_capture(*(folder / "raw" / name for name in names), i, (72, 101))
    make(folder / "raw", folder / "shards", rgb="png", rgb_size="camera", check_view=False)
    dataset = open_dataset(DataSettings(data=(str(folder / "shards"),)))
    assert dataset.depth_size == Size(72, 101)
    files = CoarseFiles(folder)
    for i in range(2):
        coarse = np.random.default_rng(i).uniform(0.4, 0.6, (28, 42)).astype(np.float32)
        files.write("train", i, Coarse(coarse, np.zeros((0, 2), np.int16)))
    return CropReader(FullSizeReader(dataset, None, 100), files, DepthRange(500, 3000), 64)


def test_a_crop_is_its_rectangle_of_image_depth_and_coarse_depth(crops):
    draw = CENTERED._replace(image=1, row=1.0, column=1.0)  # at row 8, column 36
    batch = crops("train", [draw])
    depth, mask = crops.reader.depth("train", 1)
    full = crops.reader.image("train", 1)
    cut = np.s_[8 : 8 + 64, 36 : 36 + 64]
    assert np.array_equal(batch.rgb[0], full[cut])
    assert np.array_equal(batch.depth_mm[0], depth[cut])
    assert np.array_equal(batch.mask[0], mask[cut])
    target = torch.from_numpy(crops.coarse.read("train", 1).target)
    whole = coarse_log(upsample(target[None], (72, 101))[0], crops.bounds)
    assert torch.allclose(batch.coarse_log[0], whole[cut], atol=1e-5)


def test_all_of_a_crop_is_turned_alike(crops):
    straight = crops("train", [CENTERED])
    turned = crops("train", [CENTERED._replace(flip_rows=True, flip_columns=True)])
    mirrored = crops("train", [CENTERED._replace(flip_columns=True)])
    for name, tensor in vars(straight).items():
        assert torch.equal(getattr(turned, name), tensor.flip(1, 2)), name
        assert torch.equal(getattr(mirrored, name), tensor.flip(2)), name


def test_the_ranks_share_each_step_and_begin_at_any(crops):
    plan = CropPlan(2, 4, seed=0)

    def read(rank, world, step):
        return list(islice(training_crops(crops, plan, rank, world, step), 2))

    alone, (first, second) = read(0, 1, 5), (read(rank, 2, 5) for rank in range(2))
    for whole, *halves in zip(alone, first, second):
        for name, tensor in vars(whole).items():
            assert torch.equal(torch.cat([getattr(half, name) for half in halves]), tensor), name
    assert torch.equal(read(0, 1, 6)[0].rgb, alone[1].rgb)


def test_a_coarse_prediction_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"train-000004\.npz: is not here any more; the same command"
    ):
        CoarseFiles(tmp_path).read("train", 4)
