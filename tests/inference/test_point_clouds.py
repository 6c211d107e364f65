"""Point clouds of depthdist predict, read by another library."""

import numpy as np
import pytest
from helpers.captures import capture, write_capture
from PIL import Image


def read_ply(path):
    """Return points and colors as another library reads them."""
    import trimesh

    cloud = trimesh.load(path)
    return np.asarray(cloud.vertices), np.asarray(cloud.colors)[:, :3]


def test_a_capture_gets_its_points_along_its_own_rays(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy", seed=3)
    rgb, xyz = capture(3)
    assert predict(tmp_path / "in", "--save", "npy,ply").code == 0
    depth = np.load(tmp_path / "out/a_depth.npy")
    found, colors = read_ply(tmp_path / "out/a_cloud.ply")
    assert len(found) == depth.size
    assert (colors.reshape(rgb.shape) == rgb).all()
    found = found.reshape(*depth.shape, 3)
    assert np.abs(found[..., 2] - depth).max() < 1e-3
    seen = np.isfinite(xyz).all(axis=2) & (xyz[..., 2] > 0)
    assert (
        np.abs(found[seen][:, :2] / found[seen][:, 2:] - xyz[seen][:, :2] / xyz[seen][:, 2:]).max()
        < 1e-5
    )


def test_points_need_a_field_of_view_or_intrinsics_and_a_line_says_so(predict, tmp_path):
    Image.fromarray(capture(3, size=(30, 40))[0]).save(tmp_path / "a.png")
    done = predict(tmp_path / "a.png", "--save", "npy,ply")
    assert done.code == 0
    assert "no .ply of 1 images" in done.out
    assert "--fov" in done.out
    assert not (tmp_path / "out/a_cloud.ply").exists()
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
    assert fov[0, 0, 0] / fov[0, 0, 2] == pytest.approx((0.5 - 20) / 20, rel=1e-5)
    assert fov[0, 0, 1] / fov[0, 0, 2] == pytest.approx((0.5 - 15) / 20, rel=1e-5)
