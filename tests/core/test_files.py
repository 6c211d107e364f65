"""Files and folders are written whole or not at all."""

import json
import os

import pytest

from depthdist.core.files import recover_folder, replace_folder, write_json


def write(folder, text):
    with replace_folder(folder) as fresh:
        (fresh / "file").write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "best"
    write(folder, "old")
    (folder / "other").write_text("goes with the old")
    write(folder, "new")
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"file": "new"}
    assert [p.name for p in folder.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_at_either_rename_leaves_a_whole_folder(renames, tmp_path, monkeypatch):
    folder = tmp_path / "best"
    write(folder, "old")
    done = []
    rename = os.rename

    def killed(*names):
        if len(done) == renames:
            raise SystemExit
        done.append(rename(*names))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(SystemExit):
            write(folder, "new")
    assert folder.exists() is (renames == 0)
    with pytest.raises(RuntimeError), replace_folder(folder):
        raise RuntimeError("the next saving fails as well")
    assert (folder / "file").read_text() == "old"
    write(folder, "newer")
    assert (folder / "file").read_text() == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_what_a_kill_left_behind_does_not_get_into_the_next(tmp_path):
    for leftover in ("best.tmp", "best.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "junk").write_text("x")
    (tmp_path / "best").mkdir()
    recover_folder(tmp_path / "best")
    assert list((tmp_path / "best").iterdir()) == [], (
        "a whole folder is not replaced by an older one"
    )
    write(tmp_path / "best", "new")
    assert [p.name for p in tmp_path.rglob("*")] == ["best", "file"]


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_json(path, {"a": [1, 2]})
    assert json.loads(path.read_text()) == {"a": [1, 2]} and path.read_text().endswith("\n")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def killed(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"], "nothing is left beside it"
