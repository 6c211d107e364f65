"""The size at which the network sees a camera's images."""

import math

import pytest

from depthdist.geometry.image_size import (
    RECIPE_SIZE,
    choose_image_size,
    describe_stretch,
    most_stretched,
    stretch,
)


def test_the_recipes_camera_gets_exactly_the_recipes_size():
    assert choose_image_size((1200, 1944)) == RECIPE_SIZE == (756, 1260)


@pytest.mark.parametrize(
    "camera",
    [(2048, 2448), (1024, 1224), (480, 640), (1080, 1920), (1920, 1080), (1944, 1200), (200, 1000)],
)
def test_a_size_has_the_cameras_aspect_and_nearly_the_recipes_pixels(camera):
    height, width = choose_image_size(camera)
    assert height % 14 == width % 14 == 0
    assert 0.99 * math.prod(RECIPE_SIZE) <= height * width <= math.prod(RECIPE_SIZE)
    assert stretch(camera, (height, width)) <= 0.03
    assert choose_image_size((2 * camera[0], 2 * camera[1])) == (height, width)


def test_no_size_of_as_little_stretch_has_more_pixels():
    camera = (1080, 1920)
    height, width = choose_image_size(camera)
    larger = [
        (14 * rows, 14 * columns)
        for rows in range(1, 200)
        for columns in range(1, 200)
        if height * width < 14 * rows * 14 * columns <= math.prod(RECIPE_SIZE)
    ]
    assert larger and all(stretch(camera, size) > 0.03 for size in larger)


def test_an_extreme_aspect_gets_the_least_stretched_size():
    assert choose_image_size((10, 40_000)) == (14, 8190)


def test_stretch_is_the_same_for_both_directions():
    assert stretch((100, 200), (14, 14)) == stretch((200, 100), (14, 14)) == 1
    assert (
        describe_stretch((1024, 1224), (756, 1260)) == "1024x1224 is stretched by 39 % at 756x1260"
    )
    assert describe_stretch((1200, 1944), (756, 1260)) is None
    assert most_stretched([(30, 40), (40, 30), (28, 42)], (28, 42)) == [40, 30]
    assert most_stretched([(28, 42)], (28, 42)) == []
