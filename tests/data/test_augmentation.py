"""Augmentation: off by default, a function of (seed, epoch, sample) alone, and each change as large
as it says; depth stays true."""

import dataclasses
import random
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist

import numpy as np
import pytest

from depthdist.core.command_line import parse
from depthdist.core.errors import SettingsError
from depthdist.core.settings import field_help
from depthdist.data.augmentation import (
    LIMITS,
    Augmentation,
    AugmentSettings,
    draw_augmentation,
    mirror,
)
from depthdist.data.photometric import apply_photometric

STRONG = AugmentSettings(flip=0.5, exposure=1.0, tone=0.3, colour=0.15, noise=6.0, jpeg=40)
NAMES = [f.name for f in dataclasses.fields(AugmentSettings)]
NOTHING = draw_augmentation(AugmentSettings(), seed=0, epoch=0, sample=0)


def picture(height=48, width=70, seed=0):
    """(h, w, 3) uint8: slopes from dark to bright with a little texture, another one in each
    channel."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    slopes = np.stack([x, y, 1 - x], -1) * 225 + 10
    return (slopes + np.random.default_rng(seed).integers(0, 20, (height, width, 3))).astype(
        np.uint8
    )


def ramp():
    """(1, 256, 3) uint8: every level of every channel."""
    return np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)


def reference(level, stops, change, log2_gamma):
    """What one stored level becomes, float64, by the text of IEC 61966-2-1."""
    v = level / 255
    light = v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
    light = min(light * 2.0**stops * (1 + change), 1.0)
    v = 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055
    return 255 * v ** (2.0**log2_gamma)


def noise_of(sigma, sample, size=(256, 512)):
    """(h, w, 3) float: what noise adds to a grey picture."""
    drawn = dataclasses.replace(
        draw_augmentation(STRONG, 0, 0, sample),
        exposure=0.0,
        tone=0.0,
        colour=(0.0,) * 3,
        noise=sigma,
        jpeg=0,
    )
    return apply_photometric(np.full((*size, 3), 128, np.uint8), drawn) - 128.0


def test_nothing_is_on_by_default():
    assert not AugmentSettings().any and not AugmentSettings().problems()
    rgb = picture()
    for sample in range(50):
        drawn = draw_augmentation(AugmentSettings(), seed=3, epoch=2, sample=sample)
        assert not drawn.flip and apply_photometric(rgb, drawn) is rgb


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_is_off_at_0_explained_and_bounded(name):
    assert getattr(AugmentSettings(), name) == 0 and len(field_help(AugmentSettings)[name]) > 20
    highest = LIMITS.get(name, 99)
    on = AugmentSettings(**{name: highest})
    assert on.any and not on.problems()
    for wrong in (-0.01, highest + 0.01, float("nan"), float("inf")):
        (line,) = AugmentSettings(**{name: wrong}).problems()
        assert f"--{name} is {wrong}: expected 0" in line and str(highest) in line


@pytest.mark.parametrize(
    "quality, right", [(0, True), (1, False), (9, False), (10, True), (99, True), (100, False)]
)
def test_a_jpeg_quality_is_0_or_10_to_99(quality, right):
    assert bool(AugmentSettings(jpeg=quality).problems()) != right


def test_all_problems_are_listed_at_once():
    flags = [
        "--flip",
        "1.5",
        "--exposure",
        "5",
        "--tone",
        "-1",
        "--colour",
        "2",
        "--noise",
        "65",
        "--jpeg",
        "5",
    ]
    with pytest.raises(SettingsError) as caught:
        parse("", AugmentSettings, argv=flags)
    assert [line.split(" is ")[0] for line in str(caught.value).splitlines()] == [
        f"--{name}" for name in NAMES
    ]


def test_the_same_sample_has_the_same_bytes_in_any_thread_and_order():
    rgb = picture()
    wanted = [(epoch, sample) for epoch in range(4) for sample in range(10)]

    def augmented(place):
        return apply_photometric(rgb, draw_augmentation(STRONG, 7, *place)).tobytes()

    expected = {place: augmented(place) for place in wanted}
    mixed = wanted * 2
    random.Random(0).shuffle(mixed)
    with ThreadPoolExecutor(4) as pool:
        assert all(
            expected[place] == found for place, found in zip(mixed, pool.map(augmented, mixed))
        )
    assert len(set(expected.values())) == len(wanted)  # other epochs and samples have others


def test_seed_epoch_and_sample_each_change_every_number_drawn():
    base = dataclasses.astuple(draw_augmentation(STRONG, 1, 2, 3))
    for place in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)]:
        assert all(
            a != b
            for a, b in zip(base[1:], dataclasses.astuple(draw_augmentation(STRONG, *place))[1:])
        ), place  # flip has only two values


@pytest.mark.parametrize("name", NAMES)
def test_what_a_setting_draws_does_not_depend_on_the_others(name):
    alone = AugmentSettings(**{name: getattr(STRONG, name)})
    for sample in range(30):
        off, one, every = (
            draw_augmentation(s, 0, 1, sample) for s in (AugmentSettings(), alone, STRONG)
        )
        assert getattr(one, name) == getattr(every, name)
        assert dataclasses.replace(one, **{name: getattr(off, name)}) == off
        assert one.noise_key == every.noise_key


def test_a_draw_never_changes_with_the_version_of_numpy():
    assert draw_augmentation(STRONG, seed=1, epoch=2, sample=3) == Augmentation(
        flip=False,
        exposure=-0.6545561045673498,
        tone=0.024377284741273052,
        colour=(-0.12269041700620564, -0.13038930935050963, 0.019120491101424053),
        noise=0.6351094604277605,
        jpeg=48,
        noise_key=9384340927304427513,
    )
    assert noise_of(6.0, sample=3)[0, :3].tolist() == [[-2, 6, 11], [1, -2, 2], [5, 3, 1]]


def test_draws_are_uniform_in_their_ranges():
    drawn = [draw_augmentation(STRONG, 0, 0, sample) for sample in range(4000)]
    assert np.mean([d.flip for d in drawn]) == pytest.approx(0.5, abs=0.03)
    ranges = {
        "exposure": (-1, 1),
        "tone": (-0.3, 0.3),
        "colour": (-0.15, 0.15),
        "noise": (0, 6),
        "jpeg": (39.5, 99.5),
    }
    for name, (low, high) in ranges.items():
        values = np.array([getattr(d, name) for d in drawn]).reshape(4000, -1)
        assert (low <= values).all() and (values < high).all(), name
        assert np.quantile((values - low) / (high - low), [0.1, 0.5, 0.9], axis=0) == pytest.approx(
            np.array([[0.1], [0.5], [0.9]]).repeat(values.shape[1], 1), abs=0.03
        ), name
    assert {d.jpeg for d in drawn} == set(range(40, 100))
    assert {
        draw_augmentation(AugmentSettings(jpeg=95), 0, 0, sample).jpeg for sample in range(200)
    } == set(range(95, 100))


def test_a_flip_of_probability_1_is_sure():
    assert all(
        draw_augmentation(AugmentSettings(flip=1.0), 0, 0, sample).flip for sample in range(100)
    )


@pytest.mark.parametrize(
    "stops, colour, gamma",
    [
        (1, (0, 0, 0), 0),
        (-2, (0, 0, 0), 0),
        (0, (0.3, -0.2, 0), 0),
        (0, (0, 0, 0), 0.5),
        (0.7, (-0.1, 0.15, 1), -0.3),
    ],
)
def test_light_colour_and_gamma_equal_the_float64_formula(stops, colour, gamma):
    found = apply_photometric(
        ramp(), dataclasses.replace(NOTHING, exposure=stops, colour=colour, tone=gamma)
    )
    expected = np.array(
        [[reference(level, stops, change, gamma) for change in colour] for level in range(256)]
    )
    assert found.shape == (1, 256, 3) and found.dtype == np.uint8
    assert np.abs(found[0] - expected).max() <= 0.501


def test_one_stop_up_turns_middle_grey_into_twice_the_light():
    grey = np.full((1, 1, 3), 118, np.uint8)  # 18 % of the light; 36 % is level 162
    up, down = (
        apply_photometric(grey, dataclasses.replace(NOTHING, exposure=stops))
        for stops in (1.0, -1.0)
    )
    assert (up == 162).all() and (down < 118).all()
    assert (apply_photometric(grey, dataclasses.replace(NOTHING, tone=0.5)) < 118).all()


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0, 20.0])
def test_noise_is_normal_with_the_stated_sigma_around_0(sigma):
    noise = noise_of(sigma, sample=0)
    assert np.abs(noise.mean((0, 1))).max() < 5 * sigma / np.sqrt(noise[..., 0].size)
    assert np.abs(noise).max() < 4 * sigma + 0.5
    levels, normal = np.arange(-90, 91), NormalDist(0, sigma)
    share = np.array(
        [normal.cdf(k + 0.5) - normal.cdf(k - 0.5) for k in levels]
    )  # of a normal, rounded to levels
    found = np.bincount(noise.astype(int).ravel() + 90, minlength=181) / noise.size
    assert np.abs(found - share).max() < 0.003
    assert noise.std() == pytest.approx(np.sqrt((share * levels**2).sum()), rel=0.005)


def test_noise_has_no_period_and_no_tie_between_channels_or_samples():
    first, other = noise_of(6.0, sample=0), noise_of(6.0, sample=1)
    limit = 6.5 / np.sqrt(
        first[..., 0].size
    )  # the largest of that many chance correlations is about 5 / sqrt(N)

    def correlations(a, b):
        """Of a with b at every shift, in two dimensions and wrapped around."""
        return np.fft.irfft2(np.fft.rfft2(a - a.mean()) * np.conj(np.fft.rfft2(b - b.mean()))) / (
            a.std() * b.std() * a.size
        )

    for c in range(3):
        itself = correlations(first[..., c], first[..., c])
        assert itself.flat[0] == pytest.approx(1) and np.abs(itself.flat[1:]).max() < limit
        assert np.abs(correlations(first[..., c], first[..., c - 1])).max() < limit
        assert np.abs(correlations(first[..., c], other[..., c])).max() < limit


def test_jpeg_changes_pixels_slightly_and_never_the_shape():
    def change(rgb, quality):
        found = apply_photometric(rgb, dataclasses.replace(NOTHING, jpeg=quality))
        assert found.shape == rgb.shape and found.dtype == np.uint8
        return np.abs(found - rgb.astype(float)).mean()

    for height, width in [(1, 1), (17, 33), (48, 70), (64, 64)]:
        assert change(picture(height, width), 40) < 12
    assert 0 < change(picture(), 95) < change(picture(), 40) < 8


@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 61, 64, 1944])
def test_a_mirror_equals_fliplr_of_the_unpacked_arrays_and_twice_is_the_identity(width):
    rng = np.random.default_rng(width)
    rgb, depth = picture(5, width // 2 + 1), rng.integers(0, 2**16, (6, width), dtype=np.uint16)
    mask = rng.random((6, width)) < 0.7
    packed = np.packbits(mask, axis=1)
    once = mirror(rgb, depth, packed)
    for found, expected in zip(
        once, (np.fliplr(rgb), np.fliplr(depth), np.packbits(np.fliplr(mask), axis=1))
    ):
        assert (
            np.array_equal(found, expected)
            and found.dtype == expected.dtype
            and found.flags.c_contiguous
        )
    assert not np.unpackbits(once[2], axis=1)[:, width:].any()
    assert all(np.array_equal(a, b) for a, b in zip(mirror(*once), (rgb, depth, packed)))


def test_only_the_mirror_touches_depth_and_mask_and_nothing_given_is_written_to():
    rgb, depth, packed = (
        picture(),
        np.arange(6 * 20, dtype=np.uint16).reshape(6, 20),
        np.full((6, 3), 0b10110010, np.uint8),
    )
    before = [a.copy() for a in (rgb, depth, packed)]
    for given in (rgb, depth, packed):
        given.flags.writeable = False
    no_flip = dataclasses.replace(STRONG, flip=0.0)
    assert not any(draw_augmentation(no_flip, 0, 0, sample).flip for sample in range(100))
    found = apply_photometric(rgb, draw_augmentation(no_flip, 0, 0, 0))
    mirror(rgb, depth, packed)
    assert not np.array_equal(found, rgb) and all(
        np.array_equal(a, b) for a, b in zip(before, (rgb, depth, packed))
    )
