"""launch/tour.ipynb: its cells run one after the other, and it stays small."""

import contextlib
import io
import json

import pytest
from helpers.captures import ROOT
from helpers.commands import ON_CPU

NOTEBOOK = ROOT / "launch/tour.ipynb"
CELLS = [
    "".join(cell["source"])
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]
QUICKER = {"CAPTURES, EPOCHS = 40, 20": "CAPTURES, EPOCHS = 16, 2", "(112, 182)": "(56, 98)"}


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The names that the cells leave, and what they printed."""
    source = "\n".join(CELLS)
    for text, other in QUICKER.items():
        assert source.count(text) == 1
        source = source.replace(text, other)
    names, out = {"__name__": "tour"}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        for name, value in {**ON_CPU, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}.items():
            patch.setenv(name, value)
        patch.chdir(tmp_path_factory.mktemp("tour"))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # of the shards
        exec(compile(source, NOTEBOOK, "exec"), names)
        names["saved"] = {path.name for path in names["folder"].iterdir()}
    return names, out.getvalue()


def test_eight_cells_run_from_captures_to_the_table(tour):
    names, out = tour
    assert len(CELLS) == 8
    assert {"captures", "run", "depth.npy", "cloud.ply"} <= names["saved"]
    assert "epoch 2/2: eval loss" in out, "training's progress"
    assert "best adapter, epoch" in out, "training's table"
    assert "below each row the 95 % interval" in out, "evaluation's table"


def test_the_prediction_has_the_captures_size_and_camera(tour):
    names, _ = tour
    assert names["result"].depth_mm.shape == (150, 243)
    assert names["result"].truth_mm.shape == (150, 243)
    assert names["result"].points_mm.shape == (150, 243, 3)


def test_the_notebook_is_small():
    assert NOTEBOOK.stat().st_size < 200_000
