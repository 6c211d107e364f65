"""The settings of depthdist shard."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from depthdist.captures.read_options import NO_OPTIONS, ReadOptions, reading_problems
from depthdist.core.settings import (
    Size,
    as_dict,
    field_help,
    field_names,
    hidden,
    positional,
    range_problems,
)
from depthdist.geometry.patches import MAX_SIDE, PATCH_SIZE

if TYPE_CHECKING:
    from depthdist.captures.layouts import CapturePair

FAR_MM = 4000.0

NOT_CONTENT = {
    "raw",
    "out",
    "append",
    "groups",
    "verify",
    "index",
    "workers",
    "max_rejects",
}  # where files are and how fast the dataset is made; what --groups says is in the plan


class JpegQuality(NamedTuple):
    """How JPEGs are made."""

    quality: int
    subsampling: str


# by rgb_size. Resizing averages a JPEG's errors away; crops of full size keep them, and relief is
# in contrast of a few of 255 levels: see "What storing costs" in tools/README.md
JPEG_DEFAULTS = {"train": JpegQuality(95, "420"), "camera": JpegQuality(98, "444")}


@dataclass(frozen=True)
class FileSettings:
    """How the files of captures are read."""

    unit: float | None = None
    """Millimetres per unit of points and depths, 1000 for metres. Default: as the files or their
    layout say, else 1; what looks like metres is refused."""
    intrinsics: tuple[float, ...] = ()
    """fx,fy,cx,cy of depth images, in their pixels; column + 0.5 = fx X / Z + cx. Default: from the
    file beside them (intrinsics.json ...); depth trains without, but gives no clouds."""
    fov: float | None = None
    "The same by the horizontal field of view, degrees."
    min_snr: float = 0.0
    """Points with a lower signal-to-noise ratio or confidence are masked; a file that has neither
    is refused."""
    registered: bool = False
    """Take images and points of any two sizes: both see the same field. Default: one size, or one
    2, 3, 4 ... times the other's."""

    def problems(self) -> list[str]:
        """Return one line for each setting that is out of range or in conflict."""
        return reading_problems(self.read_options)

    @property
    def read_options(self) -> ReadOptions:
        """Return the settings as the readers of files take them."""
        return ReadOptions(self.unit, self.intrinsics, self.fov, self.min_snr, self.registered)


@dataclass(frozen=True)
class CaptureSettings(FileSettings):
    """What a capture's numbers mean, and which are kept."""

    near: float = 0.0
    """Depths up to this many mm are masked. Set it, or --far, and that bound of the dataset is the
    nearest, or farthest, depth that is left; by default stray pixels do not count."""
    far: float = FAR_MM
    "Depths beyond this many mm are masked; the depth step is far / 65535."
    check_view: bool = True
    """Reject captures whose points are not what a camera sees (world frames, scrambled, mirrored or
    transposed maps), and compare the edges of image and depth."""

    def problems(self) -> list[str]:
        """Return one line for each setting that is out of range."""
        return [
            *FileSettings.problems(self),
            *range_problems(
                self,
                ("near", 0 <= self.near < math.inf, "0 or more mm"),
                ("far", self.near < self.far < math.inf, "more than --near, in mm"),
            ),
        ]


@dataclass(frozen=True)
class SplitSettings:
    """Which captures are for training, and which for validation."""

    split: Literal["auto", "random", "session", "file", "folder", "none"] = "auto"
    """auto: as the YAML of an ultralytics folder says, else random; random: each pair may go to
    either side; session: captures close in time stay on one side; file: captures of a group in
    --groups stay on one side; folder: folders of captures that are named train, val, test or skip
    are the splits; none: all in train."""
    groups: str = ""
    """With --split file: text with a line `stem,group` for each capture; the groups train, val and
    test are those splits, skip leaves a capture out; these in upper or lower case, and their other
    names (validation, holdout, ...)."""
    val: float = 0.2
    "Fraction of the pairs for validation; those of a test do not count."
    session_gap: float = 10.0
    "A session ends after so many minutes without a capture."

    def problems(self) -> list[str]:
        """Return one line for each setting that is missing, out of range or in conflict."""
        found = range_problems(
            self,
            ("val", 0 < self.val < 1, "between 0 and 1 (for no validation: --split none)"),
            ("session_gap", 0 < self.session_gap < math.inf, "more than 0 minutes"),
        )
        if self.split == "file" and not self.groups and self.needs_groups:
            found.append(
                "--split is file and --groups is missing: expected --groups FILE, text with a line"
                " a capture: stem,group"
            )
        if self.groups and self.split != "file":
            found.append(
                f"--groups is {self.groups} and --split is {self.split}: expected --split file"
                " with it"
            )
        return found

    @property
    def needs_groups(self) -> bool:
        """Whether captures are split at all."""
        return True


@dataclass(frozen=True)
class PlaceSettings:
    """Where captures and their dataset are, and what is done."""

    raw: str = positional("")
    """Folder of captures: images/X_color.png + depth/X_rawDepth.npy, name.png + name.npy, and what
    tools/README.md lists."""
    out: str = positional("")
    "Folder for the dataset: tars, index.json, rejects.jsonl."
    append: bool = False
    """Add the captures in RAW that OUT does not hold yet (by name); what OUT holds is not
    written again."""
    verify: str = ""
    "Verify every byte of this dataset folder instead; RAW and OUT are not needed."
    index: str = ""
    """Index this folder of existing webdataset tars instead, in place; RAW and OUT are not
    needed."""
    workers: int = 0
    "Processes, each writing one whole shard; 0: one per core. The output does not depend on it."
    max_rejects: int = 0
    "With more bad pairs than this the exit code is 2, after all pairs were processed."


@dataclass(frozen=True)
class ShardSettings(CaptureSettings, SplitSettings, PlaceSettings):
    """Sharding."""

    seed: int = 42
    "Seed of the split."
    size: Size | None = None
    """Height and width the RGB is resized to, multiples of 14. Default: the camera's aspect at the
    recipe's number of pixels (1200x1944 gives 756x1260); with --append that of OUT."""
    depth_size: Literal["camera", "train"] = "camera"
    "Depth and mask at the camera's size, or at --size (nearest neighbour)."
    rgb_size: Literal["camera", "train"] = "train"
    """Images at --size, or as they are: readers then resize them in each epoch, any --size can be
    trained, and crops of full size can be read."""
    rgb: Literal["jpeg", "png", "raw"] = "jpeg"
    """Image codec; png and raw are lossless: png is smaller and slow to read, raw is large and by
    far the fastest."""
    quality: int | None = None
    "JPEG quality. Default: 95; 98 with --rgb-size camera, for the faint contrast of relief."
    subsampling: Literal["420", "444"] | None = None
    "JPEG chroma subsampling. Default: 420; 444 with --rgb-size camera."
    depth_codec: Literal["npy", "png"] = "npy"
    "Depth as plain .npy, or as 16-bit PNG: smaller, and slower to read."
    shard_mb: float = 256.0
    "Planned size of a shard in MiB."
    local_rank: int = hidden(-1)
    "Set by the launcher."

    def problems(self) -> list[str]:
        """Return one line for each setting that is missing, out of range or in conflict."""
        ranges = range_problems(
            self,
            ("workers", self.workers >= 0, "0 or more"),
            ("max_rejects", self.max_rejects >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 2**64, "0 or more"),
            ("quality", self.quality is None or 1 <= self.quality <= 100, "1 to 100"),
            ("shard_mb", 0 < self.shard_mb < math.inf, "more than 0 MiB"),
        )
        return [
            *self._folder_problems(),
            *self._rgb_size_problems(),
            *SplitSettings.problems(self),
            *size_problems(self.size),
            *ranges,
            *CaptureSettings.problems(self),
        ]

    def _folder_problems(self) -> list[str]:
        """Return what is wrong with RAW, OUT, --verify, --index and --split taken together."""
        given = [name.upper() for name in ("raw", "out") if getattr(self, name)]
        modes = [f"--{name}" for name in ("verify", "index") if getattr(self, name)]
        if modes:
            found = [
                f"{modes[0]} and {name} are both given; expected {modes[0]} DIR alone, or RAW OUT"
                for name in [*given, *modes[1:]]
            ]
            if self.split in ("file", "folder") and self.index:
                found.append(
                    f"--split is {self.split} with --index: expected random, session or none"
                    " (folders train, val and test in DIR decide, where there are any)"
                )
            return found
        texts = field_help(ShardSettings)
        return [
            f"{name.upper()} is missing: {texts[name]}"
            for name in ("raw", "out")
            if not getattr(self, name)
        ]

    def _rgb_size_problems(self) -> list[str]:
        """Return what --rgb-size camera is in conflict with."""
        if self.rgb_size == "train":
            return []
        if self.index:
            return ["--rgb-size is camera with --index: images in others' tars stay as they are"]
        if self.depth_size == "train":
            return [
                "--rgb-size is camera and --depth-size is train: expected --depth-size camera with"
                " it (crops need image and depth at one size)"
            ]
        return []

    @property
    def needs_groups(self) -> bool:
        """Whether captures are split at all."""
        return not (self.verify or self.index)

    @property
    def jpeg(self) -> JpegQuality:
        """Return JPEG quality and subsampling, those of the size where they are not given."""
        default = JPEG_DEFAULTS[self.rgb_size]
        return JpegQuality(
            default.quality if self.quality is None else self.quality,
            self.subsampling or default.subsampling,
        )

    @property
    def keep_near(self) -> bool:
        """Return whether the user has set --near: then nothing nearer is left out."""
        return self.near > 0

    @property
    def keep_far(self) -> bool:
        """Return whether the user has set --far: then nothing farther is left out."""
        return self.far != FAR_MM

    def content(self) -> dict[str, Any]:
        """Return the settings that the content of the dataset depends on."""
        left_out = NOT_CONTENT
        if self.read_options == NO_OPTIONS:  # hashes of older datasets stay
            left_out = NOT_CONTENT | field_names(FileSettings)
        if self.rgb_size == "train":  # likewise
            left_out = left_out | {"rgb_size"}
        values = {**as_dict(self), **self.jpeg._asdict()}
        return {name: value for name, value in values.items() if name not in left_out}


def size_problems(size: Size | None) -> list[str]:
    """Return what is wrong with --size."""
    if size is None:
        return []
    if max(size) > MAX_SIDE:
        return [f"--size is {size}: expected at most {MAX_SIDE} pixels a side"]
    if all(side >= PATCH_SIZE and side % PATCH_SIZE == 0 for side in size):
        return []
    nearest = []
    for side in size:
        below = max(PATCH_SIZE, side // PATCH_SIZE * PATCH_SIZE)
        above = -(-side // PATCH_SIZE) * PATCH_SIZE
        nearest.append(" or ".join(map(str, sorted({below, above}))))
    return [
        f"--size is {size}: expected multiples of {PATCH_SIZE}; nearest are height"
        f" {nearest[0]}, width {nearest[1]}"
    ]


def settle_split(settings: ShardSettings, pairs: list[CapturePair]) -> ShardSettings:
    """Return the settings with the split of --split auto: auto where the layout says it.

    Else random, as it was before there was auto: datasets of then are made again as they were.
    """
    said = {pair.split for pair in pairs} - {None, "train"}
    return settings if settings.split != "auto" or said else replace(settings, split="random")
