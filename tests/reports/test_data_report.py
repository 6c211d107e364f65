"""tools/report.py data: what the page says, against what was planted."""

import numpy as np
import pytest
from helpers.captures import HOSTILE, capture, stem_of, write_capture, write_raw
from helpers.commands import command
from helpers.depth_images import write_image, write_pair, write_ultralytics
from helpers.html_pages import read
from helpers.runs import make_shards
from PIL import Image


def test_the_page_of_raw_captures_lists_what_was_rejected_and_why(tmp_path):
    raw = write_raw(tmp_path / "raw", 5, minutes=20)
    (raw / "images/21-12-03-10-20-00_Zivid_acquisition_color.png").write_bytes(b"cut off")
    _, xyz = capture(7)
    write_capture(raw / "images/m_color.png", raw / "depth/m_rawDepth.npy")
    np.save(raw / "depth/m_rawDepth.npy", xyz / 1000)
    (raw / "images/alone_color.png").write_bytes((raw / "images/m_color.png").read_bytes())
    done = command("tools/report.py", "data", raw, "--workers", 1)
    text = read(tmp_path / "raw-report.html")
    assert done.code == 0
    assert "raw captures, 4 captures" in text
    assert "looks like metres" in text
    assert "a picture without its point cloud" in text
    assert "cannot be read as a picture" in text
    z = np.stack([capture(i)[1][..., 2] for i in (0, 2, 3, 4)])
    assert f"{np.nanmin(z):.2f} .. {np.nanmax(z):.2f} mm" in text
    assert f"{np.isfinite(z).mean():.1%} of the pixels" in text


def test_the_page_of_depth_images_says_unit_camera_split_and_what_is_left_out(tmp_path):
    raw = write_ultralytics(tmp_path / "raw", train=3, val=1)
    write_image(raw / "images/train/alone.jpg")
    fx, fy, cx, cy = 50, 60, 20.5, 13.5
    (raw / "K.txt").write_text(f"{fx} 0 {cx}\n0 {fy} {cy}\n0 0 1\n")
    write_pair(raw, "more/rgb/a.jpg", "more/depth/a.png", 9)
    done = command("tools/report.py", "data", raw, "--workers", 1)
    assert done.code == 0, done
    text = read(tmp_path / "raw-report.html")
    for words in (
        "raw captures, 5 captures",
        "3 train, 1 val",
        "unit: not known of 1 depth image,",
        "K.txt, of 5 depth images",
        "1 image (images/train/alone.jpg) without depth",
    ):
        assert words in text, words
    done = command("tools/report.py", "data", raw, "--workers", 1, "--unit", 3, "--images", 1)
    z = np.stack([3 * np.round(4 * capture(i)[1][..., 2]) for i in range(4)])
    assert f"{np.nanmax(z):.2f} mm" in read(tmp_path / "raw-report.html")


def test_shards_are_counted_by_split(tmp_path):
    data = make_shards(tmp_path)
    assert (
        command(
            "tools/report.py", "data", data, "--out", tmp_path / "page.html", "--workers", 1
        ).code
        == 0
    )
    text = read(tmp_path / "page.html")
    assert "14 (11 train, 3 val)" in text
    assert "No file was rejected" in text


def test_images_of_two_splits_are_named_on_the_page_of_shards(tmp_path):
    write_raw(tmp_path / "raw", 4)
    for folder in ("images", "depth"):
        first, *_, last = sorted((tmp_path / "raw" / folder).iterdir())
        last.write_bytes(first.read_bytes())
    groups = tmp_path / "groups.csv"
    groups.write_text("".join(f"{stem_of(i)},{'val' if i == 3 else 'train'}\n" for i in range(4)))
    data = make_shards(tmp_path, split="file", groups=str(groups))
    done = command("tools/report.py", "data", data, "--workers", 1)
    assert done.code == 0, done
    assert "1 of 1 images of val are in train as well" in read(tmp_path / "shards-report.html")


def test_planted_faults_are_found_and_clean_captures_are_not_accused(tmp_path):
    for name in ("clean", "bright", "plateau", "flying"):
        write_capture(tmp_path / f"raw/{name}.png", tmp_path / f"raw/{name}.npy", 3, (60, 80))
    Image.fromarray(np.full((60, 80, 3), 255, np.uint8)).save(tmp_path / "raw/bright.png")
    xyz = np.load(tmp_path / "raw/plateau.npy")
    xyz[:20, :, 2] = 700.0
    np.save(tmp_path / "raw/plateau.npy", xyz)
    xyz = np.load(tmp_path / "raw/flying.npy")
    xyz[5::9, 5::9, 2] += 150.0
    np.save(tmp_path / "raw/flying.npy", xyz)
    assert command("tools/report.py", "data", tmp_path / "raw", "--workers", 1).code == 0
    text = read(tmp_path / "raw-report.html").split("What looks wrong")[2].split("Rejected")[0]
    assert "bright 100.0% of the picture is saturated" in text
    assert "very same depth, 700.00 mm" in text
    assert "stand alone in space" in text
    assert "clean" not in text
    assert text.count("stand alone in space (flying pixels)") == 1


def test_of_what_many_captures_have_the_worst_are_named(tmp_path):
    for i in range(9):
        write_capture(tmp_path / f"raw/c{i}.png", tmp_path / f"raw/c{i}.npy", 3, (60, 80))
        picture = np.full((60, 80, 3), 90, np.uint8)
        picture[: 10 + 5 * i] = 255
        Image.fromarray(picture).save(tmp_path / f"raw/c{i}.png")
    assert command("tools/report.py", "data", tmp_path / "raw", "--workers", 1).code == 0
    text = read(tmp_path / "raw-report.html").split("What looks wrong")[2].split("Rejected")[0]
    shares = [f"{(10 + 5 * i) / 60:.1%} of the picture is saturated" for i in range(9)]
    assert [share in text for share in shares] == [
        True,
        False,
        False,
        False,
        True,
        True,
        True,
        True,
        True,
    ], "the five worst, and the least"
    assert f"and 4 more of 9 down to: {shares[0]}" in text


def test_hostile_files_are_rejected_and_never_stop_the_page(tmp_path):
    if not HOSTILE.exists():
        pytest.skip("../shared/hostile is absent")
    import shutil

    shutil.copytree(HOSTILE, tmp_path / "raw")
    write_capture(tmp_path / "raw/fine.png", tmp_path / "raw/fine.npy")
    assert command("tools/report.py", "data", tmp_path / "raw", "--workers", 1).code == 0
    assert "fine" in read(tmp_path / "raw-report.html")


def test_a_damaged_sample_is_one_line_of_the_page(tmp_path):
    data = make_shards(tmp_path)
    shard = next((data / "val").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[2000:2100] = bytes(100)
    shard.write_bytes(content)
    assert command("tools/report.py", "data", data, "--workers", 1).code == 0
    text = read(data.with_name(f"{data.name}-report.html"))
    assert "13 captures" in text
    assert "val sample 0" in text
    assert "CRC-32" in text


def test_a_single_depth_gets_a_warning_and_far_depths_count(tmp_path):
    _, xyz = capture(1)
    for name, z in (("a", 1000.0), ("b", 1000.0)):
        write_capture(tmp_path / f"flat/{name}.png", tmp_path / f"flat/{name}.npy", 1)
        np.save(
            tmp_path / f"flat/{name}.npy",
            np.where(np.isnan(xyz), np.nan, [1.0, 2.0, z]).astype(np.float32),
        )
    assert command("tools/report.py", "data", tmp_path / "flat", "--workers", 1).code == 0
    assert "there is nothing to normalise" in read(tmp_path / "flat-report.html")
    write_capture(tmp_path / "far/a.png", tmp_path / "far/a.npy", 1)
    far = xyz * 15
    np.save(tmp_path / "far/a.npy", far)
    assert command("tools/report.py", "data", tmp_path / "far", "--workers", 1).code == 0
    z = far[..., 2][np.isfinite(far[..., 2])].astype(float)
    assert f"mean {z.mean():.0f}, std {z.std():.0f}" in read(tmp_path / "far-report.html")
