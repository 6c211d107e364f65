"""Settings: flags, files, help and messages.

Every promise over every settings dataclass of the project.
"""

import argparse
import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from helpers.captures import ROOT

from depthdist.core.command_line import parse
from depthdist.core.errors import SettingsError
from depthdist.core.settings import Size, as_dict, field_help, hidden, positional
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings, ReadSettings
from depthdist.evaluation.settings import EvaluateSettings
from depthdist.inference.settings import (
    ExportSettings,
    ExternalAdapterSettings,
    PredictSettings,
    ServeSettings,
)
from depthdist.losses.settings import LossSettings
from depthdist.models.settings import LoraSettings, ModelSettings
from depthdist.shards.remote_cache import CacheSettings
from depthdist.shards.settings import ShardSettings
from depthdist.synthetic.settings import OutputSettings
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.schedule import ScheduleSettings
from depthdist.training.settings import KeepSettings, TrainSettings
from tools.pretrain_builtin import PretrainSettings
from tools.study_plans import StudySettings

# Every settings dataclass, as a user could have set it: nothing at its default where the field's
# type allows another value.
CHANGED = [
    DataSettings(
        data=("some/where", "s3://else/where"), weights=(1.0, 0.5), size=Size(28, 42), threads=3
    ),
    DataSettings(),
    ReadSettings(threads=1, processes=2, damaged="quarantine", max_damaged=0, stall=1.5),
    CacheSettings(cache=Path("some/where"), cache_gb=1.5, allow_pipe=True),
    AugmentSettings(flip=0.5, exposure=1.0, tone=0.3, colour=0.1, noise=2.0, jpeg=40),
    ModelSettings(model="tiny"),
    LoraSettings(
        lora="conv",
        lora_targets=".*fc1",
        lora_rank=4,
        lora_alpha=8,
        lora_dropout=0.1,
        dora=True,
        rslora=True,
        decoder="trained",
    ),
    LossSettings(
        loss="l1=0.5,grad=2",
        gamma=3.25,
        tau=1e-3,
        tau_mm=6.5,
        trusted_radius=3,
        scales=2,
        silog_lambda=0.85,
    ),
    TrainSettings(
        run=Path("runs/a b"),
        recipe="near",
        epochs=2,
        lr=1.7e-05,
        decoder_lr=1e-4,
        calibrate=True,
        seed=2**62,
    ),
    TrainSettings(),
    ScheduleSettings(schedule="cosine", warmup=3, patience=2, best_by="abs_rel", ema=0.9),
    KeepSettings(
        resume="never",
        save_every="1.5min",
        keep=3,
        log_every=3,
        watch_every=7,
        pictures=0,
        dry_run=True,
    ),
    EngineSettings(
        deepspeed=ROOT / "ds_configs/fp32.json",
        micro_batch="auto",
        checkpointing=True,
        compile=True,
    ),
    ShardSettings(
        raw="in",
        out="out",
        workers=2,
        val=0.3,
        size=Size(28, 42),
        split="session",
        rgb="png",
        near=1.5,
        shard_mb=0.5,
    ),
    EvaluateSettings(run=Path("r"), data=("d", "e"), split="train", micro_batch=4),
    EvaluateSettings(run=Path("r")),
    PredictSettings(
        run="r",
        inputs=["a,b.png", "c"],
        out=Path("no such folder"),
        save=("ply", "npy"),
        refine="tiles",
        flip=True,
        fov=55.5,
        batch=3,
    ),
    PredictSettings(
        run="owner/name",
        inputs=["c"],
        save=("ply",),
        intrinsics=(900.5, 901.0, 480.0, 300.25),
        again=True,
    ),
    ExportSettings(run="r", out=Path("no such folder"), forms=("adapter", "model")),
    ServeSettings(
        run="r",
        host="localhost",
        port=0,
        refine="guided",
        flip=True,
        fov=70.0,
        max_mb=2.5,
        keep=2,
        waiting=1,
    ),
    ExternalAdapterSettings(
        near_mm=250.5, far_mm=3900.0, size=Size(28, 42), target="linear", base="built-in"
    ),
    OutputSettings(out=Path("some/where"), workers=3),
    StudySettings(
        raw="some/where",
        model="tiny",
        recipe="document",
        epochs=3,
        size=Size(28, 42),
        val=0.5,
        split="random",
        train_subset=(5, 10),
        deepspeed=ROOT / "ds_configs/fp32.json",
        ranks=2,
        train="--lr 1e-4",
        out=Path("else/where"),
    ),
    PretrainSettings(
        out=Path("some/where"),
        size=Size(28, 56),
        small_scenes=60,
        small_epochs=2,
        small_lr=1e-3,
        scenes=70,
        epochs=3,
        lr=1e-3,
        warmup=5,
        ranks=2,
        seed=9,
    ),
]
GROUPS = list(dict.fromkeys(type(s) for s in CHANGED))


@pytest.fixture(autouse=True)
def no_data_needed(monkeypatch):
    """Whether the data is there is DataSettings' own affair, tested with the stream."""
    monkeypatch.setattr(DataSettings, "problems", lambda self: [])


@dataclass(frozen=True)
class Lens:
    """Lens of the tests"""

    focal: float = 50.0
    "Focal length, mm; 100 % of it."
    blades: int = 7
    "Blades of the aperture."
    sharp: bool = True
    "Whether it is sharp."
    name: str = "plain"
    "What it is called."
    frame: Size = Size(756, 1260)
    "Height x width."
    crop: Size | None = None
    "A part of it."
    mount: Literal["screw", "bayonet"] = "screw"
    "How it is fixed."
    spans: tuple[float, float] = (0.5, 2.0)
    "Near and far."
    stops: tuple[int, ...] = (1, 2)
    "Any number of them."
    makers: list[str] = dataclasses.field(default_factory=lambda: ["a", "b"])
    "Who makes it."
    case: Path | None = None
    "Where it lies."
    slot: int = hidden(-1)
    "Set by a launcher."

    def problems(self):
        return [f"--focal is {self.focal}: expected > 0"] if self.focal <= 0 else []


@dataclass(frozen=True)
class Shot:
    """Shot of the tests."""

    pictures: list[Path] = positional(())
    "Pictures."
    folder: Path = dataclasses.field(default=dataclasses.MISSING, kw_only=True)
    "Where to."


def lens(*argv):
    return parse("a lens", Lens, argv=list(argv))[0]


def problems(*argv, groups=(Lens,), **how):
    with pytest.raises(SettingsError) as caught:
        parse("a lens", *groups, argv=list(argv), **how)
    return str(caught.value).splitlines()


def json_file(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


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


# ----------------------------------------------------------------------------------------- messages


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


# --------------------------------------------------------------------------------------------- help


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


# ------------------------------------------------------------------------------------------ presets

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
