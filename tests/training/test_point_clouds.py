"""Ground truth and prediction as one point cloud: which points, where, and from where seen."""

import numpy as np
import pytest
from helpers.views import boxes
from tensorboard.plugins.mesh import metadata
from tensorboard.util.tensor_util import make_ndarray

from depthdist.geometry.camera import pinhole
from depthdist.training.point_clouds import MAX_POINTS, CaptureCloud


@pytest.fixture
def capture():
    """Depth, mask, RGB and camera of boxes; 240 x 320 pixels, 5 % of them holes."""
    view = boxes(size=(240, 320))
    depth_mm = view.xyz[..., 2]
    meta = pinhole((240, 320), 352, 352, 160, 120)
    return view.xyz, depth_mm, np.isfinite(depth_mm), np.asarray(view.image), meta


def arrays(summary):
    """The clouds' vertices and colors, as the mesh tab reads them."""
    found = {}
    for value in summary.value:
        kind = metadata.parse_plugin_metadata(value.metadata.plugin_data.content).content_type
        found[kind] = make_ndarray(value.tensor)[0]
    return found[1], found[3]


def test_20_000_points_of_the_truth_and_as_many_of_the_prediction_stand_side_by_side(capture):
    xyz, depth_mm, mask, rgb, meta = capture
    cloud = CaptureCloud.of(depth_mm, mask, rgb, meta)
    vertices, colors = arrays(cloud.beside(depth_mm, depth_mm + 100, "validation 0"))
    truth, pred = np.split(vertices, 2)
    assert truth.shape == pred.shape == (MAX_POINTS, 3) and np.isfinite(vertices).all()
    known = xyz.reshape(-1, 3)[cloud.pixels]
    gap = truth[0] * [1, -1, -1] * cloud.unit_mm - known[0]
    np.testing.assert_allclose(
        truth * [1, -1, -1] * cloud.unit_mm - known, [gap] * MAX_POINTS, atol=0.2
    )
    farther = (pred - truth)[:, 2] * cloud.unit_mm
    np.testing.assert_allclose(farther, -100, atol=0.01)
    assert np.percentile(truth[:, 0], 99) < np.percentile(pred[:, 0], 1)
    pixels = rgb.reshape(-1, 3)[cloud.pixels]
    assert np.array_equal(colors, np.concatenate([pixels, pixels]))


def test_the_view_shows_both_clouds(capture):
    """Projected as three.js does it, nearly all points lie in a square canvas."""
    _, depth_mm, mask, rgb, meta = capture
    cloud = CaptureCloud.of(depth_mm, mask, rgb, meta)
    vertices, _ = arrays(cloud.beside(depth_mm, depth_mm, "validation 0"))
    camera = cloud.view()["camera"]
    back = np.array(camera["position"]) / np.linalg.norm(camera["position"])
    right = np.cross([0, 1, 0], back)
    axes = np.stack([right / np.linalg.norm(right), np.cross(back, right), back])
    seen = (vertices - camera["position"]) @ axes.T
    at = seen[:, :2] / -seen[:, 2:] / np.tan(np.radians(camera["fov"] / 2))
    assert (np.abs(at) < 1).all(axis=1).mean() > 0.98
    assert np.ptp(at[:, 0]) > 1, "they fill the view"
    assert (camera["near"] < -seen[:, 2]).all() and (-seen[:, 2] < camera["far"]).all()


def test_the_clouds_of_a_larger_image_have_the_colors_of_its_pixels(capture):
    _, depth_mm, mask, rgb, meta = capture
    large = rgb.repeat(2, axis=0).repeat(2, axis=1)
    small_cloud, cloud = (CaptureCloud.of(depth_mm, mask, image, meta) for image in (rgb, large))
    assert np.array_equal(cloud.colors, small_cloud.colors)


def test_without_a_measured_pixel_there_is_no_cloud(capture):
    _, depth_mm, mask, rgb, meta = capture
    assert CaptureCloud.of(depth_mm, mask & False, rgb, meta) is None


def test_a_camera_that_is_not_known_is_said(capture):
    _, depth_mm, mask, rgb, meta = capture
    known, unknown = (CaptureCloud.of(depth_mm, mask, rgb, m) for m in (meta, {"size": [240, 320]}))
    assert "camera is not known" in unknown.describe("a")
    assert "camera is not known" not in known.describe("a")
