"""Runs as a later command finds them: what each is called beside others."""

from pathlib import Path

import pytest

from depthdist.runs.run_folder import label_runs


@pytest.mark.parametrize(
    ("folders", "called"),
    [
        (["/a/x/first"], ["first"]),
        (["/a/x/first", "/a/y/first"], ["x/first", "y/first"]),
        (["/a/x/first", "/a/y/first", "/a/y/other"], ["x/first", "y/first", "other"]),
        (["/a/x/1/first", "/a/y/1/first", "/a/y/2/first"], ["x/1/first", "y/1/first", "2/first"]),
        (["/first", "/x/first"], ["/first", "x/first"]),
        (
            ["/x/first", "/x/./first", "/x/second"],
            ["first", "first", "second"],
        ),  # one folder, twice
    ],
)
def test_folders_are_called_by_as_much_of_their_path_as_tells_them_apart(folders, called):
    assert label_runs([Path(folder) for folder in folders]) == called


def test_a_folder_that_is_named_from_inside_has_its_name(tmp_path, monkeypatch):
    for name in ("x/first", "y/first"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x/first")
    assert label_runs([Path("."), Path("../../y/first")]) == ["x/first", "y/first"]
