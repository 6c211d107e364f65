"""`depthdist shard` as a person types it: exit codes, one line an error, nothing
half-written, workers, kills, full disks."""

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import HOSTILE, SHARD, capture, write_capture, write_python_2_npy, write_raw
from helpers.commands import command
from helpers.point_files import WRITERS as POINT_FILES
from PIL import Image

SMALL = ["--size", "28x42"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"), 6)


def run(*words, **how):
    return subprocess.run(
        [*SHARD, *map(str, words)], capture_output=True, text=True, timeout=60, **how
    )


def errors(result, code=2):
    """The error lines, once the exit code is right and nothing looks like a traceback."""
    assert result.returncode == code and "Traceback" not in result.stderr, result
    return [line for line in result.stderr.splitlines() if line.startswith("shard.py: error: ")]


def final_files(out: Path):
    return sorted(
        p.relative_to(out).as_posix()
        for p in out.rglob("*")
        if p.is_file() and ".build" not in p.parts and p.name != ".lock"
    )


def test_odd_but_readable_files_print_no_warning_in_any_process(tmp_path):
    raw = write_raw(tmp_path / "raw", 4)
    for path in raw.rglob("*.npy"):
        write_python_2_npy(path, np.load(path))
    words = [raw, tmp_path / "out", "--size", "28x42", "--workers", "2"]
    done = subprocess.run([*SHARD, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done
    assert "Warning" not in done.stderr + done.stdout


def test_shards_summary_and_verify(raw, tmp_path):
    out = tmp_path / "out"
    result = run(raw, out, *SMALL, "--workers", 2)
    assert result.returncode == 0, result.stderr
    tables = ["index.json", "names-HASH.txt", "rejects.jsonl", "samples-HASH.npy"]
    assert [re.sub("[0-9a-f]{16}", "HASH", name) for name in final_files(out)] == [
        *tables,
        *(f"{s}/shard-000000.{e}" for s in ("train", "val") for e in ("json", "tar")),
    ]
    rows = [line.split()[:3] for line in result.stdout.splitlines()]
    assert ["train", "5", "1"] in rows
    assert ["val", "1", "1"] in rows
    assert "off by 0.03052 mm at most" in result.stdout
    assert (
        "note: 1 of 1 validation pairs" not in result.stdout
    )  # one session: nothing could be kept apart
    checked = run("--verify", out)
    assert checked.returncode == 0
    assert "all right: 2 shards, 6 samples" in checked.stdout
    again = run(raw, out, *SMALL)
    assert again.returncode == 0
    assert again.stdout.startswith("nothing to do")
    assert "sharding" not in again.stderr
    tar = out / "train/shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[3000] ^= 255
    tar.write_bytes(content)
    broken = run("--verify", out)
    assert "crc32" in broken.stdout
    assert "2 problems found" in errors(broken)[0]


@pytest.fixture(scope="module")
def samples_of_formats(tmp_path_factory):
    """Depth and mask by stem, of shards of the same captures in a folder for each format."""
    folder = tmp_path_factory.mktemp("formats")
    writers = {"plain.npy": lambda path, rgb, xyz: np.save(path, xyz), **POINT_FILES}
    for name, write in writers.items():
        (folder / "raw" / name).mkdir(parents=True)
        for seed in range(2):
            rgb, xyz = capture(seed)
            path = folder / f"raw/{name}/{seed}.png"
            Image.fromarray(rgb).save(path)
            write(path.with_suffix(Path(name).suffix), rgb, xyz)
    done = command("tools/shard.py", folder / "raw", folder / "out", *SMALL, "--split", "none")
    assert done.code == 0, done
    with tarfile.open(folder / "out/train/shard-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    keys = {json.loads(members[n])["stem"]: n[:8] for n in members if n.endswith("meta.json")}
    kinds = ("depth.npy", "mask.npy")
    return {stem: [members[f"{key}.{kind}"] for kind in kinds] for stem, key in keys.items()}


@pytest.mark.parametrize("name", POINT_FILES)
def test_points_of_every_format_make_the_samples_that_a_npy_makes(name, samples_of_formats):
    for seed in range(2):
        assert samples_of_formats[f"{name}/{seed}"] == samples_of_formats[f"plain.npy/{seed}"]


@pytest.mark.parametrize("name", ["plain.zdf", "plain.npy"])
def test_the_lowest_snr_masks_points_and_without_an_snr_ends_in_one_line(tmp_path, name):
    (tmp_path / "raw").mkdir()
    rgb, xyz = capture()
    snr = np.arange(1200, dtype=np.float32).reshape(30, 40)
    Image.fromarray(rgb).save(tmp_path / "raw/a.png")
    path = tmp_path / f"raw/a{Path(name).suffix}"
    np.save(path, xyz) if path.suffix == ".npy" else POINT_FILES[name](path, rgb, xyz, snr)
    words = [tmp_path / "raw", tmp_path / "out", *SMALL, "--split", "none", "--min-snr", 600]
    if path.suffix == ".npy":
        assert "a.npy: has no SNR or confidence" in errors(run(*words))[0]
        return
    done = run(*words)
    assert done.returncode == 0, done
    index = json.loads((tmp_path / "out/index.json").read_text())
    kept = np.isfinite(xyz[:, :, 2]) & (snr >= 600)
    found = index["splits"]["train"]["stats"]["valid_fraction"]
    assert found == pytest.approx(kept.mean(), abs=1e-6)
    assert "SNR below 600" in done.stdout


def test_the_bytes_are_the_same_for_any_number_of_workers(raw, tmp_path):
    found = []
    for workers in (1, 3):
        assert (
            run(
                raw, tmp_path / str(workers), *SMALL, "--shard-mb", "0.015", "--workers", workers
            ).returncode
            == 0
        )
        found.append(
            {
                name: (tmp_path / str(workers) / name).read_bytes()
                for name in final_files(tmp_path / str(workers))
            }
        )
    assert found[0] == found[1]
    assert len(found[0]) > 8


def stems(raw):
    return sorted(p.name.removesuffix("_color.png") for p in (raw / "images").iterdir())


def test_groups_and_near_duplicates_are_printed_and_the_number_of_workers_does_not_matter(
    raw, tmp_path
):
    shutil.copytree(raw, tmp_path / "raw")
    first, *_, last = stems(raw)
    shutil.copy(
        tmp_path / f"raw/images/{first}_color.png", tmp_path / f"raw/images/{last}_color.png"
    )
    (tmp_path / "g.csv").write_text(
        "stem,group\n"
        + "".join(f"{stem},{'val' if stem == last else 'crate 1'}\n" for stem in stems(raw))
    )
    found = []
    for workers in (1, 3):
        result = run(
            tmp_path / "raw",
            tmp_path / str(workers),
            *SMALL,
            "--split",
            "file",
            "--groups",
            tmp_path / "g.csv",
            "--shard-mb",
            "0.015",
            "--workers",
            workers,
        )
        assert (
            result.returncode == 0
            and f"split by {tmp_path}/g.csv: 1 groups in train, 1 in val; 0 captures skipped"
            in result.stdout
        ), result
        assert "WARNING   validation resembles training (near-duplicates): 1 of 1" in result.stdout
        assert f"{last} and {first} (1.000)" in result.stdout
        found.append(
            {
                name: (tmp_path / str(workers) / name).read_bytes()
                for name in final_files(tmp_path / str(workers))
            }
        )
    assert found[0] == found[1]
    assert run("--verify", tmp_path / "1").returncode == 0


def test_what_is_wrong_with_groups_ends_in_lines_that_say_where(raw, tmp_path):
    file = tmp_path / "g.csv"
    for text, *words in (
        (None, "g.csv: cannot be read: No such file or directory"),
        (b"\xff\xfe", "g.csv: byte 0 is not UTF-8"),
        (b"".join(f"{stem},one\n".encode() for stem in stems(raw)), "val would be empty"),
        (f"{stems(raw)[0]},a\n".encode(), "5 of 6 captures have no line"),
        (
            f"{stems(raw)[0]},a\nb,b,b\nc,c\n".encode(),
            "line 2: found 3 fields",
            "line 3: c is no capture",
            "5 of 6 captures have no line",
        ),
    ):
        if text is not None:
            file.write_bytes(text)
        lines = errors(run(raw, tmp_path / "out", *SMALL, "--split", "file", "--groups", file))
        assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines)), (
            lines
        )
    assert not (tmp_path / "out").exists()


def test_depth_beyond_far_is_said_loudly_with_the_flag_that_keeps_it(raw, tmp_path):
    result = run(raw, tmp_path / "out", *SMALL, "--far", "1150", "--split", "none")
    assert "WARNING" in result.stdout
    assert "farther than 1150 mm" in result.stdout
    flag = result.stdout.split("mm: ")[1].split(" keeps")[0].split()
    flag += ["--size", "42x56"]  # the captures' aspect
    assert "WARNING" not in run(raw, tmp_path / "out", *SMALL, *flag, "--split", "none").stdout


def no_twin(folder):
    (folder / "bad.npy").unlink()


def save(change):
    return lambda folder: np.save(folder / "bad.npy", change(capture()[1]), allow_pickle=True)


def cut(folder):
    content = (folder / "bad.png").read_bytes()
    (folder / "bad.png").write_bytes(content[: len(content) // 2])


BAD = {
    "a missing twin": (no_twin, "bad.png", "without its point cloud"),
    "another size": (save(lambda x: x[:20]), "bad.png", "rgb is 30x40, xyz is 20x40"),
    "two values": (save(lambda x: x[:, :, 1:]), "bad.npy", "(30, 40, 2); expected (H, W, 3)"),
    "uint8": (save(lambda x: np.zeros(x.shape, np.uint8)), "bad.npy", "dtype is uint8"),
    "a pickle": (save(lambda x: x.astype(object)), "bad.npy", "pickled"),
    "metres": (save(lambda x: x / 1000), "bad.npy", "looks like metres"),
    "all NaN": (save(lambda x: x * np.nan), "bad.npy", "no valid pixel"),
    "beyond far": (save(lambda x: x * 100), "bad.npy", "expected 0 < Z <= 4000 mm"),
    "a truncated PNG": (cut, "bad.png", "cannot be read as a picture"),
}


def test_bad_pairs_are_listed_counted_and_decide_the_exit_code(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 3), tmp_path / "out"
    for number, (spoil, _, _) in enumerate(BAD.values()):
        write_capture(raw / str(number) / "bad.png", raw / str(number) / "bad.npy")
        spoil(raw / str(number))
    result = run(raw, out, *SMALL)
    assert f"{len(BAD)} bad files, --max-rejects is 0" in errors(result)[0]
    rejects = {
        r["path"]: r["reason"]
        for r in map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    }
    assert len(rejects) == len(BAD)
    for number, (_, name, words) in enumerate(BAD.values()):
        assert words in rejects[f"{number}/{name}"]
    assert json.loads((out / "index.json").read_text())["rejects"] == len(BAD)
    assert (
        sum(s["count"] for s in json.loads((out / "index.json").read_text())["splits"].values())
        == 3
    )
    assert run(raw, out, *SMALL, "--max-rejects", len(BAD)).returncode == 0
    assert run("--verify", out).returncode == 0


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "CMYK"])
def test_images_of_unusual_modes_are_read(tmp_path, mode):
    write_capture(tmp_path / "raw/a.tif", tmp_path / "raw/a.npy")
    Image.new(mode, (40, 30), 40000 if mode == "I;16" else (200, 100, 50, 0)).save(
        tmp_path / "raw/a.tif"
    )
    assert run(tmp_path / "raw", tmp_path / "out", *SMALL, "--split", "none").returncode == 0


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="../shared/hostile is absent")
def test_all_hostile_files_at_once_end_in_rejects(tmp_path):
    raw = write_raw(tmp_path / "raw", 2)
    for path in HOSTILE.glob("images/*"):
        target = raw / "h" / path.name.replace(".", "_", path.name.count(".") - 1)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
        np.save(target.with_suffix(".npy"), capture(size=(128, 128))[1])
    for path in HOSTILE.glob("npy/*"):
        shutil.copy(path, raw / "h" / f"n_{path.stem}.npy")
        Image.new("RGB", (128, 128)).save(raw / "h" / f"n_{path.stem}.png")
    result = run(raw, tmp_path / "out", *SMALL, "--depth-size", "train")
    count = len((tmp_path / "out/rejects.jsonl").read_text().splitlines())
    assert count > 30
    assert f"{count} bad files" in errors(result)[0]
    assert run("--verify", tmp_path / "out").returncode == 0


def test_folders_that_cannot_be_used_end_in_one_line(raw, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for source, out, words in (
        (tmp_path / "absent", tmp_path / "o", "absent: no such folder"),
        (tmp_path / "file", tmp_path / "o", "file: is a file; expected a folder of captures"),
        (tmp_path / "empty", tmp_path / "o", "empty: no pictures and no files of points or depth"),
        (raw, tmp_path / "file", "file: is a file; expected a folder for the dataset"),
        (raw, tmp_path / "file/below", "cannot be written: Not a directory"),
        (
            raw,
            "/proc/depthdist",
            "/proc/depthdist: cannot be written",
        ),  # even root has no permission there
    ):
        (line,) = errors(run(source, out, *SMALL))
        assert words in line
    assert not (tmp_path / "o").exists()
    assert "no such folder" in run("--verify", tmp_path / "absent").stdout
    assert "RAW is missing" in errors(run())[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; /proc above stands in")
def test_no_write_permission_ends_in_one_line(raw, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    assert "Permission denied" in errors(run(raw, tmp_path / "out", *SMALL))[0]


def test_nothing_usable_at_all_ends_in_one_line(tmp_path):
    write_capture(tmp_path / "raw/a.png", tmp_path / "raw/a.npy")
    np.save(tmp_path / "raw/a.npy", capture()[1] / 1000)
    (line,) = errors(run(tmp_path / "raw", tmp_path / "out", *SMALL, "--split", "none"))
    assert "no usable pair" in line
    assert "looks like metres" in line
    assert final_files(tmp_path / "out") == ["rejects.jsonl"]


def test_a_write_that_fails_leaves_nothing_and_the_next_run_succeeds(raw, tmp_path):
    def limit():  # a real failing write: EFBIG, as ENOSPC would arrive
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (15000, 15000))

    (line,) = errors(run(raw, tmp_path / "out", *SMALL, "--workers", 2, preexec_fn=limit))
    assert "the shard cannot be written: File too large" in line
    assert final_files(tmp_path / "out") == []
    assert not list(tmp_path.rglob("*.tmp-*"))
    assert run(raw, tmp_path / "out", *SMALL).returncode == 0
    assert run("--verify", tmp_path / "out").returncode == 0


def test_a_full_disk_leaves_nothing_and_the_next_run_succeeds(raw, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
        ).returncode
    ):
        pytest.skip("a tiny file system cannot be mounted here")
    try:
        (disk / "filler").write_bytes(bytes(230_000))
        (line,) = errors(run(raw, disk / "out", *SMALL, "--split", "none"))
        assert "No space left on device" in line
        assert final_files(disk / "out") == []
        assert not list(disk.rglob("*.tmp-*"))
        (disk / "filler").unlink()
        assert run(raw, disk / "out", *SMALL, "--split", "none").returncode == 0
        assert run("--verify", disk / "out").returncode == 0
    finally:
        subprocess.run(["umount", "-l", disk])


def test_two_runs_into_one_folder_do_not_meet(raw, tmp_path):
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another depthdist shard is writing here" in errors(run(raw, tmp_path, *SMALL))[0]


def started(raw, out):
    """A run in its own process group, once a first shard is whole: its commit record, written after
    the tar, is there."""
    process = subprocess.Popen(
        [*SHARD, raw, out, "--workers", "2", "--shard-mb", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(out.glob(".build/*/*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


def children(pid):
    """The workers of a running command; gone ones are left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if int(parent) == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            pass
    return found


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("slow"), 60)


def test_a_killed_run_goes_on_and_leaves_no_process(slow, tmp_path):
    process = started(slow, tmp_path)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert workers
    assert not [p for p in final_files(tmp_path)]
    built = len(list(tmp_path.glob(".build/*/*.json")))
    for _ in range(200):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.05)
    else:
        pytest.fail("workers outlived the command")
    result = run(slow, tmp_path, "--shard-mb", "2")
    assert (
        result.returncode == 0 and built > 0 and "/60 [" not in result.stderr
    )  # the bar counts what was still to do
    assert not list(tmp_path.rglob("*.tmp-*"))
    assert run("--verify", tmp_path).returncode == 0


def test_a_killed_worker_is_one_line(slow, tmp_path):
    process = started(slow, tmp_path)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    text = process.communicate()[1]
    assert process.returncode == 2
    assert "a worker process was killed" in text
    assert "Traceback" not in text
    assert not final_files(tmp_path)


@pytest.mark.parametrize("wait", [True, False])
def test_ctrl_c_is_one_line_even_while_workers_start(slow, tmp_path, wait):
    command = [*SHARD, slow, tmp_path, "--workers", "2"]
    process = (
        started(slow, tmp_path)
        if wait
        else subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    )
    while process.poll() is None and len(children(process.pid)) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate()[1]
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("*.tmp-*"))
    assert not final_files(tmp_path)


def test_out_may_lie_in_raw_and_is_none_of_its_captures(tmp_path):
    raw = write_raw(tmp_path / "RAW", 4)
    for again in ([], ["--append"]):
        result = run(raw, raw / "more/out", *SMALL, *again)
        assert result.returncode == 0, result
    assert json.loads((raw / "more/out/index.json").read_text())["splits"]["val"]["count"] > 0


def test_a_line_break_in_a_rejected_name_breaks_no_line(tmp_path):
    raw = write_raw(tmp_path / "RAW", 2)
    write_capture(raw / "a\nb.png", raw / "a\nb.npy")
    done = command("tools/shard.py", raw, tmp_path / "out", *SMALL, "--max-rejects", 2)
    assert done.code == 0, done
    rejected = [line for line in done.out.splitlines() if line.startswith("rejected ")]
    assert len(rejected) == 2 and all("a\\nb." in line for line in rejected), done.out
