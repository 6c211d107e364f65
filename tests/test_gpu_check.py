"""The GPU check works on the day: its small form runs here, on the CPU."""

import json

import gpu_check
import pytest
from helpers.captures import ROOT
from helpers.commands import Typed


def check(out, *words):
    done = Typed("bash", "tests/gpu_check.sh", "--tiny", "--out", out, *words).done(1000)
    return done, json.loads((out / "gpu_check.json").read_text())


def test_its_small_form_passes_and_writes_every_figure(tmp_path):
    done, found = check(tmp_path)
    assert (done.code, found["failed"], found["left out"]) == (0, [], []), done
    assert list(found["parts"]) == list(gpu_check.TINY)
    lines = [line for part in found["parts"].values() for line in part["lines"]]
    checked = [line["what"] for line in lines if line["ok"]]
    assert len(checked) >= 12 and all(what in done.out for what in checked)
    assert "as if it had not been killed" in checked
    assert (tmp_path / "train-killed.log").exists()


def test_a_part_that_fails_does_not_stop_the_next_one(tmp_path):
    done, found = check(tmp_path, "--parts", "stages,data")  # no captures yet
    assert done.code == 1
    assert found["failed"] == ["stages: shards with images at the camera's size"]
    assert found["parts"]["data"]["lines"][-1]["ok"]


def test_a_part_that_takes_too_long_is_ended_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    (tmp_path / "logs").mkdir()
    (line,) = gpu_check.run_part("environment", 0.2, tmp_path, tiny=True)
    assert line == {"what": "done in time", "ok": False, "found": "not after 0 s"}


def test_each_part_has_a_limit_and_those_that_must_fit_into_nine_minutes_do():
    from helpers import gpu_parts

    assert [part.__name__ for part in gpu_parts.PARTS] == list(gpu_check.PARTS)
    first = list(gpu_check.PARTS)[: len(gpu_check.TINY)]
    assert sum(gpu_check.PARTS[name] for name in first) <= 540


@pytest.mark.parametrize(
    "has", [None, "torch==2.11.0\nnumpy==2.5.2\nPy_CPUinfo==9.0.0\nisal==1.8.0\n"]
)
def test_the_wheels_are_what_the_machine_lacks(has, tmp_path):
    (tmp_path / "have.txt").write_text(has or "")
    words = [tmp_path / "have.txt"] if has else []
    done = Typed("bash", "tests/gpu_wheels.sh", "--list", *words).done()
    names = done.out.split()
    assert done.code == 0 and {"deepspeed", "pydantic", "simplejpeg", "webdataset"} <= set(names)
    assert not {"torch", "numpy"} & set(names)
    assert ("isal" in names, "py-cpuinfo" in names) == ((not has), (not has))
