"""The figures of a study of relief, against numbers worked by hand."""

import json
import math

import pytest

from depthdist.evaluation.metrics.grooves import Groove
from depthdist.evaluation.relief.measures import CAMERA, MeasuredCapture
from depthdist.evaluation.relief.study import (
    GOALS,
    MEAN,
    PIXEL_VALUES,
    compare_half,
    judge_goals,
    read_relief,
    summarize_rows,
)
from depthdist.evaluation.relief.tables import goal_lines


def grooves(*depths):
    return [Groove(i, 5.0, 1, pair) for i, pair in enumerate(depths, start=1)]


def measured(painted, rmse, *depths):
    values = {**dict.fromkeys(PIXEL_VALUES, 0.5), "rmse_mm": rmse}
    return MeasuredCapture(
        {"plain": grooves(*((g, 0.0) for g, _ in depths)), "detail": grooves(*depths)},
        {"plain": [], "detail": grooves(*((0.0, depth) for depth in painted))},
        {"plain": values, "detail": values},
    )


@pytest.fixture
def rows():
    captures = {
        "a": measured([0.5, -0.5], 10.0, (2.0, 2.0), (4.0, 3.0)),
        "b": measured([2.0], 30.0, (6.0, 4.0)),
    }
    return summarize_rows(captures, limit_mm=3.0)


def test_rows_are_over_all_grooves_and_means_of_captures(rows):
    detail = rows["detail"]
    assert (detail["grooves"], detail["mae_mm"], detail["bias_mm"]) == (3, 1.0, -1.0)
    assert (detail["slope"], detail["correlation"]) == (0.5, 1.0)
    # 3.0 = 2 + 0.5 x (true - 2): of the mean 3 mm, 0.5 x 4 follow depth
    assert detail["follows"] == pytest.approx(2 / 3)
    assert detail["balanced_decision"] == 1.0
    assert (detail["painted"], detail["painted_mm"]) == (3, 1.0)
    assert detail["painted_bias_mm"] == pytest.approx(2 / 3)
    assert detail["rmse_mm"] == 20.0


def test_without_relief_nothing_is_said_of_what_it_follows(rows):
    assert rows["plain"]["slope"] == 0.0
    assert math.isnan(rows["plain"]["follows"])
    assert math.isnan(rows["plain"]["painted_mm"])


def test_who_says_the_mean_has_a_row_of_grooves_alone(rows):
    # others' means: 6 for both of a, 3 for b
    assert rows[MEAN]["mae_mm"] == pytest.approx((4 + 2 + 3) / 3)
    assert "rmse_mm" not in rows[MEAN]


def test_half_the_depth_tells_what_follows_it():
    whole = {"a": {"detail": grooves((4.0, 2.0), (6.0, 3.0), (9.0, 9.0))}}
    half = {"a": {"detail": grooves((2.0, 1.5), (3.0, 2.5))}}  # the third is not measured there
    found = compare_half(whole, half)["detail"]
    assert (found["grooves"], found["true_mm"], found["pred_mm"]) == (2, 5.0, 2.5)
    assert (found["true_ratio"], found["pred_ratio"]) == (0.5, 0.8)
    assert found["follows"] == pytest.approx(0.4)
    same = compare_half({"a": {CAMERA: grooves((4.0, 4.0))}}, {"a": {CAMERA: grooves((2.0, 2.0))}})
    assert same[CAMERA]["follows"] == 1.0
    none = compare_half({"a": {"plain": grooves((4.0, 0.1))}}, {"a": {"plain": grooves((2.0, 0))}})
    assert math.isnan(none["plain"]["follows"]), "0.1 of 4 mm is no relief"


def test_goals_are_passed_at_their_limit_and_missed_beyond(rows):
    by_name = {goal["name"]: goal for goal in judge_goals(rows, "detail")}
    assert list(by_name) == [goal.name for goal in GOALS]
    mae = by_name["mae_mm"]  # plain is off by all of it: 4 mm
    assert (mae["value"], mae["plain"], mae["limit"], mae["passed"]) == (1.0, 4.0, 2.0, True)
    assert by_name["slope"]["passed"] and by_name["painted_mm"]["passed"]
    assert by_name["edge_f1@2mm"]["passed"] is False  # 0.5, as plain
    assert by_name["edge_f1@16mm"]["passed"] is True
    assert by_name["rmse_mm"]["passed"] is False
    rows["detail"]["painted_mm"] = math.nan
    rows["plain"]["edge_f1@16mm"] = 0.004  # 1 x as much says nothing
    lines = goal_lines(judge_goals(rows, "detail"))
    assert "passed        groove MAE, mm: 1.00, at most 2.00 (0.5 x plain's 4.00)" in lines
    assert "missed        edge F1, 2 mm: 0.500, at least 0.750 (1.5 x plain's 0.500)" in lines
    assert any(line.startswith("not judged    edge F1, 16 mm") for line in lines)
    assert "not judged    relief of painted treads, mm: -, at most 1.00" in lines


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}', '{"format": 1, "rows": [1]}'])
def test_a_relief_json_that_is_none_is_one_line(tmp_path, text):
    assert read_relief(tmp_path) is None
    (tmp_path / "relief.json").write_text(text)
    with pytest.raises(ValueError, match=r"relief\.json: not what depthdist relief writes") as err:
        read_relief(tmp_path)
    assert "\n" not in str(err.value)


def test_null_is_read_as_nan_and_what_was_not_judged_stays_so(tmp_path, rows):
    rows["detail"]["painted_mm"] = None
    goal = {"name": "slope", "value": None, "passed": None}
    content = {"format": 1, "rows": rows, "half": None, "goals": [goal]}
    (tmp_path / "relief.json").write_text(json.dumps(content).replace("NaN", "null"))
    found = read_relief(tmp_path)
    assert math.isnan(found["rows"]["detail"]["painted_mm"])
    assert math.isnan(found["goals"][0]["value"]) and found["goals"][0]["passed"] is None
