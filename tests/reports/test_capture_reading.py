"""Reading the captures of a data report: what is opened, and how often."""

from helpers.runs import make_shards

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
