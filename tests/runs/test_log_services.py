"""--log-to: what each service's own files hold; a failure there is a warning, and training goes on.

The services themselves run where their packages are installed: wandb, mlflow, trackio.
"""

import contextlib
import importlib.util
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from depthdist.runs.log_services import SERVICES, LogService, Service, log_to_problems
from depthdist.runs.tracker import Tracker

IMAGE = np.zeros((8, 12, 3), np.uint8)


class LinesTracker:
    """A tracker as accelerate has them, of a file a run."""

    def __init__(self, path: Path):
        self.path = path

    def _add(self, *values):
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def store_init_configuration(self, values):
        self._add("settings", values)

    def log(self, values, step):
        if "fails" in values:
            raise ConnectionError("the server is gone\nand more")
        self._add(step, values)

    def finish(self):
        self._add("end")


class Lines(Service):
    def __init__(self, folder: Path):
        self.folder = folder

    def open(self, run, known_id):
        its_id = known_id or f"run{len(list(self.folder.iterdir()))}"
        return LinesTracker(self.folder / its_id), its_id

    def picture(self, tracker, name, image, step):
        tracker._add(step, name, image.shape)


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """A service "lines" in this folder."""
    folder = tmp_path / "service"
    folder.mkdir()
    monkeypatch.setitem(SERVICES, "lines", Lines(folder))
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tracker(run, step=None):
    run.mkdir(exist_ok=True)
    return Tracker(run, True, step, 10, ["lines"])


def test_a_service_gets_the_numbers_and_images_in_their_order(lines, tmp_path):
    with tracker(tmp_path / "run") as log:
        log.describe({"lr": 1e-3, "notes": "a" * 7000})
        log.log(1, 0, {"train/loss": 0.5})
        log.picture("validation/000", IMAGE, 1)
        log.curves(2, {"best/loss": 0.25})
    assert read(lines / "run0") == [
        ["settings", {"lr": 1e-3}],
        [1, {"train/loss": 0.5}],
        [1, "validation/000", [8, 12, 3]],
        [2, {"best/loss": 0.25}],
        ["end"],
    ]


def test_a_resumed_run_goes_on_in_the_run_of_the_service(lines, tmp_path):
    for step in (None, 1):
        with tracker(tmp_path / "run", step) as log:
            log.describe({"lr": 1e-3})
            log.log((step or 0) + 1, 0, {"train/loss": 0.5})
    (path,) = lines.iterdir()
    first = [["settings", {"lr": 1e-3}], [1, {"train/loss": 0.5}], ["end"]]
    assert read(path) == [*first, [2, {"train/loss": 0.5}], ["end"]]


def test_a_failure_is_one_warning_and_the_run_goes_on(lines, tmp_path, capsys):
    with tracker(tmp_path / "run") as log:
        log.log(1, 0, {"fails": 1.0})
        log.services[0].thread.join()
        log.log(2, 0, {"train/loss": 0.5})
    said = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert said == [
        "WARNING      lines failed, nothing more is sent there: the server is gone and more"
    ]
    assert len(read(tmp_path / "run/metrics.jsonl")) == 2


def test_unknown_names_and_missing_packages_are_a_line_each(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    unknown, missing = log_to_problems(["mlflw", "wandb"])
    assert "--log-to has 'mlflw'" in unknown and "did you mean mlflow" in unknown
    assert missing == "--log-to wandb: the package is not installed: pip install wandb"


def send(name, run, resumed, step):
    service = LogService(name, run, resumed)
    service.describe({"lr": 1e-3})
    service.log({"eval/rmse_mm@750-1500": 2.5}, step)
    service.picture("validation/000", IMAGE, step)
    service.close(seconds=120)
    assert service.problem() is None


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder, and services that keep to the test's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_mlflow_has_the_curves_of_a_run_and_of_its_second_start(run):
    mlflow = pytest.importorskip("mlflow")
    send("mlflow", run, False, 1)
    send("mlflow", run, True, 2)
    client = mlflow.MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "depthdist"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == (run / "log_to/mlflow").read_text()
    assert found.data.params == {"lr": "0.001"}
    points = client.get_metric_history(found.info.run_id, "eval/rmse_mm 750-1500")
    assert [(point.step, point.value) for point in points] == [(1, 2.5), (2, 2.5)]
    assert client.list_artifacts(found.info.run_id, "images")


def test_trackio_has_the_curves_of_a_run_and_of_its_second_start(run):
    pytest.importorskip("trackio")
    send("trackio", run, False, 1)
    send("trackio", run, True, 2)
    with contextlib.closing(sqlite3.connect(run.parent / "trackio/depthdist.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id")
        points = [(of, step, json.loads(values)) for of, step, values in rows]
    name = "eval/rmse_mm@750-1500"
    found = [(of, step, values[name]) for of, step, values in points if name in values]
    assert found == [("run", 1, 2.5), ("run", 2, 2.5)]


def test_wandb_keeps_an_offline_run_of_one_id(run):
    pytest.importorskip("wandb")
    send("wandb", run, False, 1)
    send("wandb", run, True, 2)
    its_id = (run / "log_to/wandb").read_text()
    kept = sorted((run / "wandb").glob("offline-run-*"))
    assert len(kept) == 2 and all(folder.name.endswith(f"-{its_id}") for folder in kept)
    assert all(b"eval/rmse_mm@750-1500" in next(f.glob("*.wandb")).read_bytes() for f in kept)
