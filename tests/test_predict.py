"""launch/predict.py: the numbers, the files, and any picture a person may have."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captures import HOSTILE, capture, write_capture, write_raw
from PIL import Image
from ranks import command, make_model, make_shards, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    assert train(make_shards(folder, 6), folder / "runs/first", "--epochs", 1, "--model", make_model(folder / "dav2")).code == 0
    return folder / "runs/first"


@pytest.fixture
def predict(run, tmp_path):
    """The command on pictures; its results are in tmp_path / "out"."""
    return lambda *words: command("launch/predict.py", *words, "--run", run, "--out", tmp_path / "out")


@pytest.fixture(scope="module")
def model(run):
    from depthdist.checkpoint import load_adapter

    return load_adapter(run / "best")


def by_hand(model, rgb):
    """(H, W) mm: the formulas of the recipe, on the network alone."""
    network, record = model
    small = np.asarray(Image.fromarray(rgb).resize((record.width, record.height), Image.Resampling.BICUBIC), np.float64)
    pixels = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        found = network.net(pixel_values=torch.from_numpy(pixels).permute(2, 0, 1)[None].float()).predicted_depth
        found = F.interpolate(found[None], size=rgb.shape[:2], mode="bicubic", align_corners=False)[0, 0].double().numpy()
    low, high = 1 / record.far_mm, 1 / record.near_mm
    return 1 / (low + np.clip(found, 0, None) * (high - low))


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("size", [(30, 40), (28, 42), (101, 37)])
def test_depth_is_the_networks_in_mm_at_the_pictures_own_size(size, predict, model, tmp_path):
    rgb = capture(seed=5, size=size)[0]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png")
    assert done.code == 0 and "1 of 1 pictures" in done.out, done
    assert names(tmp_path / "out") == ["a_depth.npy", "a_depth_0.1mm.png", "a_figure.png"]
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
    from depthdist.depth import Bounds
    from depthdist.predict import write

    depth = np.array([[500.4, 8000.6], [70000.0, 1200.0]], np.float32)
    write(tmp_path, "a", depth, Bounds(300, 9000))
    with Image.open(tmp_path / "a_depth_1mm.png") as image:
        assert image.text["unit_mm"] == "1" and np.asarray(image).tolist() == [[500, 8001], [65535, 1200]]


def test_a_figure_has_the_truth_where_the_cloud_is_beside_in_either_layout(predict, run, tmp_path):
    write_raw(tmp_path / "two", 1)
    write_capture(tmp_path / "one/b.png", tmp_path / "one/b.npy", seed=1)
    write_capture(tmp_path / "none/c.png", tmp_path / "gone.npy", seed=2)
    done = predict(tmp_path / "two/images", tmp_path / "one", tmp_path / "none")
    assert done.code == 0 and "3 of 3 pictures" in done.out, done
    stem = next((tmp_path / "two/images").iterdir()).stem
    width = {name: Image.open(tmp_path / f"out/{name}_figure.png").width for name in (stem, "b", "c")}
    assert width[stem] == width["b"] > 1.8 * width["c"], "four panels against two"
    bare = command("launch/predict.py", tmp_path / "one", "--run", run, "--out", tmp_path / "bare", "--no-figures")
    assert bare.code == 0 and names(tmp_path / "bare") == ["b_depth.npy", "b_depth_0.1mm.png"]
    adapter = command("launch/predict.py", tmp_path / "one", "--run", run / "best", "--out", tmp_path / "adapter", "--no-figures")
    assert adapter.code == 0 and (tmp_path / "adapter/b_depth.npy").read_bytes() == (tmp_path / "bare/b_depth.npy").read_bytes()


def test_the_same_name_in_two_folders_is_kept_apart(predict, model, tmp_path):
    for seed, folder in enumerate(("left", "right")):
        write_capture(tmp_path / folder / "a.png", tmp_path / folder / "deep/a2.npy", seed=seed)
    shutil.copy(tmp_path / "left/a.png", tmp_path / "left/other.jpeg.png")
    done = predict("--no-figures", tmp_path / "left", tmp_path / "right/a.png")
    assert done.code == 0, done
    found = [n for n in names(tmp_path / "out") if n.endswith(".npy")]
    assert found == ["left_a_png_depth.npy", "other.jpeg_depth.npy", "right_a_png_depth.npy"]
    for seed, name in ((0, "left"), (1, "right")):
        wanted = by_hand(model, capture(seed)[0])
        assert np.abs(np.load(tmp_path / f"out/{name}_a_png_depth.npy") - wanted).max() < 0.01
    shutil.copytree(tmp_path / "left", tmp_path / "more/left")
    (line,) = predict(tmp_path / "left/a.png", tmp_path / "more/left/a.png").errors
    assert "two pictures would be written as left_a_png" in line


def test_a_picture_given_twice_is_predicted_once_and_results_are_no_inputs(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    for _ in range(2):
        done = predict(tmp_path / "in", tmp_path / "in/a.png", "--out", tmp_path / "in/out")
        assert done.code == 0 and "\n1 of 1" in done.out


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_turned_upright(orientation, predict, model, tmp_path):
    """The upright picture, stored turned as a camera would, with the tag that says so."""
    upright = Image.fromarray(np.kron(capture(3)[0][:6, :8], np.ones((5, 5, 1), np.uint8)))  # (30, 40), coarse
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = upright.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert predict("--no-figures", tmp_path / "a.png").code == 0
    depth = np.load(tmp_path / "out/a_depth.npy")
    assert depth.shape == (30, 40) and np.abs(depth - by_hand(model, np.asarray(upright))).max() < 0.01


@pytest.mark.skipif(not HOSTILE.exists(), reason=f"the odd pictures are not there: {HOSTILE}/images")
def test_every_odd_picture_is_predicted_or_is_one_line(predict, tmp_path):
    pictures = sorted((HOSTILE / "images").iterdir())
    done = predict("--no-figures", HOSTILE / "images")
    failed = {line.split(": ")[0] for line in done.errors}
    assert len(failed) == len(done.errors), "one line each"
    predicted = {n.removesuffix("_depth.npy") for n in names(tmp_path / "out") if n.endswith(".npy")}
    for picture in pictures:
        assert (picture.stem in predicted) != (str(picture) in failed), picture
    unreadable = {"broken_data_stream.png", "seek_too_large.tif", "truncated_end_chunk.png", "truncated_image.png", "unknown_compression_method.png"}
    assert unreadable <= {p.rsplit("/")[-1] for p in failed} and len(predicted) >= 30
    assert f"{len(predicted)} of {len(pictures)} pictures" in done.out
    assert all(np.isfinite(np.load(tmp_path / f"out/{name}_depth.npy")).all() for name in predicted)


def test_a_bad_picture_is_one_line_and_the_others_are_done(predict, tmp_path):
    write_raw(tmp_path / "in", 2)
    (tmp_path / "in/images/broken.png").write_bytes(b"not a picture")
    done = predict("--no-figures", tmp_path / "in/images")
    (line,) = done.errors
    assert str(tmp_path / "in/images/broken.png") in line and len(names(tmp_path / "out")) == 4 and "2 of 3 pictures" in done.out


def test_a_one_pixel_picture_has_its_figure_too(predict, tmp_path):
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "dot.png")
    Image.new("RGB", (700, 3)).save(tmp_path / "strip.png")
    assert predict(tmp_path / "dot.png", tmp_path / "strip.png").code == 0
    assert np.load(tmp_path / "out/dot_depth.npy").shape == (1, 1) and (tmp_path / "out/strip_figure.png").exists()


def test_a_cloud_of_another_size_is_said_and_the_picture_is_predicted(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    np.save(tmp_path / "in/a.npy", capture(size=(10, 12))[1])
    (line,) = predict(tmp_path / "in").errors
    assert "drawn without truth" in line and (tmp_path / "out/a_figure.png").exists()


def test_a_broken_cloud_does_not_stop_its_picture(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    (tmp_path / "in/a.npy").write_bytes(b"not numbers")
    done = predict(tmp_path / "in")
    assert "a.npy" in "".join(done.errors) and (tmp_path / "out/a_depth.npy").exists()


def test_what_is_missing_is_one_clear_line(run, predict, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (line,) = command("launch/predict.py", tmp_path / "a.png", "--run", run.with_name("frist"), "--out", tmp_path / "out").errors
    assert str(run.with_name("frist")) in line and "depthdist.json" in line
    (line,) = predict().errors
    assert line.startswith("INPUTS is missing")
    (line,) = predict(tmp_path / "absent.png").errors
    assert "no such file or folder" in line
    (tmp_path / "empty").mkdir()
    (line,) = predict(tmp_path / "empty").errors
    assert "no pictures" in line
    lines = command("launch/predict.py", tmp_path / "a.png", "--rnu", run).errors
    assert any("unknown setting --rnu; did you mean --run" in line for line in lines)
    assert not (tmp_path / "out").exists()
