"""Settings: flags, files, help and messages.

Every promise over every settings dataclass of the project.
"""

from pathlib import Path

import pytest
from helpers.captures import ROOT
from helpers.settings import CHANGED, Shot, json_file, lens, problems

from depthdist.core.command_line import parse
from depthdist.core.settings import Size, as_dict
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.settings import KeepSettings

pytestmark = pytest.mark.usefixtures("no_data_needed")


# ------------------------------------------------------------------------------------------- values

VALUES = [  # field, as a flag gives it, as JSON gives it, the value
    ("focal", "35", 35, 35.0),
    ("focal", "2e-3", 2e-3, 2e-3),
    ("blades", "-3", -3, -3),
    ("blades", "9", 9.0, 9),
    ("name", "a b=c", "a b=c", "a b=c"),
    ("frame", "28x42", "28x42", Size(28, 42)),
    ("frame", "28X42", [28, 42], Size(28, 42)),
    ("crop", "14x14", "14x14", Size(14, 14)),
    ("crop", "none", None, None),
    ("mount", "bayonet", "bayonet", "bayonet"),
    ("spans", "0.25,8", [0.25, 8], (0.25, 8.0)),
    ("stops", "4", [4], (4,)),
    ("stops", "4,5,6", [4, 5, 6], (4, 5, 6)),
    ("makers", "x,y", ["x", "y"], ["x", "y"]),
    ("case", "some/where", "some/where", Path("some/where")),
    ("case", "none", None, None),
    ("slot", "3", 3, 3),
]


@pytest.mark.parametrize(("field", "flag", "as_json", "value"), VALUES)
def test_a_flag_and_json_give_the_same_value_of_the_fields_type(
    field, flag, as_json, value, tmp_path
):
    for settings in (
        lens(f"--{field}={flag}"),
        lens("--config", json_file(tmp_path, {field: as_json})),
    ):
        found = getattr(settings, field)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("word", ["--sharp", "--no-sharp"])
def test_a_bool_is_a_flag_without_a_value(word, tmp_path):
    assert lens(word).sharp is (word == "--sharp")
    assert lens("--config", json_file(tmp_path, {"sharp": word == "--sharp"})).sharp is (
        word == "--sharp"
    )


WRONG = [
    ("focal", "wide", "a number"),
    ("focal", None, "a number"),
    ("focal", True, "a number"),
    ("focal", [1], "a number"),
    ("blades", "2.5", "a whole number"),
    ("blades", 2.5, "a whole number"),
    ("blades", False, "a whole number"),
    ("sharp", "yes", "true or false"),
    ("sharp", 1, "true or false"),
    ("name", 3, "text"),
    ("frame", "756", "HxW in pixels"),
    ("frame", [1, 2, 3], "HxW in pixels"),
    ("frame", [1.5, 2], "HxW in pixels"),
    ("crop", "big", "HxW in pixels"),
    ("mount", "glue", "one of screw, bayonet"),
    ("spans", "1", "2 values"),
    ("spans", [1, 2, 3], "2 values"),
    ("spans", [1, "x"], "a number"),
    ("stops", "1,x", "a whole number"),
    ("makers", [1], "text"),
    ("case", 3, "text"),
]


@pytest.mark.parametrize(("field", "value", "expected"), WRONG)
def test_a_value_of_the_wrong_kind_is_one_line_that_says_what_was_expected(
    field, value, expected, tmp_path
):
    (line,) = problems("--config", json_file(tmp_path, {field: value}))
    assert f"--{field} is {value!r}" in line and f"expected {expected}" in line
    if isinstance(value, str) and field != "sharp":
        (line,) = problems(f"--{field}={value}")
        assert f"--{field} is {value!r}" in line and f"expected {expected}" in line


# --------------------------------------------------------------------------- where values come from


def test_defaults_then_the_file_then_flags(tmp_path):
    file = json_file(tmp_path, {"focal": 35, "blades": 9})
    settings = lens("--config", file, "--blades", "11")
    assert (settings.focal, settings.blades, settings.name) == (35.0, 11, "plain")
    assert lens("--blades=11", "--config", file) == settings, "wherever on the line --config stands"


@pytest.mark.parametrize("spelling", ["log-every", "log_every"])
def test_the_file_may_write_dashes_or_underscores(spelling, tmp_path):
    assert (
        parse("x", KeepSettings, argv=["--config", json_file(tmp_path, {spelling: 7})])[0].log_every
        == 7
    )


def test_a_runs_record_is_a_file_of_settings(tmp_path):
    record = {"settings": {"blades": 9}, "derived": {"steps": 90}, "versions": {"torch": "2"}}
    assert lens("--config", json_file(tmp_path, record)).blades == 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object of settings, found list"),
        ("\x00", "not JSON"),
        ('{"settings": {"fokal": 1}}', "unknown setting fokal"),
    ],
)
def test_a_file_that_is_no_settings_is_one_line_with_its_name(content, said, tmp_path):
    path = json_file(tmp_path, content)
    (line,) = problems("--config", path)
    assert path in line and said in line


def test_a_file_that_is_not_there_is_one_line_with_its_name(tmp_path):
    (line,) = problems("--config", str(tmp_path / "none.json"))
    assert str(tmp_path / "none.json") in line and "No such file" in line


def test_positionals_and_needed_fields():
    (shot,) = parse("x", Shot, argv=["a.png", "b,c.png", "--folder", "out"])
    assert shot == Shot(pictures=[Path("a.png"), Path("b,c.png")], folder=Path("out"))
    (line,) = problems("a.png", groups=(Shot,))
    assert "--folder is missing" in line and "Where to." in line


# --------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("settings", CHANGED, ids=lambda s: type(s).__name__)
def test_settings_come_back_from_json_as_they_were(settings, tmp_path):
    record = json_file(tmp_path, {"settings": as_dict(settings)})
    assert parse("x", type(settings), argv=["--config", record]) == (settings,)


def test_a_hidden_field_is_the_launchers_and_not_in_a_record():
    assert "local_rank" not in as_dict(EngineSettings(local_rank=3))
    for spelling in ("--local-rank=3", "--local_rank=3"):
        assert (
            parse(
                "x",
                EngineSettings,
                argv=[spelling, "--deepspeed", str(ROOT / "ds_configs/fp32.json")],
            )[0].local_rank
            == 3
        )


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_a_json_number_that_is_no_whole_number_is_one_line(number, tmp_path):
    (line,) = problems("--config", json_file(tmp_path, f'{{"blades": {number}}}'))
    assert "--blades is" in line
