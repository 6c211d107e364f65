"""`depthdist.load` and what its model predicts: every kind of model, image and result."""

import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.captures import capture, write_capture
from helpers.commands import command
from helpers.point_files import write_zdf
from helpers.predictions import predict_by_formula
from PIL import Image

import depthdist

pytestmark = pytest.mark.filterwarnings("ignore:the image of .* has another aspect")
RGB, XYZ = capture(seed=3)


@pytest.fixture(scope="module")
def loaded(run):
    return depthdist.load(run, device="cpu")


@pytest.fixture
def image_path(tmp_path):
    """A PNG with its points beside it."""
    write_capture(tmp_path / "a.png", tmp_path / "a.npy", seed=3)
    return tmp_path / "a.png"


# ------------------------------------------------------------------------------------------- images


def test_depth_is_the_networks_output_in_mm_at_the_images_own_size(loaded, model):
    result = loaded.predict(RGB)
    assert result.depth_mm.dtype == np.float32
    assert result.depth_mm.shape == (30, 40)
    assert result.depth_mm.std() > 5, "nothing to see"
    assert np.abs(result.depth_mm - predict_by_formula(model, RGB)).max() < 0.01
    assert (result.rgb == RGB).all()
    assert repr(result).startswith("DepthResult(30 x 40, ")


def as_given(kind, path):
    shutil.copy(path, path.with_name("copy"))
    write_zdf(path.with_name("camera.zdf"), RGB, XYZ)
    return {
        "a path": path,
        "text": str(path),
        "a PIL image": Image.open(path),
        "a PIL image with alpha": Image.open(path).convert("RGBA"),
        "rows from the right": RGB[:, ::-1][:, ::-1],
        "a camera's file": path.with_name("camera.zdf"),
        "a path without suffix": path.with_name("copy"),
        "the points of its capture": path.with_suffix(".npy"),
        "a capture": depthdist.read_capture(path),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "a path",
        "text",
        "a PIL image",
        "a PIL image with alpha",
        "rows from the right",
        "a camera's file",
        "a path without suffix",
        "the points of its capture",
        "a capture",
    ],
)
def test_an_image_is_the_same_however_it_is_given(kind, loaded, image_path):
    result = loaded.predict(as_given(kind, image_path))
    assert (result.depth_mm == loaded.predict(RGB).depth_mm).all()


def test_a_grey_image_is_predicted(loaded):
    grey = RGB[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    assert (loaded.predict(grey).depth_mm == loaded.predict(three).depth_mm).all()


def test_an_image_of_pil_is_brought_upright_as_its_file_is(loaded, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    result = loaded.predict(Image.open(tmp_path / "turned.png"))
    assert result.depth_mm.shape == (40, 30)
    assert (result.rgb == loaded.predict(tmp_path / "turned.png").rgb).all()


def test_a_list_gives_a_list_in_its_order_whatever_the_batch(loaded, image_path):
    images = [RGB, image_path, capture(4, size=(33, 47))[0], Image.fromarray(RGB[::-1])]
    one_by_one = [loaded.predict(image).depth_mm for image in images]
    together = loaded.predict(images, batch=3)
    assert [result.depth_mm.shape for result in together] == [(30, 40)] * 2 + [(33, 47), (30, 40)]
    for result, depth_mm in zip(together, one_by_one):
        assert np.abs(result.depth_mm - depth_mm).max() < 0.01
    assert loaded.predict([]) == []


def test_two_threads_predict_with_one_model(loaded):
    images = [capture(seed)[0] for seed in range(12)]
    expected = [loaded.predict(image).depth_mm for image in images]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(loaded.predict, images))
    assert all((result.depth_mm == depth).all() for result, depth in zip(found, expected))


def test_an_image_of_another_aspect_gives_a_warning_with_the_number(loaded):
    with pytest.warns(UserWarning, match=r"30x90 has another aspect than .*, by 1?\d\d %"):
        loaded.predict(np.zeros((30, 90, 3), np.uint8))


# ------------------------------------------------------------------------------------------- points


def test_points_lie_on_the_rays_that_were_measured(loaded, image_path):
    result = loaded.predict(image_path, fov=20)
    seen = np.isfinite(XYZ[..., 2])
    assert result.points_mm.dtype == np.float32
    assert (result.points_mm[..., 2] == result.depth_mm).all()
    ratio = result.points_mm[..., :2] / result.points_mm[..., 2:]
    assert np.abs(ratio - XYZ[..., :2] / XYZ[..., 2:])[seen].max() < 1e-5
    assert (result.truth_mm[seen] == XYZ[..., 2][seen]).all()


@pytest.mark.parametrize("given_to", ["load", "predict"])
@pytest.mark.parametrize(
    "camera",
    [
        {"intrinsics": (20, 20, 20, 15)},
        {"intrinsics": np.array([20.0, 20, 20, 15])},
        {"fov": 90},
    ],
)
def test_a_camera_gives_points_where_none_were_measured(loaded, run, camera, given_to):
    if given_to == "load":
        result = depthdist.load(run, device="cpu", **camera).predict(RGB)
    else:
        result = loaded.predict(RGB, **camera)
    x, y, z = result.points_mm[29, 0]
    assert (x / z, y / z) == pytest.approx(((0.5 - 20) / 20, (29.5 - 15) / 20))


def test_points_of_half_the_images_size_give_its_camera_and_truth(loaded, tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy", seed=3)
    truth_mm = depthdist.read_capture(tmp_path / "a.png").points_mm[:, :, 2]
    large = Image.fromarray(RGB).resize((80, 60))
    large.save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", depthdist.read_capture(tmp_path / "a.png")):
        result = loaded.predict(image)
        x, _, z = result.points_mm[30, 70]
        assert result.depth_mm.shape == (60, 80)
        assert x / z == pytest.approx((70.5 / 2 - 21) / 50, rel=1e-4)
        np.testing.assert_array_equal(result.truth_mm[::2, 1::2], truth_mm)


def test_an_unknown_camera_is_said_where_points_are_asked_for(loaded):
    with pytest.raises(ValueError, match=r"camera of this image is not known: .*fov=DEGREES"):
        loaded.predict(RGB).points_mm  # noqa: B018


# -------------------------------------------------------------------------------------------- files


def test_results_are_saved_as_their_suffix_says(loaded, image_path, tmp_path):
    import trimesh

    result = loaded.predict(image_path)
    assert (np.load(result.save(tmp_path / "depth.npy")) == result.depth_mm).all()
    with Image.open(result.save(str(tmp_path / "depth.PNG"))) as image:
        levels, unit = np.asarray(image), float(image.text["unit_mm"])
    assert levels.dtype == np.uint16
    assert np.abs(levels * unit - result.depth_mm).max() <= 0.0501
    cloud = trimesh.load(result.save(tmp_path / "cloud.ply"))
    assert np.abs(cloud.vertices - result.points_mm.reshape(-1, 3)).max() < 1e-3
    assert (np.asarray(cloud.colors)[:, :3] == RGB.reshape(-1, 3)).all()


def test_colors_are_those_of_the_command(loaded, run, image_path, tmp_path):
    words = ["--run", run, "--out", tmp_path / "out", "--save", "colour"]
    assert command("launch/predict.py", image_path, *words).code == 0
    with Image.open(tmp_path / "out/a_colour.png") as image:
        assert (loaded.predict(image_path).colored == np.asarray(image)).all()


def test_an_image_is_not_replaced_by_its_depth(loaded, image_path):
    before = image_path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.png: is the image itself"):
        loaded.predict(image_path).save(image_path)
    assert image_path.read_bytes() == before


def test_another_suffix_is_one_line(loaded, tmp_path):
    with pytest.raises(ValueError, match=r"suffix is '\.jpg'; expected one of \.npy, \.png, \.ply"):
        loaded.predict(RGB).save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- models


def test_run_adapter_and_exported_model_predict_the_same(loaded, run, tmp_path):
    assert command("launch/export.py", run, tmp_path, "--forms", "model").code == 0
    expected = loaded.predict(RGB).depth_mm
    adapter = depthdist.load(run / "best", device="cpu")
    assert (adapter.predict(RGB).depth_mm == expected).all()
    assert (adapter.record.near_mm, adapter.record.size) == (
        loaded.record.near_mm,
        loaded.record.size,
    )
    exported = depthdist.load(str(tmp_path / "model"), device="cpu")
    assert np.abs(exported.predict(RGB).depth_mm - expected).max() < 0.05


def test_a_model_of_the_hub_is_loaded_with_its_depth_range(run, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--maker--small/snapshots/0123"
    shutil.copytree(run.parents[1] / "dav2", snapshot)
    (tmp_path / "models--maker--small/refs").mkdir()
    (tmp_path / "models--maker--small/refs/main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="give near_mm and far_mm, the nearest and farthest"):
        depthdist.load("maker/small", device="cpu")
    model = depthdist.load("maker/small", near_mm=300, far_mm=4000, size=(28, 42), device="cpu")
    depth_mm = model.predict(RGB).depth_mm
    assert depth_mm.min() > 0
    assert depth_mm.max() <= 4000.01
    assert repr(model) == "LoadedModel('maker/small', 300 .. 4000 mm, on cpu)"


def test_mirroring_and_refinement_are_those_of_the_command(run, image_path, tmp_path):
    words = ["--run", run, "--out", tmp_path / "out", "--refine", "guided", "--flip"]
    assert command("launch/predict.py", image_path, *words, "--save", "npy").code == 0
    result = depthdist.load(run, refine="guided", flip=True, device="cpu").predict(image_path)
    assert np.abs(result.depth_mm - np.load(tmp_path / "out/a_depth.npy")).max() < 0.01


def test_loading_leaves_warnings_and_switches_of_transformers_as_they_were(run):
    from transformers.utils import logging

    logging.set_verbosity_info()
    logging.enable_progress_bar()
    filters = list(warnings.filters)
    try:
        depthdist.load(run, device="cpu")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        assert warnings.filters == filters
    finally:
        logging.set_verbosity_error()
        logging.disable_progress_bar()


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"near_mm": 500}, "near_mm and far_mm: expected both or neither"),
        ({"size": (30, 42)}, "size is 30x42: expected multiples of 14"),
        (
            {"refine": "guide"},
            "refine is 'guide': expected plain, guided, tiles, detail; did",
        ),
        ({"target": "metric"}, "target is 'metric': expected inverse, linear"),
        ({"fov": 180}, "fov is 180: expected degrees above 0 and below 180"),
        ({"fov": 60, "intrinsics": (1, 1, 1, 1)}, "intrinsics and fov: expected one of them"),
        ({"intrinsics": np.eye(3)}, r"intrinsics is 1,0,0,0,1,0,0,0,1: expected fx,fy,cx,cy"),
        ({"near_mm": 1, "far_mm": 2}, "near_mm, far_mm, size and target are for adapters without"),
        ({"device": "cuda:99"}, "device is cuda:99: cannot be used here"),
        ({"device": "gpu"}, "device is gpu: cannot be used here"),
    ],
)
def test_wrong_arguments_of_load_are_one_line_that_names_them(run, given, text):
    with pytest.raises(ValueError, match=text) as caught:
        depthdist.load(run, **given)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_all_wrong_arguments_are_named_at_once(run):
    with pytest.raises(ValueError, match=r"far_mm is -1(.|\n)*\nfov is 0(.|\n)*\nrefine is 'x'"):
        depthdist.load(run, far_mm=-1, fov=0, refine="x")


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^run .*/nothing: no such folder, and not a hub id"):
        depthdist.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no adapter here"):
        depthdist.load(tmp_path)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (RGB.astype(np.float32), r"the image is float32 of shape \(30, 40, 3\); expected a path"),
        (RGB[None], r"the image is uint8 of shape \(1, 30, 40, 3\)"),
        (RGB[:0], r"the image is uint8 of shape \(0, 40, 3\)"),
        (3, "image is of type int; expected a path"),
        (Image.new("I;16", (4, 4)), "the image's mode is I;16, more than 8 bits a channel"),
        ("/no/such.png", "/no/such.png: cannot be read as a picture"),
        ("/", "/: is a folder; expected an image, or a list of images"),
    ],
)
def test_what_is_no_image_is_one_line(loaded, image, text):
    with pytest.raises(ValueError, match=text) as caught:
        loaded.predict([RGB, image])
    assert "\n" not in str(caught.value)


def test_wrong_arguments_of_predict_are_named(loaded):
    with pytest.raises(ValueError, match=r"intrinsics is 1,2: expected(.|\n)*batch is 0: expected"):
        loaded.predict(RGB, intrinsics=(1, 2), batch=0)
    with pytest.raises(ValueError, match=r"fov is 'a': expected degrees(.|\n)*batch is '2': expec"):
        loaded.predict(RGB, fov="a", batch="2")
