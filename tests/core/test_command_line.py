"""--help and the messages of the command line."""

import argparse
import dataclasses
import re
from dataclasses import dataclass

import pytest
from helpers.captures import ROOT
from helpers.commands import command
from helpers.settings import CHANGED, Lens, Shot, json_file, problems

from depthdist.core.command_line import parse
from depthdist.core.errors import SettingsError
from depthdist.core.settings import field_help
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings
from depthdist.losses.settings import LossSettings
from depthdist.models.settings import ModelSettings
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.settings import KeepSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("no_data_needed")


GROUPS = list(dict.fromkeys(type(s) for s in CHANGED))


def test_an_unknown_flag_names_those_that_are_near():
    (line,) = problems("--focla=3")
    assert line.startswith("unknown setting --focla; did you mean --focal")
    assert "--log-every" in problems("--log_evry=3", groups=(KeepSettings,))[0]


def test_an_unknown_key_names_those_that_are_near_and_its_file(tmp_path):
    path = json_file(tmp_path, {"blade": 3, "xyzzy": 1})
    assert problems("--config", path) == [
        f"--config {path}: unknown setting blade; did you mean blades?",
        f"--config {path}: unknown setting xyzzy",
    ]


def test_a_flag_is_never_guessed_from_its_beginning():
    assert "unknown setting --foc" in problems("--foc=3")[0]


def test_all_problems_are_reported_at_once(tmp_path):
    file = json_file(tmp_path, {"blade": 3, "frame": "big"})
    lines = problems(
        "--config",
        file,
        "--blades=x",
        "--mount=glue",
        "--focal=-1",
        "--nme=3",
        groups=(Lens, LossSettings),
    )
    for part in (
        "unknown setting blade",
        "--frame is 'big'",
        "--blades is 'x'",
        "--mount is 'glue'",
        "--focal is -1.0: expected > 0",
        "unknown setting --nme",
    ):
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert len(lines) == 6


def test_problems_of_every_group_are_reported_together_and_what_concerns_all_only_after():
    asked = []
    lines = problems(
        "--focal=0",
        "--tau=-1",
        groups=(Lens, LossSettings),
        together=lambda *made: asked.append(made) or ["late"],
    )
    assert len(lines) == 2 and "--focal" in lines[0] and "--tau" in lines[1] and not asked
    assert problems(together=lambda made: [f"{made.blades} blades do not go with {made.name}"]) == [
        "7 blades do not go with plain"
    ]


def test_a_flag_without_its_value_is_a_line_and_not_an_exit():
    assert "--focal" in problems("--focal")[0]


def help_of(group, capsys):
    with pytest.raises(SystemExit) as ended:
        parse("what it is for", group, argv=["--help"], epilog="the end")
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("group", [*GROUPS, Lens, Shot], ids=lambda g: g.__name__)
def test_help_has_every_fields_sentence_default_and_title(group, capsys):
    text = help_of(group, capsys)
    assert "what it is for" in text and "the end" in text and "--config FILE.json" in text
    assert " ".join(group.__doc__.splitlines()[0].rstrip(".").split()) + ":" in text
    for field in dataclasses.fields(group):
        flag = "--" + field.name.replace("_", "-")
        sentence = " ".join(field_help(group)[field.name].split())
        if field.metadata.get("hidden"):
            assert flag not in text and field.name not in text and sentence not in text
            continue
        assert sentence in text
        assert (field.name.upper() if field.metadata.get("positional") else flag) in text
        default = field.default
        if (
            not field.metadata.get("positional")
            and default not in (dataclasses.MISSING, None, "")
            and not isinstance(default, tuple | bool)
        ):
            assert f"{sentence} [{default}]" in text, f"the default stands behind {flag}'s sentence"
        if isinstance(default, bool):
            assert (
                f"{sentence} [{'yes' if default else 'no'}]" in text and f"--no-{flag[2:]}" in text
            )
    assert argparse.SUPPRESS not in text


def test_help_writes_sizes_lists_and_choices_as_they_are_typed(capsys):
    text = help_of(Lens, capsys)
    for part in (
        "--frame HxW",
        "[756x1260]",
        "--crop HxW",
        "--mount screw|bayonet",
        "[0.5,2.0]",
        "[1,2]",
        "[a,b]",
        "100 % of it. [50.0]",
    ):
        assert part in text


def test_help_lists_the_most_used_first_in_their_order_and_what_is_inherited_last(capsys):
    @dataclass(frozen=True)
    class Camera(Lens):
        """Camera."""

        body: str = "black"
        "Its color."
        shutter: float = 0.01
        "Seconds."

    with pytest.raises(SystemExit):
        parse("a", Camera, Shot, argv=["--help"], first=("shutter", "folder", "focal"))
    text = capsys.readouterr().out
    flags = re.findall(r"^  --([a-z-]+)", text, re.M)
    assert flags[:5] == ["config", "shutter", "folder", "focal", "body"]
    assert flags[-1] == "case" and len(flags) == len(set(flags))
    titles = ["Most used:", "Camera:", "Shot of the tests:", "Lens of the tests:"]
    assert [line for line in text.splitlines() if line in titles] == titles


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "serve"])
def test_the_commands_list_what_is_most_used_first_and_caches_last(name):
    titles = re.findall(r"^(\S.*):$", command(f"launch/{name}.py", "--help").out, re.M)
    assert titles[:2] == ["options", "Most used"]
    assert name != "train" or titles[-1] == "Cache, and remote data (s3://, gs://, https://, hf://)"


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.__name__)
def test_every_field_has_its_own_sentence(group):
    texts = field_help(group)
    assert set(texts) == {f.name for f in dataclasses.fields(group)}
    assert len(set(texts.values())) == len(texts) and all(
        text.rstrip().endswith(".") for text in texts.values()
    )


@pytest.mark.parametrize(
    "groups",
    [(DataSettings, AugmentSettings, ModelSettings, LossSettings, TrainSettings, EngineSettings)],
)
def test_no_two_groups_of_a_command_share_a_field(groups):
    names = [f.name for g in groups for f in dataclasses.fields(g)]
    assert len(names) == len(set(names))


def test_every_settings_class_of_the_project_is_tested_here():
    source = "".join(
        p.read_text()
        for p in [
            *ROOT.glob("depthdist/**/*.py"),
            *ROOT.glob("tools/*.py"),
            *ROOT.glob("launch/*.py"),
        ]
    )
    assert set(re.findall(r"^class (\w+Settings)\b", source, re.M)) == {
        g.__name__ for g in GROUPS if g.__name__.endswith("Settings")
    }


def test_sentences_of_a_parent_are_found():
    @dataclass(frozen=True)
    class Zoom(LossSettings):
        """Zoom"""

        steps: int = 3
        "Steps."

    assert field_help(Zoom) == {**field_help(LossSettings), "steps": "Steps."}


PRESETS = ("mount", {"screw": {}, "bayonet": {"focal": 85.0, "blades": 9}})


@pytest.mark.parametrize(
    ("words", "in_file", "focal", "blades"),
    [
        ([], {}, 50, 7),
        (["--mount", "bayonet"], {}, 85, 9),
        (["--mount", "bayonet", "--blades", "5"], {}, 85, 5),
        ([], {"mount": "bayonet"}, 85, 9),
        (["--mount", "screw"], {"mount": "bayonet"}, 50, 7),
        (["--mount", "bayonet"], {"focal": 35}, 35, 9),
    ],
)
def test_a_preset_brings_defaults_that_files_and_flags_win_over(
    words, in_file, focal, blades, tmp_path
):
    (found,) = parse(
        "x", Lens, argv=[*words, "--config", json_file(tmp_path, in_file)], presets=PRESETS
    )
    assert (found.focal, found.blades) == (focal, blades)


def test_a_preset_that_is_not_there_is_said_once():
    with pytest.raises(
        SettingsError, match="--mount is 'glue': expected one of screw, bayonet"
    ) as caught:
        parse("x", Lens, argv=["--mount", "glue"], presets=PRESETS)
    assert str(caught.value).count("\n") == 0
