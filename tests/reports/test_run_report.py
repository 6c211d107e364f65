"""tools/report.py run: the page of one run and of several, and the errors when there is none."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import command
from helpers.detail_stages import write_stage
from helpers.html_pages import read
from helpers.runs import make_model, make_shards, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    data = make_shards(folder)
    assert (
        train(
            data,
            folder / "run",
            "--epochs",
            2,
            "--model",
            make_model(folder / "dav2"),
            "--pictures",
            0,
        ).code
        == 0
    )
    assert command("launch/evaluate.py", "--run", folder / "run", "--workers", 1).code == 0
    return folder / "run"


def test_a_runs_page_has_its_numbers_and_stands_alone(run):
    done = command("tools/report.py", "run", run)
    assert done.code == 0, done
    assert f"written to {run}/report.html" in done.out, done
    text, evaluation = read(run / "report.html"), json.loads((run / "evaluation.json").read_text())
    for row, means in evaluation["rows"].items():
        assert row in text
        assert f"{means['rmse_mm']:.2f}" in text
        low, high = evaluation["intervals"][row]["rmse_mm"]
        assert f"{low:.2f}..{high:.2f}" in text
    worst = max(
        zip(
            evaluation["images"]["adapter, epoch 2"]["values"]["rmse_mm"],
            evaluation["images"]["adapter, epoch 2"]["keys"],
        )
    )
    assert f"worst: {worst[1]}, RMSE {worst[0]:.1f} mm" in text
    for section in (
        "Result",
        "Near and far",
        "Edges and surfaces",
        "Images",
        "Curves",
        "Reliability",
        "How it was made",
    ):
        assert section in text
    assert evaluation["data_sha256"][:16] in text
    assert "Learning rate" in text
    assert "Cut along row" in text


def test_several_runs_stand_side_by_side_and_restarts_are_listed(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    record = json.loads((other / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0]
    record["starts"].append({"step": 3, "time": "later"})
    (other / "run.json").write_text(json.dumps(record))
    done = command("tools/report.py", "run", run, other, "--out", tmp_path / "both.html")
    text = read(tmp_path / "both.html")
    assert done.code == 0
    assert "2 (again at step 3)" in text
    assert "other: adapter, epoch 2" in text
    assert "run: adapter, epoch 2" in text
    assert "no difference shown" in text or "too few images" in text


def test_what_is_missing_is_one_clear_line(run, tmp_path):
    (line,) = command("tools/report.py", "run").errors
    assert "RUNS is missing" in line
    (line,) = command("tools/report.py", "rnu", run).errors
    assert "expected one of run, data; did you mean run?" in line
    (line,) = command("tools/report.py", "data", tmp_path / "absent").errors
    assert "no such folder" in line
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / "evaluation.json").unlink()
    (line,) = command("tools/report.py", "run", bare).errors
    assert f"depthdist evaluate --run {bare}" in line
    (bare / "evaluation.json").write_text("{")
    (line,) = command("tools/report.py", "run", bare).errors
    assert "not what depthdist evaluate writes" in line


# ------------------------------------------------------------------------------------- several runs


@pytest.fixture
def namesakes(run, tmp_path):
    """Two copies of a run, in folders of one name."""
    return [Path(shutil.copytree(run, tmp_path / day / "first")) for day in ("monday", "tuesday")]


def test_runs_of_one_name_have_different_labels_on_a_page(namesakes, run, tmp_path):
    done = command("tools/report.py", "run", *namesakes, run, "--out", tmp_path / "page.html")
    assert done.code == 0, done
    text = read(tmp_path / "page.html")
    for name in ("monday/first", "tuesday/first", "run"):
        assert f" {name}: adapter, epoch 2" in text
    assert "Depth: monday/first, tuesday/first, run" in text
    assert "A monday/first: adapter, epoch 2 B tuesday/first: adapter, epoch 2" in text
    assert "A monday/first: adapter, epoch 2 B run: adapter, epoch 2" in text


def test_runs_of_one_name_have_different_labels_when_compared(namesakes, monkeypatch):
    monkeypatch.chdir(namesakes[0])
    done = command("launch/evaluate.py", "--compare", ".", namesakes[1], "--no-details")
    assert done.code == 0, done
    assert "A monday/first: adapter, epoch 2\nB tuesday/first: adapter, epoch 2\n" in done.out
    assert [
        line for line in done.out.splitlines() if line in ("A  monday/first", "B  tuesday/first")
    ] == ["A  monday/first", "B  tuesday/first"], "each table's run"


def test_fixed_rows_that_differ_stand_each_under_its_runs(run, tmp_path):
    """`other` learned from data of another mean and other bounds: its constant and its untrained
    rows are not those of the first run."""
    same, other = (Path(shutil.copytree(run, tmp_path / name)) for name in ("same", "other"))
    for path, change in (
        (other / "best/depthdist.json", {"far_mm": 1500.0}),
        (
            other / "run.json",
            {
                "derived": {
                    **json.loads((other / "run.json").read_text())["derived"],
                    "mean_mm": 1100.0,
                }
            },
        ),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert command("launch/evaluate.py", "--run", other, "--workers", 1).code == 0
    assert (
        command("tools/report.py", "run", run, same, other, "--out", tmp_path / "page.html").code
        == 0
    )
    text, rows, others = (
        read(tmp_path / "page.html"),
        *(json.loads((folder / "evaluation.json").read_text())["rows"] for folder in (run, other)),
    )
    for mine, theirs in zip(list(rows)[:3], list(others)[:3]):
        assert f"run, same: {mine} " in text
        assert f"other: {theirs} " in text
        assert rows[mine]["rmse_mm"] != others[theirs]["rmse_mm"]
        assert f"{rows[mine]['rmse_mm']:.2f}" in text
        assert f"{others[theirs]['rmse_mm']:.2f}" in text
    assert command("tools/report.py", "run", run, same, "--out", tmp_path / "page.html").code == 0
    assert "run, same:" not in read(tmp_path / "page.html"), "what all share needs no name"


# -------------------------------------------------------------------------- what would break a page


def test_other_ranges_a_copied_run_and_a_strange_name_make_a_page(run, tmp_path):
    odd = tmp_path / "$x{$y <b>"
    shutil.copytree(run, odd, copy_function=shutil.copy)  # new times
    (odd / "metrics.jsonl").write_text((odd / "metrics.jsonl").read_text() + '{"step": 9, "cut')
    assert (
        command(
            "launch/evaluate.py", "--run", odd, "--workers", 1, "--bins-mm", "250,1000,2000"
        ).code
        == 0
    )
    done = command("tools/report.py", "run", odd, run, "--out", tmp_path / "page.html")
    assert done.code == 0, done
    text = read(tmp_path / "page.html")
    assert "rmse_mm@1000-2000" in text
    assert "$x{$y <b>" in text


def test_numbers_of_an_older_adapter_or_of_other_data_are_refused(run, tmp_path):
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


def test_a_page_that_cannot_be_written_is_an_error_before_the_work(run):
    (line,) = command("tools/report.py", "run", run, "--out", "/proc/nowhere/page.html").errors
    assert "cannot be written" in line
    assert "--out takes another file" in line


def test_a_detail_stage_is_shown_beside_the_adapter(run, tmp_path):
    refined = shutil.copytree(run, tmp_path / "refined")
    write_stage(refined, (30, 40))
    words = ["--run", refined, "--workers", 1, "--raw", run.parent / "raw"]
    assert command("launch/evaluate.py", *words).code == 0
    assert command("tools/report.py", "run", refined).code == 0
    text = read(refined / "report.html")
    assert "refined: adapter, epoch 2 + detail" in text  # the tables
    assert text.count("refined + detail: prediction, same colours") == 3
    strip = [
        "image, brightened",
        *(f"{name}: relief, -8 .. +8 mm" for name in ("truth", "refined")),
    ]
    assert " ".join([*strip, "refined + detail: relief, -8 .. +8 mm"]) in text
    assert "step 0, on images of 30x40" in text

    # the captures are gone: without the stage, and why
    evaluation = json.loads((refined / "evaluation.json").read_text())
    evaluation["settings"]["raw"] = None
    (refined / "evaluation.json").write_text(json.dumps(evaluation))
    assert command("tools/report.py", "run", refined).code == 0
    text = read(refined / "report.html")
    assert "Without the detail stage: " in text
    assert "refined + detail: prediction" not in text

    write_stage(refined, (30, 40), seed=1)
    record = json.loads((refined / "detail/best/detail.json").read_text())
    (refined / "detail/best/detail.json").write_text(json.dumps({**record, "step": 7}))
    (line,) = command("tools/report.py", "run", refined).errors
    assert "of another detail stage than" in line
