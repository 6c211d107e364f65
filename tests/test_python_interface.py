"""The package as Python sees it: light to import, typed, and as its chapter shows it."""

import inspect
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import ROOT, capture, write_capture
from helpers.commands import ON_CPU
from PIL import Image

import depthdist

CHAPTER = (ROOT / "depthdist/README.md").read_text().partition("## From Python\n")[2]


def run_python(code, *words):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_no_other_library():
    code = "import sys; before = set(sys.modules); import depthdist; dir(depthdist)\n"
    loaded = run_python(
        code + "print(*{name.partition('.')[0] for name in sys.modules.keys() - before})"
    )
    outside = {name for name in loaded if name not in sys.stdlib_module_names}
    assert outside == {"depthdist"}


def test_reading_a_capture_imports_no_torch():
    code = "import sys, depthdist; depthdist.read_capture; print(*sys.modules)"
    loaded = run_python(code)
    assert "PIL.Image" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("name", depthdist.__all__)
def test_every_name_is_there_documented_and_typed(name):
    assert name in dir(depthdist)
    thing = getattr(depthdist, name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+", thing)
        return
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert signature.return_annotation is not signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not parameter.empty, parameter
            assert re.search(rf"\b{parameter.name}\b", thing.__doc__), parameter


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'depthdist' has no attribute 'lead'"):
        depthdist.lead  # noqa: B018


def test_the_package_says_that_it_is_typed():
    assert resources.files("depthdist").joinpath("py.typed").is_file()


# ------------------------------------------------------------------------------ its chapter

SMALL = 'model="tiny", size=(28, 42), pictures=0'
QUICKER = {"epochs=15": f"epochs=1, {SMALL}", "epochs=30": f"epochs=2, {SMALL}"}


def test_the_code_of_its_chapter_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    for number, name in enumerate("abcde"):
        write_capture(
            tmp_path / f"captures/images/{name}_color.png",
            tmp_path / f"captures/depth/{name}_rawDepth.npy",
            number,
        )
    Image.fromarray(capture(7)[0]).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for name, value in {**ON_CPU, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    blocks = re.findall(r"```python\n(.*?)```", CHAPTER, re.DOTALL)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        for text, other in QUICKER.items():
            block = block.replace(text, other)
        exec(block, names)
    assert np.load("depth.npy").shape == (30, 40)
    assert Path("cloud.ply").read_bytes().startswith(b"ply")
    assert (names["capture"].rgb == capture(0)[0]).all()
    assert names["trained"].best["rmse_mm"] > 0
    printed = capsys.readouterr().out
    assert all(f"{name}_color.png " in printed for name in "abcde")
    assert "\n2 " in printed, "the epoch of the last block's callback"
