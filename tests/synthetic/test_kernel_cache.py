"""Compiled kernels are used until any source of the package changes."""

import subprocess
import sys

import pytest
from helpers.captures import ROOT

from depthdist.synthetic.raytracing.kernel_cache import (
    PACKAGE,
    remove_stale_kernels,
    use_fresh_kernels,
)
from depthdist.synthetic.rooms import render as rooms
from depthdist.synthetic.tires import render as tires


@pytest.fixture
def package(tmp_path):
    """A package of two sub-packages with compiled kernels, made from the present sources."""
    remove_stale_kernels(tmp_path)
    for folder in ("tires", "rooms"):
        (tmp_path / folder / "__pycache__").mkdir(parents=True)
        (tmp_path / folder / "shapes.py").write_text("x = 1")
    remove_stale_kernels(tmp_path)
    for index in indices(tmp_path):
        index.touch()
    return tmp_path


def indices(package):
    return [package / folder / "__pycache__" / "f.nbi" for folder in ("tires", "rooms")]


def test_kernels_stay_while_no_source_changes(package):
    remove_stale_kernels(package)
    assert all(index.exists() for index in indices(package))


@pytest.mark.parametrize("source", ["tires/shapes.py", "rooms/shapes.py", "rooms/new.py"])
def test_the_kernels_of_all_sub_packages_are_removed_when_any_source_changes(package, source):
    (package / source).write_text("x = 2")
    remove_stale_kernels(package)
    assert not any(index.exists() for index in indices(package))


def test_only_the_index_files_are_removed(package):
    other = package / "tires/__pycache__/shapes.pyc"
    other.touch()
    (package / "tires/shapes.py").write_text("x = 2")
    remove_stale_kernels(package)
    assert other.exists()


def test_the_package_is_the_one_that_the_kernels_stand_in():
    assert PACKAGE == ROOT / "depthdist" / "synthetic"


@pytest.mark.parametrize(
    "render",
    [
        lambda: tires.render(tires.Settings(1, (16, 16)), 0),
        lambda: rooms.render(rooms.Settings(1, (16, 16)), 0),
    ],
    ids=["tires", "rooms"],
)
def test_stale_kernels_are_removed_once_before_the_first_image(monkeypatch, render):
    cleaned = []
    monkeypatch.setattr(
        "depthdist.synthetic.raytracing.kernel_cache.remove_stale_kernels", cleaned.append
    )
    use_fresh_kernels.cache_clear()
    render()
    render()
    assert cleaned == [PACKAGE]


def test_importing_the_renderers_removes_nothing():
    code = (
        "import pathlib; removed = []\n"
        "pathlib.Path.unlink = lambda path, **_: removed.append(path)\n"
        "import depthdist.synthetic.tires.render, depthdist.synthetic.rooms.render\n"
        "from depthdist.synthetic.raytracing.kernel_cache import use_fresh_kernels\n"
        "assert not removed and use_fresh_kernels.cache_info().currsize == 0, removed"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["make_tires", "make_rooms"])
def test_help_needs_no_compiler(command):
    code = (
        f"import sys; from tools.{command} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'torch', 'tqdm', 'scipy', 'matplotlib', 'transformers'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
