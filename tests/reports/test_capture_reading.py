"""Reading the captures of a data report: what is opened, and how often."""

import numpy as np
from helpers.captures import write_capture
from helpers.runs import make_shards

from depthdist.captures.read_options import ReadOptions
from depthdist.reports import capture_reading
from depthdist.reports.capture_summary import CaptureSummary


def test_a_worker_opens_the_dataset_once_for_all_its_samples(tmp_path, monkeypatch):
    source = capture_reading.find_captures(make_shards(tmp_path))
    opened = []
    open_dataset = capture_reading.open_dataset
    monkeypatch.setattr(
        capture_reading, "open_dataset", lambda settings: opened.append(1) or open_dataset(settings)
    )
    found = [capture_reading.read_job(job) for job in source.jobs]
    assert len(found) == 14
    assert all(isinstance(one, CaptureSummary) for one in found)
    assert len(opened) == 1


def test_captures_in_metres_are_read_as_they_are_said_to_be(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    points = np.load(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", points / 1000)
    (job,) = capture_reading.find_captures(tmp_path).jobs
    assert "looks like metres" in capture_reading.read_job(job).reason
    (job,) = capture_reading.find_captures(tmp_path, ReadOptions(unit_mm=1000)).jobs
    assert abs(capture_reading.read_job(job).near_mm - np.nanmin(points[..., 2])) < 0.01
