"""Every settings dataclass with changed values, and two made up for tests."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from depthdist.commands.demo import DemoSettings
from depthdist.commands.detail import RunSettings
from depthdist.commands.holes import HolesSettings
from depthdist.commands.relief import ReliefSettings
from depthdist.commands.study_plans import StudySettings
from depthdist.commands.train import LaunchSettings
from depthdist.core.command_line import parse
from depthdist.core.errors import SettingsError
from depthdist.core.settings import Size, hidden, positional
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.capture_folders import FolderSettings
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
from depthdist.shards.settings import (
    CaptureSettings,
    FileSettings,
    PlaceSettings,
    ShardSettings,
    SplitSettings,
)
from depthdist.synthetic.settings import OutputSettings
from depthdist.training.completion.settings import CompletionSettings
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.detail.settings import DetailSettings
from depthdist.training.schedule import ScheduleSettings
from depthdist.training.settings import KeepSettings, TrainSettings
from depthdist.training.stage_settings import StageSettings
from helpers.captures import ROOT
from tools.groove_cues import CueSettings
from tools.pretrain_builtin import PretrainSettings

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
        overfit=4,
        seed=2**62,
    ),
    TrainSettings(),
    ScheduleSettings(
        schedule="cosine", warmup=3, patience=2, best_by="abs_rel", val_images=7, ema=0.9
    ),
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
    CompletionSettings(
        completion=True, completion_steps=40, completion_images=2, completion_lr=1e-4
    ),
    DetailSettings(
        detail=True,
        detail_steps=40,
        detail_crops=4,
        detail_crop=96,
        detail_lr=5e-4,
    ),
    StageSettings(raw=Path("some/where"), detail_folds=3, detail_memory=100),
    DetailSettings(),
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
    FileSettings(unit=0.1, intrinsics=(50.0, 60.0, 21.0, 14.0), min_snr=3.0, registered=True),
    CaptureSettings(near=1.5, far=3000.0, check_view=False, fov=40.0),
    SplitSettings(split="file", groups="g.csv", val=0.3, session_gap=5.0),
    PlaceSettings(raw="in", out="out", append=True, workers=2, max_rejects=1),
    FolderSettings(split="session", val=0.3, near=1.5, unit=1000.0, split_seed=7),
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
        memory_mb=50.0,
        client_s=7.5,
    ),
    ExternalAdapterSettings(
        near_mm=250.5, far_mm=3900.0, size=Size(28, 42), target="linear", base="built-in"
    ),
    OutputSettings(out=Path("some/where"), workers=3),
    DemoSettings(
        run=Path("some/where"),
        model="tiny",
        pairs=4,
        capture=Size(60, 98),
        size=Size(28, 42),
        epochs=1,
        detail_steps=4,
    ),
    RunSettings(run=Path("some/where")),
    HolesSettings(run=Path("a"), captures=ROOT / "tests", out=Path("c.json"), seed=3),
    ReliefSettings(
        run=Path("some/where"),
        captures=ROOT / "tests",
        half=ROOT / "tools",
        out=ROOT / "relief.json",
        refine="guided",
        tread_limit=2.0,
        workers=3,
    ),
    CueSettings(fit=Path("some"), test=Path("where")),
    LaunchSettings(gpus=2, hostfile=ROOT / "setup.cfg", master_port=29501),
    StudySettings(
        raw=str(ROOT),
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
