"""tools/report.py: what the pages say, against what was planted; that they need nothing else; and what it says when it cannot."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from captures import HOSTILE, capture, write_capture, write_raw
from PIL import Image
from ranks import command, make_model, make_shards, train

from depthdist.report_data import flying_share
from depthdist.report_run import cut_place


class Reader(HTMLParser):
    """The page's text, and every address in it."""

    def __init__(self, text):
        super().__init__()
        self.words, self.addresses, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(path):
    page = Reader(path.read_text())
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses), "the page asks for another file"
    assert not page.open and "http" not in re.sub(r"http://www.w3.org/\S+", "", path.read_text()) and "<script" not in path.read_text()
    return page.text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    data = make_shards(folder)
    assert train(data, folder / "run", "--epochs", 2, "--model", make_model(folder / "dav2"), "--pictures", 0).code == 0
    assert command("launch/evaluate.py", "--run", folder / "run", "--workers", 1).code == 0
    return folder / "run"


def test_a_runs_page_has_its_numbers_and_stands_alone(run):
    done = command("tools/report.py", "run", run)
    assert done.code == 0 and f"written to {run}/report.html" in done.out, done
    text, evaluation = read(run / "report.html"), json.loads((run / "evaluation.json").read_text())
    for row, means in evaluation["rows"].items():
        assert row in text and f"{means['rmse_mm']:.2f}" in text
        low, high = evaluation["intervals"][row]["rmse_mm"]
        assert f"{low:.2f}..{high:.2f}" in text
    worst = max(zip(evaluation["images"]["adapter, epoch 2"]["values"]["rmse_mm"], evaluation["images"]["adapter, epoch 2"]["keys"]))
    assert f"worst: {worst[1]}, RMSE {worst[0]:.1f} mm" in text
    for section in ("Result", "Near and far", "Edges and surfaces", "Images", "Curves", "Reliability", "How it was made"):
        assert section in text
    assert evaluation["data_sha256"][:16] in text and "Learning rate" in text and "Cut along row" in text


def test_several_runs_stand_side_by_side_and_a_restart_is_told(run, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run, other)
    record = json.loads((other / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0]
    record["starts"].append({"step": 3, "time": "later"})
    (other / "run.json").write_text(json.dumps(record))
    done = command("tools/report.py", "run", run, other, "--out", tmp_path / "both.html")
    text = read(tmp_path / "both.html")
    assert done.code == 0 and "2 (again at step 3)" in text and "other: adapter, epoch 2" in text and "run: adapter, epoch 2" in text
    assert "no difference shown" in text or "too few images" in text


def test_what_is_missing_is_one_clear_line(run, tmp_path):
    import shutil

    (line,) = command("tools/report.py", "run").errors
    assert "RUNS is missing" in line
    (line,) = command("tools/report.py", "rnu", run).errors
    assert "expected `run` or `data`; did you mean run?" in line
    (line,) = command("tools/report.py", "data", tmp_path / "absent").errors
    assert "no such folder" in line
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / "evaluation.json").unlink()
    (line,) = command("tools/report.py", "run", bare).errors
    assert f"python launch/evaluate.py --run {bare}" in line
    (bare / "evaluation.json").write_text("{")
    (line,) = command("tools/report.py", "run", bare).errors
    assert "not what launch/evaluate.py writes" in line


# ------------------------------------------------------------------------------------------------ data


def test_raw_captures_are_told_with_what_was_rejected_and_why(tmp_path):
    raw = write_raw(tmp_path / "raw", 5, minutes=20)
    (raw / "images/21-12-03-10-20-00_Zivid_acquisition_color.png").write_bytes(b"cut off")
    rgb, xyz = capture(7)
    write_capture(raw / "images/m_color.png", raw / "depth/m_rawDepth.npy")
    np.save(raw / "depth/m_rawDepth.npy", xyz / 1000)
    (raw / "images/alone_color.png").write_bytes((raw / "images/m_color.png").read_bytes())
    done = command("tools/report.py", "data", raw, "--workers", 1)
    text = read(tmp_path / "raw-report.html")
    assert done.code == 0 and "raw captures, 4 captures" in text
    assert "looks like metres" in text and "a picture without its point cloud" in text and "cannot be read as a picture" in text
    z = np.stack([capture(i)[1][..., 2] for i in (0, 2, 3, 4)])
    assert f"{np.nanmin(z):.2f} .. {np.nanmax(z):.2f} mm" in text and f"{np.isfinite(z).mean():.1%} of the pixels" in text


def test_shards_are_told_by_split(tmp_path):
    data = make_shards(tmp_path)
    assert command("tools/report.py", "data", data, "--out", tmp_path / "page.html", "--workers", 1).code == 0
    text = read(tmp_path / "page.html")
    assert "14 (11 train, 3 val)" in text and "No file was rejected" in text


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
    assert "bright 100.0% of the picture is saturated" in text and "very same depth, 700.00 mm" in text and "stand alone in space" in text
    assert "clean" not in text and text.count("stand alone in space (flying pixels)") == 1


def test_flying_pixels_are_those_alone_in_space():
    z = np.full((40, 50), 1000.0, np.float32)
    z[:, 25:] = 1500.0  # an edge is none
    valid = np.ones(z.shape, bool)
    assert flying_share(z, valid) == 0
    z[10, 10], z[20, 24], z[30, 40] = 1300.0, 1250.0, 1400.0
    assert flying_share(z, valid) == pytest.approx(3 / 2000)
    valid[30, 40] = False
    assert flying_share(z, valid) == pytest.approx(2 / 1999)


def test_hostile_files_are_rejected_and_never_stop_the_page(tmp_path):
    if not HOSTILE.exists():
        pytest.skip("../shared/hostile is absent")
    import shutil

    shutil.copytree(HOSTILE, tmp_path / "raw")
    write_capture(tmp_path / "raw/fine.png", tmp_path / "raw/fine.npy")
    assert command("tools/report.py", "data", tmp_path / "raw", "--workers", 1).code == 0
    assert "fine" in read(tmp_path / "raw-report.html")


def test_the_cut_goes_through_most_grooves():
    truth, mask, label = np.full((30, 90), 1000.0), np.ones((30, 90), bool), np.zeros((30, 90), np.uint16)
    label[12, 40:60:4] = 1
    label[20, 10:30] = 2
    row, first, last = cut_place(truth, mask, label)
    assert row == 12 and last - first == 30 and first <= 40 and last >= 57
    row, first, last = cut_place(truth, mask, None)
    assert 0 <= first < last <= 90
    assert cut_place(truth, np.zeros_like(mask), label)[2] <= 90


# ------------------------------------------------------------------------------------------------ what would break a page


def test_other_ranges_a_copied_run_and_a_strange_name_make_a_page(run, tmp_path):
    import shutil

    odd = tmp_path / "$x{$y <b>"
    shutil.copytree(run, odd, copy_function=shutil.copy)  # new times
    (odd / "metrics.jsonl").write_text((odd / "metrics.jsonl").read_text() + '{"step": 9, "cut')
    assert command("launch/evaluate.py", "--run", odd, "--workers", 1, "--bins-mm", "250,1000,2000").code == 0
    done = command("tools/report.py", "run", odd, run, "--out", tmp_path / "page.html")
    assert done.code == 0, done
    text = read(tmp_path / "page.html")
    assert "rmse_mm@1000-2000" in text and "$x{$y <b>" in text


def test_numbers_of_an_older_adapter_or_of_other_data_are_refused(run, tmp_path):
    import shutil

    other = tmp_path / "run"
    shutil.copytree(run, other)
    record = json.loads((other / "best/depthdist.json").read_text())
    (other / "best/depthdist.json").write_text(json.dumps({**record, "step": record["step"] + 1}))
    (line,) = command("tools/report.py", "run", other).errors
    assert "of another adapter than the best now" in line
    (other / "best/depthdist.json").write_text(json.dumps(record))
    evaluation = json.loads((other / "evaluation.json").read_text())
    (other / "evaluation.json").write_text(json.dumps({**evaluation, "data_sha256": "0" * 64}))
    (line,) = command("tools/report.py", "run", other).errors
    assert "the data changed since" in line


def test_a_damaged_sample_is_one_line_of_the_page(tmp_path):
    data = make_shards(tmp_path)
    shard = next((data / "val").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[2000:2100] = bytes(100)
    shard.write_bytes(content)
    assert command("tools/report.py", "data", data, "--workers", 1).code == 0
    text = read(data.with_name(f"{data.name}-report.html"))
    assert "13 captures" in text and "val sample 0" in text and "CRC-32" in text


def test_one_single_depth_is_said_and_far_depths_count(tmp_path):
    rgb, xyz = capture(1)
    for name, z in (("a", 1000.0), ("b", 1000.0)):
        write_capture(tmp_path / f"flat/{name}.png", tmp_path / f"flat/{name}.npy", 1)
        np.save(tmp_path / f"flat/{name}.npy", np.where(np.isnan(xyz), np.nan, [1.0, 2.0, z]).astype(np.float32))
    assert command("tools/report.py", "data", tmp_path / "flat", "--workers", 1).code == 0
    assert "there is nothing to normalise" in read(tmp_path / "flat-report.html")
    write_capture(tmp_path / "far/a.png", tmp_path / "far/a.npy", 1)
    far = xyz * 15
    np.save(tmp_path / "far/a.npy", far)
    assert command("tools/report.py", "data", tmp_path / "far", "--workers", 1).code == 0
    z = far[..., 2][np.isfinite(far[..., 2])].astype(float)
    assert f"mean {z.mean():.0f}, std {z.std():.0f}" in read(tmp_path / "far-report.html")


def test_a_page_that_cannot_be_written_is_said_before_the_work(run):
    (line,) = command("tools/report.py", "run", run, "--out", "/proc/nowhere/page.html").errors
    assert "cannot be written" in line and "--out takes another file" in line
