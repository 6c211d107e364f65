"""Capture times and sessions follow from the names of captures."""

from depthdist.captures.sessions import capture_time, number_sessions


def test_capture_time_is_read_or_none():
    assert (
        capture_time("s/21-12-03-18-50-31_Zivid_acquisition").isoformat() == "2021-12-03T18:50:31"
    )
    assert capture_time("2021-12-03-18-50-31").isoformat() == "2021-12-03T18:50:31"
    assert capture_time("21-13-03-18-50-31_x") is None
    assert capture_time("learn0") is None


def test_sessions_end_at_a_gap_and_untimed_stems_go_by_folder():
    stems = [
        "21-12-03-10-00-00_a",
        "s/21-12-03-10-09-00_b",
        "21-12-03-10-30-00",
        "x/1",
        "x/2",
        "y/1",
    ]
    assert number_sessions(stems) == [0, 0, 1, 2, 2, 3]
    assert number_sessions(stems[:3], gap_minutes=30) == [0, 0, 0]
