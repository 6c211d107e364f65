"""launch/predict.py: the numbers, the files, and any image a person may have."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.captures import HOSTILE, ROOT, capture, write_capture, write_raw
from helpers.commands import ON_CPU, command
from helpers.runs import make_model, make_shards, train
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    assert (
        train(
            make_shards(folder, 6),
            folder / "runs/first",
            "--epochs",
            1,
            "--model",
            make_model(folder / "dav2"),
        ).code
        == 0
    )
    return folder / "runs/first"


@pytest.fixture
def predict(run, tmp_path):
    """The command on images; its results are in tmp_path / "out"."""
    return lambda *words: command(
        "launch/predict.py", "--run", run, "--out", tmp_path / "out", *words
    )


@pytest.fixture(scope="module")
def model(run):
    from depthdist.models.adapter import load_adapter

    return load_adapter(run / "best")


def by_hand(model, rgb):
    """(H, W) mm: the formulas of the recipe, on the network alone."""
    network, record = model
    small = np.asarray(
        Image.fromarray(rgb).resize((record.width, record.height), Image.Resampling.BICUBIC),
        np.float64,
    )
    pixels = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        found = network.net(
            pixel_values=torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        ).predicted_depth
        found = (
            F.interpolate(found[None], size=rgb.shape[:2], mode="bicubic", align_corners=False)[
                0, 0
            ]
            .double()
            .numpy()
        )
    low, high = 1 / record.far_mm, 1 / record.near_mm
    return 1 / (low + np.clip(found, 0, None) * (high - low))


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "done.jsonl")


@pytest.mark.parametrize("size", [(30, 40), (28, 42), (101, 37)])
def test_depth_is_the_networks_in_mm_at_the_images_own_size(size, predict, model, tmp_path):
    rgb = capture(seed=5, size=size)[0]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png")
    assert done.code == 0 and "1 of 1 images" in done.out, done
    assert names(tmp_path / "out") == [
        "a_colour.png",
        "a_depth.npy",
        "a_depth_0.1mm.png",
        "a_figure.png",
    ]
    depth = np.load(tmp_path / "out/a_depth.npy")
    assert depth.dtype == np.float32 and depth.shape == size
    assert depth.min() > 500 and depth.std() > 5, "nothing to see"
    assert np.abs(depth - by_hand(model, rgb)).max() < 0.01


def test_the_png_reads_back_within_half_its_unit(predict, tmp_path):
    Image.fromarray(capture()[0]).save(tmp_path / "a.png")
    predict(tmp_path / "a.png")
    with Image.open(tmp_path / "out/a_depth_0.1mm.png") as image:
        unit, levels = float(image.text["unit_mm"]), np.asarray(image)
    assert unit == 0.1 and levels.dtype == np.uint16
    assert np.abs(levels * unit - np.load(tmp_path / "out/a_depth.npy")).max() <= 0.0501


def test_a_run_that_sees_far_writes_whole_millimetres(tmp_path):
    from depthdist.geometry.depth_range import DepthRange
    from depthdist.inference.result_files import write_png

    depth = np.array([[500.4, 8000.6], [62000.0, 1200.0]], np.float32)
    write_png(tmp_path / "a.png", depth, DepthRange(300, 64000))
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["unit_mm"] == "1" and np.asarray(image).tolist() == [
            [500, 8001],
            [62000, 1200],
        ]
    write_png(tmp_path / "b.png", depth, DepthRange(300, 80000))
    with Image.open(tmp_path / "b.png") as image:
        assert image.text["unit_mm"] == "10" and np.asarray(image).tolist() == [
            [50, 800],
            [6200, 120],
        ]


def test_a_figure_has_the_truth_where_the_cloud_is_beside_in_either_layout(predict, run, tmp_path):
    write_raw(tmp_path / "two", 1)
    write_capture(tmp_path / "one/b.png", tmp_path / "one/b.npy", seed=1)
    write_capture(tmp_path / "none/c.png", tmp_path / "gone.npy", seed=2)
    done = predict(tmp_path / "two/images", tmp_path / "one", tmp_path / "none")
    assert done.code == 0 and "3 of 3 images" in done.out, done
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
    assert bare.code == 0 and names(tmp_path / "bare") == ["b_depth.npy", "b_depth_0.1mm.png"]
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
    assert (
        adapter.code == 0
        and (tmp_path / "adapter/b_depth.npy").read_bytes()
        == (tmp_path / "bare/b_depth.npy").read_bytes()
    )


def test_the_same_name_in_two_folders_is_kept_apart(predict, model, tmp_path):
    for seed, folder in enumerate(("left", "right")):
        write_capture(tmp_path / folder / "a.png", tmp_path / folder / "deep/a2.npy", seed=seed)
    shutil.copy(tmp_path / "left/a.png", tmp_path / "left/other.jpeg.png")
    done = predict("--save", "npy,png", tmp_path / "left", tmp_path / "right/a.png")
    assert done.code == 0, done
    found = [n for n in names(tmp_path / "out") if n.endswith(".npy")]
    assert found == ["left_a_png_depth.npy", "other.jpeg_depth.npy", "right_a_png_depth.npy"]
    for seed, name in ((0, "left"), (1, "right")):
        wanted = by_hand(model, capture(seed)[0])
        assert np.abs(np.load(tmp_path / f"out/{name}_a_png_depth.npy") - wanted).max() < 0.01
    shutil.copytree(tmp_path / "left", tmp_path / "more/left")
    (line,) = predict(tmp_path / "left/a.png", tmp_path / "more/left/a.png").errors
    assert "two images would be written as left_a_png" in line


def test_an_image_given_twice_is_predicted_once_and_results_are_no_inputs(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    for again in ((), ("--again",), None):
        done = predict(
            tmp_path / "in", tmp_path / "in/a.png", "--out", tmp_path / "in/out", *again or ()
        )
        assert done.code == 0 and ("\n1 of 1 images: depth" in done.out) == (again is not None), (
            done
        )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_turned_upright(orientation, predict, model, tmp_path):
    """The upright image, stored turned as a camera would, with the tag that says so."""
    upright = Image.fromarray(
        np.kron(capture(3)[0][:6, :8], np.ones((5, 5, 1), np.uint8))
    )  # (30, 40), coarse
    turns = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = upright.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert predict("--save", "npy,png", tmp_path / "a.png").code == 0
    depth = np.load(tmp_path / "out/a_depth.npy")
    assert (
        depth.shape == (30, 40) and np.abs(depth - by_hand(model, np.asarray(upright))).max() < 0.01
    )


@pytest.mark.skipif(
    not HOSTILE.exists(), reason=f"the odd images are not there: {HOSTILE}/images"
)
def test_every_odd_image_is_predicted_or_is_one_line(predict, tmp_path):
    images = sorted((HOSTILE / "images").iterdir())
    done = predict("--save", "npy,png", HOSTILE / "images")
    failed = {line.split(": ")[0] for line in done.errors}
    assert len(failed) == len(done.errors), "one line each"
    predicted = {
        n.removesuffix("_depth.npy") for n in names(tmp_path / "out") if n.endswith(".npy")
    }
    for image in images:
        assert (image.stem in predicted) != (str(image) in failed), image
    unreadable = {
        "broken_data_stream.png",
        "seek_too_large.tif",
        "truncated_end_chunk.png",
        "truncated_image.png",
        "unknown_compression_method.png",
    }
    assert unreadable <= {p.rsplit("/")[-1] for p in failed} and len(predicted) >= 30
    assert f"{len(predicted)} of {len(images)} images" in done.out
    assert all(np.isfinite(np.load(tmp_path / f"out/{name}_depth.npy")).all() for name in predicted)


def test_a_bad_image_is_one_line_and_the_others_are_done(predict, tmp_path):
    write_raw(tmp_path / "in", 2)
    (tmp_path / "in/images/broken.png").write_bytes(b"not an image")
    done = predict("--save", "npy,png", tmp_path / "in/images")
    (line,) = done.errors
    assert (
        str(tmp_path / "in/images/broken.png") in line
        and len(names(tmp_path / "out")) == 4
        and "2 of 3 images" in done.out
    )


def test_a_one_pixel_image_has_its_figure_too(predict, tmp_path):
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "dot.png")
    Image.new("RGB", (700, 3)).save(tmp_path / "strip.png")
    assert predict(tmp_path / "dot.png", tmp_path / "strip.png").code == 0
    assert (
        np.load(tmp_path / "out/dot_depth.npy").shape == (1, 1)
        and (tmp_path / "out/strip_figure.png").exists()
    )


def test_any_name_and_shape_has_its_figure(predict, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "in/a$_$b_{^}.png")
    Image.new("RGB", (1, 30000)).save(tmp_path / "in/column.png")
    assert (
        predict(tmp_path / "in", "--save", "figure").code == 0 and len(names(tmp_path / "out")) == 2
    )


def test_a_turned_image_has_no_truth_from_a_cloud_that_knows_no_turns(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(tmp_path / "in/a.png") as image:
        image.save(tmp_path / "in/a.png", exif=exif)
    done = predict(tmp_path / "in", "--save", "figure,ply")
    (line,) = done.errors
    assert (
        "is rotated (EXIF orientation 3)" in line
        and "drawn without truth" in line
        and names(tmp_path / "out") == ["a_figure.png"]
    )


def test_a_cloud_of_another_size_is_said_and_the_image_is_predicted(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    np.save(tmp_path / "in/a.npy", capture(size=(10, 12))[1])
    (line,) = predict(tmp_path / "in").errors
    assert "drawn without truth" in line and (tmp_path / "out/a_figure.png").exists()


def test_a_broken_cloud_does_not_stop_its_image(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    (tmp_path / "in/a.npy").write_bytes(b"not numbers")
    done = predict(tmp_path / "in")
    assert "a.npy" in "".join(done.errors) and (tmp_path / "out/a_depth.npy").exists()


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
    assert str(run.with_name("frist")) in line and "hub id" in line
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
    assert f"{tmp_path / 'empty'}: no " in line and "expected .bmp" in line
    lines = command("launch/predict.py", tmp_path / "a.png", "--rnu", run).errors
    assert any("unknown setting --rnu; did you mean --run" in line for line in lines)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------- more of them


def test_images_shards_and_patterns_together_in_any_batch_size_are_the_same(
    run, predict, tmp_path
):
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
        assert done.code == 0 and "9 of 9 images" in done.out, done
    first, second = names(tmp_path / "out1"), names(tmp_path / "out4")
    assert first == second and sum(name.endswith("_figure.png") for name in first) == 9
    for name in first:
        if name.endswith(".npy"):
            assert (
                np.abs(np.load(tmp_path / "out1" / name) - np.load(tmp_path / "out4" / name)).max()
                < 0.01
            )


def test_what_was_done_is_not_done_again_and_other_settings_are_refused(predict, tmp_path):
    for i in range(3):
        write_capture(tmp_path / f"in/{i}.png", tmp_path / f"in/{i}.npy", seed=i)
    assert predict(tmp_path / "in", "--save", "npy").code == 0
    log = tmp_path / "out/done.jsonl"
    log.write_text(
        "\n".join(log.read_text().splitlines()[:3]) + '\n{"name": "2", "vers'
    )  # two are done, the third was cut short
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.npy")}
    write_capture(tmp_path / "in/0.png", tmp_path / "in/0.npy", seed=7)  # another image now
    done = predict(tmp_path / "in", "--save", "npy")
    assert (
        done.code == 0
        and "1 of 3 images are done already" in done.out
        and "2 of 2 images" in done.out
    ), done
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.npy")}
    assert [name for name in sorted(after) if after[name] != before[name]] == [
        "0_depth.npy",
        "2_depth.npy",
    ]
    assert "3 of 3 images are done already" in predict(tmp_path / "in", "--save", "npy").out
    (line,) = predict(tmp_path / "in", "--save", "npy", "--flip").errors
    assert "with other settings" in line and "--again" in line
    assert predict(tmp_path / "in", "--save", "npy", "--flip", "--again").code == 0


def test_what_is_done_is_judged_by_what_is_there(run, predict, tmp_path):
    for day in ("day1", "day2"):
        write_capture(tmp_path / day / "a.png", tmp_path / "gone.npy", seed=len(day))
    assert predict(tmp_path / "day1", "--save", "npy").code == 0
    (line,) = predict(tmp_path / "day2", "--save", "npy").errors
    assert f"a_* there are of {tmp_path / 'day1/a.png'}, not of {tmp_path / 'day2/a.png'}" in line
    (tmp_path / "out/a_depth.npy").unlink()
    assert (
        "1 of 1 images: depth" in predict(tmp_path / "day1", "--save", "npy").out
        and (tmp_path / "out/a_depth.npy").exists()
    )
    shutil.copytree(run, tmp_path / "other")
    weights = load_file(tmp_path / "other/best/adapter_model.safetensors")
    save_file(
        {name: tensor + 0.01 for name, tensor in weights.items()},
        tmp_path / "other/best/adapter_model.safetensors",
    )
    (line,) = predict(tmp_path / "day1", "--save", "npy", "--run", tmp_path / "other").errors
    assert "with other settings" in line


def test_results_may_lie_beside_the_images(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "gone.npy")
    for _ in range(2):
        done = predict(tmp_path / "in", "--out", tmp_path / "in")
        assert done.code == 0 and "1 of 1 images" in done.out, done
    Image.new("RGB", (20, 20)).save(tmp_path / "b_figure.png")
    assert predict(tmp_path / "b_figure.png", "--out", tmp_path).code == 0, (
        "what is named is wanted"
    )
    (tmp_path / "in/a.png").unlink()
    (line,) = predict(tmp_path / "in", "--out", tmp_path / "in").errors
    assert "no images beside results of earlier predictions" in line


def test_nothing_that_is_read_is_written_over(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a_depth.npy")  # named as a result would be
    write_capture(tmp_path / "b_colour.png", tmp_path / "gone.npy")
    before = (tmp_path / "in/a_depth.npy").read_bytes(), (tmp_path / "b_colour.png").read_bytes()
    (line,) = predict(tmp_path / "in", "--out", tmp_path / "in").errors
    assert (
        f"{tmp_path / 'in/a_depth.npy'}: is an input and would be overwritten by a result of"
        f" {tmp_path / 'in/a.png'}" in line
    )
    shutil.copy(tmp_path / "in/a.png", tmp_path / "b.png")
    (line,) = predict(tmp_path / "b_colour.png", tmp_path / "b.png", "--out", tmp_path).errors
    assert f"{tmp_path / 'b_colour.png'}: is an input" in line
    assert before == (
        (tmp_path / "in/a_depth.npy").read_bytes(),
        (tmp_path / "b_colour.png").read_bytes(),
    )
    assert not list(tmp_path.rglob("a_colour.png")) + list(tmp_path.rglob("b_figure.png"))


def test_a_pattern_takes_images_alone_and_another_cloud_is_another_figure(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    Image.new("L", (32, 24)).save(tmp_path / "in/a_grooves.png")
    for pattern in ("in/*", "in/a_*.png"):
        done = predict(tmp_path / pattern, "--save", "figure")
        assert (
            "1 of 1 images" in done.out
            if pattern == "in/*"
            else "expected .bmp" in done.errors[0]
        ), done
    assert names(tmp_path / "out") == ["a_figure.png"]
    before = (tmp_path / "out/a_figure.png").read_bytes()
    write_capture(tmp_path / "elsewhere.png", tmp_path / "in/a.npy", seed=5)
    assert "1 of 1 images: depth" in predict(tmp_path / "in", "--save", "figure").out
    assert (tmp_path / "out/a_figure.png").read_bytes() != before
    assert "1 of 1 images are done already" in predict(tmp_path / "in", "--save", "figure").out


def test_a_damaged_sample_is_one_line_and_the_others_are_done(run, predict, tmp_path):
    shards = shutil.copytree(run.parents[1] / "shards", tmp_path / "shards")
    tar = next(shards.glob("train/*.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 255
    tar.write_bytes(content)
    done = predict(shards, "--save", "npy")
    (line,) = done.errors
    assert "shard" in line and "5 of 6 images: depth" in done.out
    (line,) = predict(shards, "--save", "npy", "--refine", "guided").errors
    assert "--refine guided needs images at their full size" in line


def test_several_devices_keep_the_order_and_share_the_work(model):
    from depthdist.inference.image_sources import ImageSource, InputImage
    from depthdist.inference.predictor import Predictor, predict_sources

    network, record = model
    seen = [[], []]

    class Noted(Predictor):
        def __call__(self, images):
            seen[self.number] += [p.rgb[0, 0, 0] for p in images]
            return super().__call__(images)

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
    assert [source.name for source, _, _ in found] == [str(i) for i in range(11)] and [
        p.rgb[0, 0, 0] for _, p, _ in found
    ] == list(range(11))
    assert seen == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10]]
    (alone,) = predictors[0]([images[10]])
    assert np.abs(found[10][2] - alone).max() < 0.01


def test_a_mirrored_image_gives_the_mirrored_depth_with_flip(predict, tmp_path):
    rgb = capture(4, size=(28, 42))[0]
    for name, image in (("a", rgb), ("b", rgb[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / f"{name}.png")
    assert predict(tmp_path / "a.png", tmp_path / "b.png", "--save", "npy", "--flip").code == 0
    a, b = (np.load(tmp_path / f"out/{name}_depth.npy") for name in "ab")
    assert np.abs(a - b[:, ::-1]).max() < 0.01
    assert predict(tmp_path / "a.png", "--save", "npy", "--out", tmp_path / "plain").code == 0
    assert np.abs(np.load(tmp_path / "plain/a_depth.npy") - a).max() > 0.5, "it does something"


def test_colours_are_comparable_between_images(predict, model, tmp_path):
    from depthdist.inference.result_files import colorize_depth

    _, record = model
    depth = np.geomspace(record.near_mm, record.far_mm, 100, dtype=np.float32)[None]
    red, _, blue = colorize_depth(depth, record.bounds)[0].astype(int).T
    assert red[1] > blue[1] and blue[-2] > red[-2]
    assert (
        colorize_depth(depth[:, ::7], record.bounds) == colorize_depth(depth, record.bounds)[:, ::7]
    ).all()


# ------------------------------------------------------------------------------------- point clouds


def read_ply(path):
    """Points and colours as somebody else's library reads them."""
    import trimesh

    cloud = trimesh.load(path)
    return np.asarray(cloud.vertices), np.asarray(cloud.colors)[:, :3]


def test_a_capture_gets_its_points_along_its_own_rays(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy", seed=3)
    rgb, xyz = capture(3)
    assert predict(tmp_path / "in", "--save", "npy,ply").code == 0
    depth = np.load(tmp_path / "out/a_depth.npy")
    found, colours = read_ply(tmp_path / "out/a_cloud.ply")
    assert len(found) == depth.size and (colours.reshape(rgb.shape) == rgb).all()
    found = found.reshape(*depth.shape, 3)
    assert np.abs(found[..., 2] - depth).max() < 1e-3
    seen = np.isfinite(xyz).all(axis=2) & (xyz[..., 2] > 0)
    assert (
        np.abs(found[seen][:, :2] / found[seen][:, 2:] - xyz[seen][:, :2] / xyz[seen][:, 2:]).max()
        < 1e-5
    )


def test_a_field_of_view_or_intrinsics_give_points_and_without_it_is_said(predict, tmp_path):
    Image.fromarray(capture(3, size=(30, 40))[0]).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png", "--save", "npy,ply")
    assert (
        done.code == 0
        and "no .ply of 1 images" in done.out
        and "--fov" in done.out
        and not (tmp_path / "out/a_cloud.ply").exists()
    )
    assert (
        predict(
            tmp_path / "a.png", "--save", "npy,ply", "--fov", 90, "--out", tmp_path / "fov"
        ).code
        == 0
    )
    assert (
        predict(
            tmp_path / "a.png",
            "--save",
            "npy,ply",
            "--intrinsics",
            "20,20,20,15",
            "--out",
            tmp_path / "k",
        ).code
        == 0
    )
    (fov, _), (k, _) = read_ply(tmp_path / "fov/a_cloud.ply"), read_ply(tmp_path / "k/a_cloud.ply")
    assert np.abs(fov - k).max() < 1e-3, (
        "an image 40 wide that sees 90 degrees has a focal length of 20"
    )
    fov = fov.reshape(30, 40, 3)
    assert fov[0, 0, 0] / fov[0, 0, 2] == pytest.approx((0.5 - 20) / 20, rel=1e-5) and fov[
        0, 0, 1
    ] / fov[0, 0, 2] == pytest.approx((0.5 - 15) / 20, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--save", "npy,colour,plx"],
            "--save has plx: expected npy, png, colour, figure, ply; did you mean ply?",
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
def test_settings_that_cannot_work_are_one_line(predict, tmp_path, words, said):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png", *words)
    assert len(done.errors) == 1 and said in done.errors[0], done


# ------------------------------------------------------------------------------------- many of them


def many(folder, count, size=(300, 450)):
    """Pictures that differ, stored without compression's work."""
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((*size, 3), i % 256, np.uint8)).save(folder / f"{i:04d}.bmp")
    return folder


def start(images, run, out):
    words = [
        sys.executable,
        "launch/predict.py",
        images,
        "--run",
        run,
        "--out",
        out,
        "--save",
        "npy",
    ]
    return subprocess.Popen(
        list(map(str, words)),
        cwd=ROOT,
        env={**os.environ, **ON_CPU},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_folder_of_any_number_of_images_takes_the_same_memory(run, tmp_path):
    used = []
    for count in (20, 400):
        out, err = start(
            many(tmp_path / str(count), count), run, tmp_path / f"out{count}"
        ).communicate()
        assert f"{count} of {count} images" in out, err
        used.append(float(re.search(r"([\d.]+) GiB of memory", out)[1]))
    assert used[1] < used[0] + 0.15, (
        f"400 images and their depth are {400 * 300 * 450 * 7 / 2**30:.2f} GiB"
    )


def test_a_stopped_command_goes_on_where_it_stopped(run, tmp_path):
    images, out = many(tmp_path / "in", 150), tmp_path / "out"
    process = start(images, run, out)
    end = time.monotonic() + 60
    while not (out / "done.jsonl").exists() or (out / "done.jsonl").read_text().count("\n") < 5:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    done = (out / "done.jsonl").read_text().count("\n") - 1
    assert process.returncode == 130 and 4 <= done < 150
    told, _ = start(images, run, out).communicate()
    assert (
        f"{done} of 150 images are done already" in told
        and f"{150 - done} of {150 - done} images" in told
    )
    assert len(list(out.glob("*_depth.npy"))) == 150
    assert all(np.load(out / f"{i:04d}_depth.npy").shape == (300, 450) for i in (0, done, 149))
