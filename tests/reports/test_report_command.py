"""tools/report.py answers --help and wrong arguments at once: without the libraries of a report."""

import subprocess
import sys

import pytest
from helpers.captures import ROOT

SLOW = ("torch", "matplotlib", "scipy", "transformers", "peft", "numpy", "PIL", "jinja2")
PROGRAM = f"""
import runpy, sys
sys.argv = ["tools/report.py", *sys.argv[1:]]
try:
    runpy.run_path("tools/report.py", run_name="__main__")
finally:
    print("imported:", [name for name in {SLOW} if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("words", "code", "answer"),
    [
        (["--help"], 0, "depthdist report run"),
        (["run", "--help"], 0, "the first decides which images are shown"),
        (["data", "--help"], 0, "Processes that read captures"),
        ([], 2, "the report is missing"),
        (["rnu", "runs/mine"], 2, "did you mean run?"),
        (["run"], 2, "RUNS is missing"),
        (["run", "absent"], 2, "absent: no such folder"),
        (["data"], 2, "DATA is missing"),
        (["data", "setup.cfg"], 2, "setup.cfg: is a file"),
        (["data", "tests", "--images", "-1"], 2, "--images is -1: expected >= 0"),
        (["data", "tests", "--out", "/proc/page.html"], 2, "--out takes another file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_answer_needs_no_heavy_library(words, code, answer):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done
    assert answer in " ".join((done.stdout + done.stderr).split())
    assert "imported: []" in done.stdout
