"""The runs of each study: which captures each trains on, and with which flags."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from depthdist.captures.layouts import find_pairs
from depthdist.captures.sessions import number_sessions
from depthdist.core.settings import Size, positional
from depthdist.training.settings import RECIPES as TRAINING_RECIPES

RECIPES = {
    "document": "--recipe document",
    "standard": "--recipe standard",
    "document, lr x 10": "--recipe document --lr 5e-4",
    "near": "--recipe near",
    "near, decoder trained": "--recipe near --decoder trained",
}
ABLATIONS = {
    "as it is": "",
    "no gradient loss": "--loss l1=1",
    "edges in mm": "--loss l1=1,grad_mm=3",
    "linear depth": "--target linear",
    "bilinear upsampling": "--upsampling bilinear",
}


@dataclass(frozen=True)
class StudySettings:
    """Study."""

    raw: str | None = positional(None)
    "Folder of captures."
    model: str | None = None
    """Base model, as `depthdist train` takes it; or the folder of a run whose decoder was trained:
    it is converted to a model of relative depth first. Default: `depthdist train`'s."""
    recipe: str = "near"
    "Recipe of the runs, where the study does not vary it: standard, document or near."
    epochs: int = 15
    "Of each run; a run on fewer captures gets as many optimizer steps, not epochs."
    size: Size | None = None
    """Height and width of the images that the network sees. Default: the camera's aspect at the
    recipe's number of pixels."""
    val: float = 0.2
    "Share of the captures for validation."
    split: str = "session"
    "How the captures are split, where the study does not vary it: session or random."
    train_subset: tuple[int, ...] = (5, 10, 20, 46)
    """curve: numbers of training captures, separated by commas; each set contains the smaller
    ones."""
    deepspeed: Path = Path("ds_configs/fp16.json")
    "Precision and batch."
    ranks: int = 1
    "Processes of each run on a CPU, GPUs where there are some; 1: the launcher takes all GPUs."
    train: str = ""
    "More flags for each `depthdist train`, as one text: '--lr 1e-4 --lora linear'."
    out: Path = Path("runs/study")
    "Folder for shards and runs."

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        from depthdist.training.deepspeed_config import EngineSettings

        found = []
        if not self.raw or not Path(self.raw).is_dir():
            what = f"{self.raw}: no such folder; expected" if self.raw else "RAW is missing:"
            found.append(f"{what} a folder of captures")
        for name in ("epochs", "ranks"):
            if getattr(self, name) < 1:
                found.append(f"--{name} is {getattr(self, name)}: expected >= 1")
        found += EngineSettings(self.deepspeed).problems()
        found += [f"--train-subset has {n}: expected >= 1" for n in self.train_subset if n < 1]
        if self.split not in ("session", "random"):
            found.append(f"--split is {self.split}: expected session or random")
        if self.recipe not in TRAINING_RECIPES:
            expected = ", ".join(TRAINING_RECIPES)
            found.append(f"--recipe is {self.recipe}: expected one of {expected}")
        return found


@dataclass(frozen=True)
class Run:
    """One run of a study.

    row      its name in the table
    shard    flags of `depthdist shard`
    groups   lines of a group file for --split file, or None
    train    flags of `depthdist train`
    """

    row: str
    shard: str
    groups: list[str] | None
    train: str


def recipes(settings: StudySettings) -> Iterator[Run]:
    """Yield a run for each recipe, and for the steps between the published one and ours."""
    for row, words in RECIPES.items():
        yield Run(row, f"--split {settings.split}", None, words)


def ablations(settings: StudySettings) -> Iterator[Run]:
    """Yield a run for each part of the recipe that is left out or replaced."""
    split = f"--split {settings.split}"
    recipe = f"--recipe {settings.recipe}"
    for row, words in ABLATIONS.items():
        yield Run(row, split, None, f"{recipe} {words}")
    assert settings.size, "main has chosen one"
    height, width = settings.size
    half = Size(height // 28 * 14, width // 28 * 14)
    yield Run(f"pictures of {half}", f"{split} --size {half}", None, recipe)


def foundation(settings: StudySettings) -> Iterator[Run]:
    """Yield a run of LoRA alone on the base, and one on the built-in model's random start."""
    from depthdist.models.adapter import save_full_model
    from depthdist.models.builtin_start import initial_model

    random = settings.out / "start"
    if not (random / "config.json").exists():
        save_full_model(initial_model(0), {}, None, random)
    split = f"--split {settings.split}"
    recipe = f"--recipe {settings.recipe}"
    yield Run(f"{settings.model or 'the base'}, LoRA alone", split, None, recipe)
    on_random = f"{recipe} --model {shlex.quote(str(random))}"
    yield Run("random weights, LoRA alone", split, None, on_random)


def splits(settings: StudySettings) -> Iterator[Run]:
    """Yield a run on a random split, and one on a split by session."""
    for way in ("random", "session"):
        yield Run(f"split {way}", f"--split {way}", None, f"--recipe {settings.recipe}")


def leave_one_out(settings: StudySettings) -> Iterator[Run]:
    """Yield a run for each session, which is its validation set."""
    stems, sessions = _sessions(settings)
    for left_out in sorted(set(sessions)):
        groups = [
            f"{stem},{'val' if session == left_out else 'train'}"
            for stem, session in zip(stems, sessions)
        ]
        row = f"without session {left_out} ({sessions.count(left_out)})"
        yield Run(row, "--split file", groups, f"--recipe {settings.recipe}")


def curve(settings: StudySettings) -> Iterator[Run]:
    """Yield runs on growing training sets with one validation set, the smallest sessions.

    Raise ValueError if --train-subset asks for more captures than the training side has.
    """
    stems, sessions = _sessions(settings)
    val = _validation_sessions(sessions, settings.val)
    train = [stem for stem, session in zip(stems, sessions) if session not in val]
    # numbers by their reversed bits: the first few of them are spread over all
    spread_order = sorted(range(len(train)), key=lambda i: (int(f"{i:020b}"[::-1], 2), i))
    spread = [train[i] for i in spread_order]
    from depthdist.training.deepspeed_config import EngineSettings

    batch = EngineSettings(settings.deepspeed).batch
    for count in settings.train_subset:
        if count > len(train):
            raise ValueError(
                f"--train-subset has {count}: the training side has {len(train)} captures"
                f" ({len(val)} of {len(set(sessions))} sessions are for validation)"
            )
        chosen = set(spread[:count])
        groups = []
        for stem, session in zip(stems, sessions):
            side = "train" if stem in chosen else "skip"
            groups.append(f"{stem},{'val' if session in val else side}")
        # as many optimizer steps as --epochs of all training captures
        steps_of_all = -(-len(train) // batch)
        steps = -(-count // batch)
        epochs = max(1, round(settings.epochs * steps_of_all / steps))
        row = f"{count} captures, {epochs} epochs"
        yield Run(row, "--split file", groups, f"--recipe {settings.recipe} --epochs {epochs}")


def _sessions(settings: StudySettings) -> tuple[list[str], list[int]]:
    """Return every capture's stem and session number, raise ValueError if there is one session."""
    assert settings.raw, "checked by problems()"
    stems = [pair.stem for pair in find_pairs(settings.raw)[0]]
    sessions = number_sessions(stems)
    if len(set(sessions)) < 2:
        raise ValueError(
            f"{settings.raw}: {len(stems)} captures of {len(set(sessions))} session; expected"
            " captures of two or more, by the times in their names"
        )
    return stems, sessions


def _validation_sessions(sessions: list[int], share: float) -> set[int]:
    """Return the smallest sessions, at least one, that have at most `share` of the captures."""
    val: set[int] = set()
    num_val = 0
    for session in sorted(set(sessions), key=lambda n: (sessions.count(n), n)):
        count = sessions.count(session)
        if not val or num_val + count <= share * len(sessions):
            val.add(session)
            num_val += count
    return val


STUDIES: dict[str, Callable[[StudySettings], Iterator[Run]]] = {
    "recipes": recipes,
    "curve": curve,
    "sessions": leave_one_out,
    "splits": splits,
    "ablations": ablations,
    "foundation": foundation,
}
