"""launch/predict.py: the numbers, and every kind of result."""

import shutil

import numpy as np
import pytest
from helpers.captures import capture, write_capture, write_raw
from helpers.commands import command
from helpers.predictions import predict_by_formula, result_names
from PIL import Image


@pytest.mark.parametrize("size", [(30, 40), (28, 42), (101, 37)])
def test_depth_is_the_networks_output_in_mm_at_the_images_own_size(size, predict, model, tmp_path):
    rgb = capture(seed=5, size=size)[0]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png")
    assert done.code == 0, done
    assert "1 of 1 images" in done.out, done
    assert result_names(tmp_path / "out") == [
        "a_colour.png",
        "a_depth.npy",
        "a_depth_0.1mm.png",
        "a_figure.png",
    ]
    depth = np.load(tmp_path / "out/a_depth.npy")
    assert depth.dtype == np.float32
    assert depth.shape == size
    assert depth.min() > 500, "nothing to see"
    assert depth.std() > 5, "nothing to see"
    assert np.abs(depth - predict_by_formula(model, rgb)).max() < 0.01


def test_the_png_reads_back_within_half_its_unit(predict, tmp_path):
    Image.fromarray(capture()[0]).save(tmp_path / "a.png")
    predict(tmp_path / "a.png")
    with Image.open(tmp_path / "out/a_depth_0.1mm.png") as image:
        unit, levels = float(image.text["unit_mm"]), np.asarray(image)
    assert unit == 0.1
    assert levels.dtype == np.uint16
    assert np.abs(levels * unit - np.load(tmp_path / "out/a_depth.npy")).max() <= 0.0501


def test_a_run_with_a_large_depth_range_writes_whole_millimetres(tmp_path):
    from depthdist.geometry.depth_range import DepthRange
    from depthdist.inference.result_files import write_png

    depth = np.array([[500.4, 8000.6], [62000.0, 1200.0]], np.float32)
    write_png(tmp_path / "a.png", depth, DepthRange(300, 64000))
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["unit_mm"] == "1"
        assert np.asarray(image).tolist() == [
            [500, 8001],
            [62000, 1200],
        ]
    write_png(tmp_path / "far.png", depth, DepthRange(300, 4000))  # as measured with --fill
    with Image.open(tmp_path / "far.png") as image:
        assert np.asarray(image).tolist() == [[5004, 0], [0, 12000]], "no wrong depth in its place"
    write_png(tmp_path / "b.png", depth, DepthRange(300, 80000))
    with Image.open(tmp_path / "b.png") as image:
        assert image.text["unit_mm"] == "10"
        assert np.asarray(image).tolist() == [
            [50, 800],
            [6200, 120],
        ]


def test_a_figure_shows_the_ground_truth_if_there_is_a_point_cloud_in_either_layout(
    predict, run, tmp_path
):
    write_raw(tmp_path / "two", 1)
    write_capture(tmp_path / "one/b.png", tmp_path / "one/b.npy", seed=1)
    write_capture(tmp_path / "none/c.png", tmp_path / "gone.npy", seed=2)
    done = predict(tmp_path / "two/images", tmp_path / "one", tmp_path / "none")
    assert done.code == 0, done
    assert "3 of 3 images" in done.out, done
    stem = next((tmp_path / "two/images").iterdir()).stem
    width = {
        name: Image.open(tmp_path / f"out/{name}_figure.png").width for name in (stem, "b", "c")
    }
    assert width[stem] == width["b"] > 1.8 * width["c"], "four panels against two"
    bare = command(
        "launch/predict.py",
        tmp_path / "one",
        "--run",
        run,
        "--out",
        tmp_path / "bare",
        "--save",
        "npy,png",
    )
    assert bare.code == 0
    assert result_names(tmp_path / "bare") == ["b_depth.npy", "b_depth_0.1mm.png"]
    adapter = command(
        "launch/predict.py",
        tmp_path / "one",
        "--run",
        run / "best",
        "--out",
        tmp_path / "adapter",
        "--save",
        "npy,png",
    )
    assert adapter.code == 0
    assert (tmp_path / "adapter/b_depth.npy").read_bytes() == (
        tmp_path / "bare/b_depth.npy"
    ).read_bytes()


def test_a_one_pixel_image_has_its_figure_too(predict, tmp_path):
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "dot.png")
    Image.new("RGB", (700, 3)).save(tmp_path / "strip.png")
    assert predict(tmp_path / "dot.png", tmp_path / "strip.png").code == 0
    assert np.load(tmp_path / "out/dot_depth.npy").shape == (1, 1)
    assert (tmp_path / "out/strip_figure.png").exists()


def test_any_name_and_shape_has_its_figure(predict, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "in/a$_$b_{^}.png")
    Image.new("RGB", (1, 30000)).save(tmp_path / "in/column.png")
    assert predict(tmp_path / "in", "--save", "figure").code == 0
    assert len(result_names(tmp_path / "out")) == 2


def test_images_shards_and_patterns_together_in_any_batch_size_are_the_same(run, predict, tmp_path):
    for i in range(3):
        write_capture(tmp_path / f"in/{i}.png", tmp_path / f"in/{i}.npy", seed=i)
    shards = run.parents[1] / "shards"
    for batch in (1, 4):
        done = predict(
            tmp_path / "in/[01].png",
            tmp_path / "in/2.png",
            shards,
            "--out",
            tmp_path / f"out{batch}",
            "--batch",
            batch,
        )
        assert done.code == 0, done
        assert "9 of 9 images" in done.out, done
    first, second = result_names(tmp_path / "out1"), result_names(tmp_path / "out4")
    assert first == second
    assert sum(name.endswith("_figure.png") for name in first) == 9
    for name in first:
        if name.endswith(".npy"):
            assert (
                np.abs(np.load(tmp_path / "out1" / name) - np.load(tmp_path / "out4" / name)).max()
                < 0.01
            )


def test_a_damaged_sample_is_one_line_and_the_others_are_done(run, predict, tmp_path):
    shards = shutil.copytree(run.parents[1] / "shards", tmp_path / "shards")
    tar = next(shards.glob("train/*.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 255
    tar.write_bytes(content)
    done = predict(shards, "--save", "npy")
    (line,) = done.errors
    assert "shard" in line
    assert "5 of 6 images: depth" in done.out
    (line,) = predict(shards, "--save", "npy", "--refine", "guided").errors
    assert "--refine guided needs images at their full size" in line


def test_several_devices_keep_the_order_and_share_the_work(model):
    from depthdist.inference.image_sources import ImageSource, InputImage
    from depthdist.inference.predictor import Predictor, predict_sources

    network, record = model
    seen = [[], []]

    class Noted(Predictor):
        def __call__(self, images, **others):
            seen[self.number] += [p.rgb[0, 0, 0] for p in images]
            return super().__call__(images, **others)

    predictors = [Noted(network, record), Noted(network, record)]
    for number, predictor in enumerate(predictors):
        predictor.number = number
    images = [InputImage(np.full((28, 42, 3), i, np.uint8), (28, 42)) for i in range(11)]
    found = list(
        predict_sources(
            [ImageSource(str(i), "", "", lambda p=p: p) for i, p in enumerate(images)],
            predictors,
            2,
        )
    )
    assert [source.name for source, _, _ in found] == [str(i) for i in range(11)]
    assert [p.rgb[0, 0, 0] for _, p, _ in found] == list(range(11))
    assert seen == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10]]
    (alone,) = predictors[0]([images[10]])
    assert np.abs(found[10].depth.depth_mm - alone.depth_mm).max() < 0.01


def test_a_mirrored_image_gives_the_mirrored_depth_with_flip(predict, tmp_path):
    rgb = capture(4, size=(28, 42))[0]
    for name, image in (("a", rgb), ("b", rgb[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / f"{name}.png")
    assert predict(tmp_path / "a.png", tmp_path / "b.png", "--save", "npy", "--flip").code == 0
    a, b = (np.load(tmp_path / f"out/{name}_depth.npy") for name in "ab")
    assert np.abs(a - b[:, ::-1]).max() < 0.01
    assert predict(tmp_path / "a.png", "--save", "npy", "--out", tmp_path / "plain").code == 0
    assert np.abs(np.load(tmp_path / "plain/a_depth.npy") - a).max() > 0.5, "it does something"


def test_colors_are_comparable_between_images(predict, model, tmp_path):
    from depthdist.inference.result_files import colorize_depth

    _, record = model
    depth = np.geomspace(record.near_mm, record.far_mm, 100, dtype=np.float32)[None]
    red, _, blue = colorize_depth(depth, record.bounds)[0].astype(int).T
    assert red[1] > blue[1]
    assert blue[-2] > red[-2]
    assert (
        colorize_depth(depth[:, ::7], record.bounds) == colorize_depth(depth, record.bounds)[:, ::7]
    ).all()


def test_what_is_missing_is_one_clear_line(run, predict, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (line,) = command(
        "launch/predict.py",
        tmp_path / "a.png",
        "--run",
        run.with_name("frist"),
        "--out",
        tmp_path / "out",
    ).errors
    assert str(run.with_name("frist")) in line
    assert "hub id" in line
    (line,) = command(
        "launch/predict.py", tmp_path / "a.png", "--run", tmp_path, "--out", tmp_path / "out"
    ).errors
    assert "depthdist.json" in line
    (line,) = predict().errors
    assert line.startswith("INPUTS is missing")
    (line,) = predict(tmp_path / "absent.png").errors
    assert "no such file or folder" in line
    (tmp_path / "empty").mkdir()
    (line,) = predict(tmp_path / "empty").errors
    assert f"{tmp_path / 'empty'}: no " in line
    assert "expected .bmp" in line
    lines = command("launch/predict.py", tmp_path / "a.png", "--rnu", run).errors
    assert any("unknown setting --rnu; did you mean --run" in line for line in lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--save", "npy,colour,plx"],
            "--save has plx: expected npy, png, colour, figure, ply, sigma; did you mean ply?",
        ),
        (["--fov", "180", "--save", "ply"], "--fov is 180: expected degrees above 0 and below 180"),
        (["--fov", "60"], "--intrinsics and --fov are for ply: name it in --save"),
        (["--intrinsics", "1,2,3", "--save", "ply"], "--intrinsics is 1,2,3: expected fx,fy,cx,cy"),
        (
            ["--intrinsics", "1,1,1,1", "--fov", "60", "--save", "ply"],
            "--intrinsics and --fov: expected one of them",
        ),
        (["--batch", "0"], "--batch is 0: expected >= 1"),
        (["--near-mm", "300"], "--near-mm and --far-mm: expected both or neither"),
        (["--near-mm", "300", "--far-mm", "200"], "expected near < far"),
        (["--refine", "magic"], "--refine is 'magic'"),
        (["no-such-[0-9].png"], "no file fits this pattern"),
        (["~nobody-of-that-name/x.png"], "no such file or folder"),
    ],
)
def test_settings_that_cannot_work_are_one_line(predict, tmp_path, words, text):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png", *words)
    assert len(done.errors) == 1, done
    assert text in done.errors[0], done
