"""The benchmarks: on tiny data they run through, and that of the loaders notices when one does not
deliver what it should."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.captures import write_capture, write_label
from helpers.detail_stages import write_stage
from helpers.drawn_treads import SIZE, write_treads
from helpers.models import masters, save_dav2, trained
from transformers import DPTImageProcessor

from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.resampling import upsample
from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import compute_losses
from depthdist.models.adapter import save_adapter
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.base_model import load_base
from tools import bench
from tools.benchmarks import loader_rows, processes, step, trainer_path, turns
from tools.benchmarks.relief import band_of

TINY = "--samples 10 --captures 2 --capture-size 48x78 --size 28x42 --peers none --repeats 1"


def row(label: str = "ours", **changes) -> loader_rows.Row:
    """A measured row, with other values of its measurement."""
    delivered = {"rgb": 1000, "depth": 5, "valid": 2}
    run = {
        "samples": 8,
        "lost": 0,
        "repeated": 0,
        "seconds": 2.0,
        "cpu_seconds": 1.0,
        "first_batch_s": 0.1,
        "delivered": delivered,
    }
    for name, value in changes.items():
        (delivered if name in delivered else run)[name] = value
    return loader_rows.Row(label, Path(sys.executable), {}, runs=[run])


def test_tiny_captures_give_a_table_of_webdataset_and_ours(tmp_path, capsys):
    words = ["data", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "out.json")]
    assert bench.main([*words, *TINY.split(), "--raw-samples", "0"]) == 0
    out = capsys.readouterr().out
    for text in (
        "webdataset + DataLoader  ",
        "the same, simplejpeg  ",
        "depthdist  ",
        "depthdist, --rgb raw  ",
        "MISSED  ",
        "not measured >= 1 x each peer",
    ):
        assert text in out
    assert "skipped" not in out
    assert "WRONG" not in out
    loaders = json.loads((tmp_path / "out.json").read_text())["loaders"]
    runs = [loader["runs"][0] for loader in loaders]
    assert [(run["samples"], run["lost"], run["repeated"]) for run in runs] == [(10, 0, 0)] * 4
    assert runs[0]["delivered"]["depth"] > 0
    assert all(loader_rows.same_values(run, runs[0], 0.01) for run in runs)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"lost": 5}, "WRONG: 5 samples lost"),
        ({"lost": 1, "repeated": 3}, "WRONG: 1 samples lost, 3 repeated"),
        ({"depth": 6}, "WRONG: other values"),
        ({"rgb": 1100}, "WRONG: other values"),
        ({"rgb": 1000.4}, ""),
        ({}, ""),
    ],
)
def test_a_loader_that_delivers_something_else_is_marked(changes, said):
    judged = row(**changes)
    loader_rows.mark_wrong([judged], row("webdataset"), lossless="")
    assert judged.note.startswith(said)
    assert bool(judged.note) == bool(said)


def test_ratios_are_taken_repeat_by_repeat():
    slow, fast = row(), row()
    slow.runs = [row(seconds=s).runs[0] for s in (2.0, 8.0, 2.0)]
    fast.runs = [row(seconds=s).runs[0] for s in (1.0, 2.0, 1.0)]
    assert fast.speedup(slow) == 2.0


def test_an_unknown_benchmark_or_peer_is_named_with_what_there_is():
    with pytest.raises(
        ValueError, match=r"'dta' cannot be measured; expected data, .*; did you mean data"
    ):
        bench.main(["dta"])
    with pytest.raises(ValueError, match=r"--peers has 'litdat'.*did you mean litdata"):
        bench.main(["data", "--peers", "litdat"])


def test_planning_small_datasets_gives_a_row_each_and_leaves_nothing(tmp_path, capsys):
    assert bench.main(["plan", "--work", str(tmp_path), "--samples", "58,3000"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = [row[:2] for row in rows if row and row[0].isdigit()]
    assert found == [["58", "1"], ["3000", "27"]]
    assert not list(tmp_path.iterdir())


def test_sharding_is_compared_with_reading_and_encoding_alone(tmp_path, capsys):
    words = "--pairs 4 --captures 2 --capture-size 48x78 --repeats 1 --workers 1"
    assert bench.main(["shard", "--work", str(tmp_path), *words.split()]) == 0
    assert "at least 85 % of reading and encoding alone" in capsys.readouterr().out


def test_every_codec_has_a_row_and_the_lossless_ones_are_exact(tmp_path, capsys):
    words = ["codecs", "--work", str(tmp_path), "--captures", "2", "--capture-size", "48x78"]
    assert bench.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("jpeg") for line in lines) == 5
    assert sum("lossless" in line and "exact" in line for line in lines) == 2


def test_relief_keeps_its_contrast_without_loss_and_less_of_it_the_lower_the_quality(
    tmp_path, capsys
):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy", size=(48, 64))
    write_label(tmp_path / "a_grooves.png", size=(48, 64))
    assert bench.main(["relief", "--raw", str(tmp_path)]) == 0
    rows = [line.rsplit(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    errors = {row[0]: row[-1] for row in rows if len(row) == 5}
    assert errors["png, lossless"] == errors["raw, lossless"] == "exact"
    lossy = [float(errors[f"jpeg {quality} 4:4:4"].rstrip("%")) for quality in (90, 95, 98)]
    assert lossy[0] > lossy[1] > lossy[2] > 0


def test_a_run_says_in_mm_what_storing_costs_the_relief(tmp_path, capsys):
    write_treads(tmp_path / "raw")
    model, bounds = trained(save_dav2(tmp_path / "dav2"), "calibrated"), DepthRange(800.0, 1600.0)
    record = AdapterRecord.of(model, bounds, (28, 42), camera=SIZE, step=1, epoch=1, eval_loss=None)
    save_adapter(model, masters(model), record, tmp_path / "run/best")
    words = ["relief", "--raw", str(tmp_path / "raw"), "--run", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="expected the folder of a run with a detail stage"):
        bench.main(words)
    write_stage(tmp_path / "run", SIZE, gain=0.5)
    assert bench.main(words) == 0
    rows = [line.rsplit(maxsplit=6) for line in capsys.readouterr().out.splitlines()]
    in_mm = {row[0]: row[-2:] for row in rows if len(row) == 7}
    png = in_mm["png, lossless"]
    assert png == in_mm["raw, lossless"] and 0 < float(png[0]) < 100 and 0 <= float(png[1]) <= 1
    # which of the lossy ones differ in the second digit depends on the CPU
    assert any(row != png for row in in_mm.values())


def test_the_band_of_relief_has_short_waves_alone():
    column = np.arange(400)
    for length, kept in ((8, 0.9), (400, 0.05)):
        row = np.expm1(4 + 0.5 * np.sin(2 * np.pi * column / length))
        image = np.broadcast_to(row[None, :, None], (60, 400, 3))
        band = band_of(image)[30, 60:340]
        assert (np.ptp(band) > kept) == (length == 8), (length, np.ptp(band))


def test_steps_of_both_paths_are_measured_and_begin_with_the_same_loss(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    load_base("tiny").net.save_pretrained(tmp_path / "model")
    processor = DPTImageProcessor(
        size={"height": 56, "width": 56}, resample=3, ensure_multiple_of=14
    )
    processor.save_pretrained(tmp_path / "model")
    folders = ["--work", tmp_path, "--model", tmp_path / "model", "--json", tmp_path / "out.json"]
    sizes = "--captures 8 --capture-size 96x156 --size 56x84 --repeats 1"
    assert bench.main(["step", *map(str, folders), *sizes.split()]) == 0
    out = capsys.readouterr().out
    for text in (
        "\nwhole step, with data ",
        "\nstep alone ",
        "\ndata alone ",
        "waiting for data: ",
        " >= 1.5 x the ordinary path, whole step, with data",
    ):
        assert text in out
    found = json.loads((tmp_path / "out.json").read_text())
    for supply in step.SUPPLIES:
        for path in step.PATHS:
            (turn,) = found["runs"][supply][path]
            assert turn["seconds"] > 0
    theirs = found["ready"]["ordinary"]["losses"]
    ours = found["ready"]["ours"]["lossless"]
    assert theirs.keys() == ours.keys()
    assert len(theirs) == turns.NUM_COMPARED
    assert len(set(theirs.values())) == turns.NUM_COMPARED
    assert ours == pytest.approx(theirs, rel=1e-4)  # depth is stored in steps of 0.061 mm


def test_the_documents_loss_as_the_bench_writes_it_is_ours():
    torch.manual_seed(0)
    pred = torch.rand(2, 14, 28)
    target = torch.rand(2, 30, 50)
    mask = torch.rand(2, 30, 50) > 0.3
    inputs = {"pixel_values": None, "target": target * mask, "mask": mask.float()}
    written = trainer_path.document_loss(
        lambda pixel_values: SimpleNamespace(predicted_depth=pred), inputs
    )
    ours = compute_losses(
        LossSettings(), upsample(pred, (30, 50)), target, mask, DepthRange(250, 4000)
    )["loss"].mean()
    assert written.item() == pytest.approx(ours.item(), rel=1e-5)


def test_a_commands_processes_find_this_package_and_what_was_on_their_path(monkeypatch, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/only_here.py").write_text("here = 1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    code = "import only_here, tools.bench, depthdist; print(depthdist.__file__)"
    found = processes.run([sys.executable, "-c", code], cwd=tmp_path)
    assert found.strip() == str(processes.ROOT / "depthdist/__init__.py")


def test_a_path_that_fails_says_why():
    with pytest.raises(ValueError, match=r"the ours path ended: TypeError: .*unexpected keyword"):
        step.Process("ours", {"nonsense": 1})


def test_an_image_and_a_step_of_the_detail_stage_are_timed(capsys):
    words = "--capture-size 64x96 --crops 2 --crop 32 --repeats 1 --precisions fp32"
    assert bench.main(["detail", *words.split()]) == 0
    out = capsys.readouterr().out
    for row in ("an image of 64x96", "a step of 2 crops of 32 px"):
        (found,) = (line for line in out.splitlines() if line.startswith(f"{row}, fp32"))
        assert float(found.removeprefix(f"{row}, fp32").split()[2]) > 0, "GFLOP"
    with pytest.raises(ValueError, match="--crop is 40: expected a multiple of 32"):
        bench.main(["detail", "--crop", "40"])


def test_the_start_of_many_ranks_is_measured_and_nothing_is_left(tmp_path, capsys):
    words = "--captures 3000 --ranks 8 --files 40 --processes 2"
    assert bench.main(["scale", "--work", str(tmp_path), *words.split()]) == 0
    out = capsys.readouterr().out
    rows = {line.rsplit(maxsplit=4)[0]: line.split()[-4:] for line in out.splitlines() if line}
    assert rows["sizes of shards"][2:] == ["0", "4"], "27 shards among 8 ranks"
    assert "look at each of 27 shards once: 27 stats" in out
    for text in (
        "start under 30 s: ",
        "rank 0 under 2 GiB: ",
        "merging under 2 GiB: ",
        "2 processes: they meet in ",
        "2.0 opens of headers a capture, whatever the number of ranks",
        "a model, not measured on a network: 3.5 MB",
    ):
        assert text in out
    assert not list(tmp_path.iterdir())
