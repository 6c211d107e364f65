"""Refinement with the full-size image: edges move to the image's, no seams, no overall change."""

import itertools

import numpy as np
import pytest
import torch

from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.geometry.resampling import upsample
from depthdist.models.detail import Detail, DetailRecord
from depthdist.models.detail_network import DetailNetwork
from depthdist.models.refinement import (
    average_with_mirror,
    refine_by_guided_filter,
    refine_by_tiles,
    tile_starts,
)
from depthdist.models.refiner import Refiner
from depthdist.models.settings import REFINEMENTS


def step(height, width, at):
    """A image, dark left of column `at` and light from it on, and depth with the same edge."""
    image = torch.full((height, width, 3), 40, dtype=torch.uint8)
    image[:, at:] = 210
    return image, torch.where(torch.arange(width) < at, 0.2, 0.6).expand(height, width)


def test_guided_puts_an_edge_where_the_images_is():
    image, truth = step(80, 120, 61)
    coarse = torch.nn.functional.avg_pool2d(truth[None, None], 4)[
        0, 0
    ]  # (20, 30): the edge is somewhere within 4 pixels
    plain = upsample(coarse[None], (80, 120))[0]
    fine = refine_by_guided_filter(coarse, image)
    near = slice(52, 70)
    assert (fine - truth)[:, near].abs().mean() < 0.4 * (plain - truth)[:, near].abs().mean()
    assert (fine.mean() - truth.mean()).abs() < 0.005


def test_guided_is_a_mean_over_windows_where_the_image_is_flat():
    """Twice a mean over 5 x 5 pixels, in plain loops."""
    pred = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))

    def mean(values):
        rows, columns = values.shape
        return torch.stack(
            [
                torch.stack(
                    [
                        values[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].mean()
                        for j in range(columns)
                    ]
                )
                for i in range(rows)
            ]
        )

    fine = refine_by_guided_filter(pred, torch.full((80, 120, 3), 128, dtype=torch.uint8))
    assert torch.allclose(
        fine, upsample(mean(mean(pred))[None], (80, 120), "bilinear")[0], atol=1e-4
    )


@pytest.mark.parametrize(
    ("length", "tile"),
    [(10, 10), (9, 10), (11, 10), (100, 10), (1944, 1260), (1200, 756), (757, 756)],
)
def test_tiles_cover_everything_and_overlap_by_a_quarter(length, tile):
    found = tile_starts(length, tile)
    covered = np.zeros(length, int)
    for start in found:
        assert start >= 0
        assert start + tile <= length or length < tile
        covered[start : start + tile] += 1
    assert covered.all()
    assert all(b - a <= 0.75 * tile + 1 for a, b in itertools.pairwise(found))


def fitted(image, size):
    return torch.from_numpy(resize_rgb(image.numpy(), size))


def brightness(rgb):
    """A network that sees brightness, up to a scale and shift of its own for each image: as
    relative depth does."""
    light = rgb.float().mean(-1) / 255
    return 3.0 * light + 2.0 * light.amax((1, 2), keepdim=True)


def test_tiles_add_detail_that_the_small_image_has_lost_and_no_seam():
    noise = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (96, 144, 3)).astype(np.uint8)
    )
    size = (28, 42)
    whole = upsample(brightness(fitted(noise, size)[None]), (96, 144))[0]
    truth = noise.float().mean(-1) / 255
    fine = refine_by_tiles(brightness, whole, noise, size)

    def fit(found):
        return np.corrcoef(found.flatten().numpy(), truth.flatten().numpy())[0, 1]

    assert fit(fine) > 0.9 > fit(whole) + 0.2
    smooth = torch.linspace(0, 255, 144).round().to(torch.uint8)[None, :, None].expand(96, 144, 3)
    whole = upsample(brightness(fitted(smooth, size)[None]), (96, 144))[0]
    steps = refine_by_tiles(brightness, whole, smooth, size).diff(dim=1)
    assert steps.max() < 3 * steps.median()
    assert steps.min() > 0, "a ramp stays a ramp"


def test_a_image_no_larger_than_the_networks_comes_back_as_it_was():
    image = torch.zeros(28, 42, 3, dtype=torch.uint8)
    whole = torch.rand(28, 42)
    assert refine_by_tiles(brightness, whole, image, (28, 42)) is whole


def test_tiles_change_fine_relief_alone():
    """A network that takes each tile for a bowl: the whole's own shape stays."""
    image = torch.from_numpy(
        np.random.default_rng(2).integers(0, 256, (112, 168, 3)).astype(np.uint8)
    )
    bowl = torch.linspace(-1, 1, 28)[:, None].square() + torch.linspace(-1, 1, 42).square()
    whole = torch.linspace(0, 1, 168).expand(112, 168)
    found = refine_by_tiles(
        lambda rgb: bowl.expand(len(rgb), 28, 42) + 0.01 * brightness(rgb), whole, image, (28, 42)
    )
    assert (found - whole).abs().max() < 0.1


def test_a_tile_that_says_the_opposite_is_flat_and_not_turned_inside_out():
    image = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    )
    whole = -image.float().mean(-1) / 255
    found = refine_by_tiles(brightness, whole, image, (28, 42))
    assert found.std() < 0.3 * whole.std()
    assert (found.mean() - whole.mean()).abs() < 0.02


def test_the_mirror_image_averages_what_both_say():
    rgb = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 6, 8, 3)).astype(np.uint8))

    def lopsided(images):
        return images.float().mean(-1) + torch.arange(8)

    assert torch.allclose(average_with_mirror(lopsided)(rgb), rgb.float().mean(-1) + 3.5)


@pytest.mark.parametrize("way", REFINEMENTS)
def test_every_way_has_the_images_size(way):
    image = torch.randint(0, 256, (60, 90, 3), dtype=torch.uint8)
    pred = brightness(fitted(image, (28, 42))[None])[0]
    bounds = DepthRange(500.0, 3000.0)
    stage = Detail(DetailNetwork().begin(0).eval(), DetailRecord("", (), (60, 90), 0))
    refiner = Refiner(way, stage if way == "detail" else None)
    found = refiner(brightness, pred, image, bounds)
    assert found.shape == (60, 90)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    if way == "plain":
        assert torch.equal(found, upsample(pred[None], (60, 90))[0])
    if way == "detail":  # it begins as plain
        assert torch.allclose(found, upsample(pred[None], (60, 90))[0].clamp(min=0), atol=1e-5)
