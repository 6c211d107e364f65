"""What depthdist predict has finished: resuming, and results that are not overwritten."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from helpers.captures import ROOT, write_capture
from helpers.commands import ON_CPU
from PIL import Image
from safetensors.torch import load_file, save_file


def test_finished_images_are_skipped_and_other_settings_are_refused(predict, tmp_path):
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
    assert done.code == 0, done
    assert "1 of 3 images are done already" in done.out, done
    assert "2 of 2 images" in done.out, done
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.npy")}
    assert [name for name in sorted(after) if after[name] != before[name]] == [
        "0_depth.npy",
        "2_depth.npy",
    ]
    assert "3 of 3 images are done already" in predict(tmp_path / "in", "--save", "npy").out
    (line,) = predict(tmp_path / "in", "--save", "npy", "--flip").errors
    assert "with other settings" in line
    assert "--again" in line
    assert predict(tmp_path / "in", "--save", "npy", "--flip", "--again").code == 0


def test_an_image_counts_as_done_only_if_input_results_and_weights_are_the_same(
    run, predict, tmp_path
):
    for day in ("day1", "day2"):
        write_capture(tmp_path / day / "a.png", tmp_path / "gone.npy", seed=len(day))
    assert predict(tmp_path / "day1", "--save", "npy").code == 0
    (line,) = predict(tmp_path / "day2", "--save", "npy").errors
    assert f"a_* there are of {tmp_path / 'day1/a.png'}, not of {tmp_path / 'day2/a.png'}" in line
    (tmp_path / "out/a_depth.npy").unlink()
    assert "1 of 1 images: depth" in predict(tmp_path / "day1", "--save", "npy").out
    assert (tmp_path / "out/a_depth.npy").exists()
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
        assert done.code == 0, done
        assert "1 of 1 images" in done.out, done
    Image.new("RGB", (20, 20)).save(tmp_path / "b_figure.png")
    assert predict(tmp_path / "b_figure.png", "--out", tmp_path).code == 0, (
        "what is named is wanted"
    )
    (tmp_path / "in/a.png").unlink()
    (line,) = predict(tmp_path / "in", "--out", tmp_path / "in").errors
    assert "no images beside results of earlier predictions" in line


def test_no_input_is_overwritten(predict, tmp_path):
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


def write_many(folder, count, size=(300, 450)):
    """Pictures that differ, stored without compression's work."""
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((*size, 3), i % 256, np.uint8)).save(folder / f"{i:04d}.bmp")
    return folder


def start_predict(images, run, out):
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
        out, err = start_predict(
            write_many(tmp_path / str(count), count), run, tmp_path / f"out{count}"
        ).communicate()
        assert f"{count} of {count} images" in out, err
        used.append(float(re.search(r"([\d.]+) GiB of memory", out)[1]))
    assert used[1] < used[0] + 0.15, (
        f"400 images and their depth are {400 * 300 * 450 * 7 / 2**30:.2f} GiB"
    )


def test_a_stopped_command_resumes_where_it_stopped(run, tmp_path):
    images, out = write_many(tmp_path / "in", 150), tmp_path / "out"
    process = start_predict(images, run, out)
    end = time.monotonic() + 60
    while not (out / "done.jsonl").exists() or (out / "done.jsonl").read_text().count("\n") < 5:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    done = (out / "done.jsonl").read_text().count("\n") - 1
    assert process.returncode == 130
    assert 4 <= done < 150
    text, _ = start_predict(images, run, out).communicate()
    assert f"{done} of 150 images are done already" in text
    assert f"{150 - done} of {150 - done} images" in text
    assert len(list(out.glob("*_depth.npy"))) == 150
    assert all(np.load(out / f"{i:04d}_depth.npy").shape == (300, 450) for i in (0, done, 149))
