"""What is said of a run that is no better than a constant depth."""

import pytest
from helpers.commands import command
from helpers.html_pages import read
from helpers.runs import train

from depthdist.evaluation.verdict import RunFacts, advice, describe_no_better, still_falls

SETTINGS = {"calibrate": True, "lr": 5e-5, "epochs": 15, "data": ["data/mine"], "relative": False}
FLAT = [0.2, 0.1, 0.1, 0.1, 0.1, 0.1]


def facts(num_train=46, losses=FLAT, **settings):
    return RunFacts({**SETTINGS, **settings}, num_train, losses)


@pytest.mark.parametrize(("ours_mm", "said"), [(294.9, False), (295.0, True), (340.0, True)])
def test_only_an_adapter_that_is_not_below_the_constant_is_warned_of(ours_mm, said):
    line = describe_no_better({"rmse_mm": 295.0}, {"rmse_mm": ours_mm}, facts())
    assert (line is not None) == said
    if line:
        assert f"RMSE {ours_mm:.1f} mm, and 295.0 mm for the same depth everywhere" in line


def test_relative_depth_has_no_millimetres_to_compare():
    assert describe_no_better({"rmse_mm": 1.0}, {"rmse_mm": 9.0}, facts(relative=True)) is None


@pytest.mark.parametrize(
    ("known", "first"),
    [
        (facts(calibrate=False, losses=[3, 2, 1]), "the default recipe"),
        (facts(losses=[3, 2, 1]), "more --epochs than 15"),
        (facts(), "--recipe near"),
        (facts(lr=1e-3, num_train=7), "more captures than 7"),
        (facts(lr=1e-3), "a look at the data (depthdist report data data/mine)"),
    ],
)
def test_what_is_known_of_the_run_decides_what_to_try_first(known, first):
    assert advice(known)[0].startswith(first)
    assert advice(known)[-1].startswith("--overfit 4")


@pytest.mark.parametrize(
    ("losses", "falls"), [([], False), ([1], False), (FLAT, False), ([1, 0.9], True)]
)
def test_a_loss_falls_where_its_end_is_below_all_before(losses, falls):
    assert still_falls(losses) == falls


def test_training_evaluation_and_report_say_it_alike(data, tmp_path):
    run = tmp_path / "run"
    done = train(data, run, "--recipe", "document", "--lr", 1e-9, "--epochs", 1)
    line = done.out.splitlines()[-1]
    assert line.startswith("WARNING      the adapter is no better than a constant depth: RMSE ")
    assert "what to try: the default recipe" in line and "more captures than 11" in line
    evaluated = command("launch/evaluate.py", "--run", run, "--no-details")
    assert line in evaluated.out.splitlines()
    assert command("tools/report.py", "run", run).code == 0
    assert line.removeprefix("WARNING      ") in read(run / "report.html")
