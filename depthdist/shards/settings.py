"""The settings of tools/shard.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from depthdist.core.settings import Size, as_dict, field_help, hidden, positional

PATCH = 14  # pixels a side of the network's patches


@dataclass(frozen=True)
class ShardSettings:
    """Sharding"""

    raw: str = positional("")
    "Folder of captures: images/X_color.png + depth/X_rawDepth.npy, or name.png + name.npy."
    out: str = positional("")
    "Folder for the dataset: tars, index.json, rejects.jsonl."
    append: bool = False
    """Add the captures in RAW that OUT does not hold yet (by name); what OUT holds is not
    written again."""
    verify: str = ""
    "Check every byte of this dataset folder instead; RAW and OUT are not needed."
    index: str = ""
    """Index this folder of somebody else's webdataset tars instead, in place; RAW and OUT are
    not needed."""
    unit: float | None = None
    """With --index: mm that one unit of the depth member is, 1000 for metres. Default: 1; floats
    that look like metres are refused."""
    workers: int = 0
    "Processes, each writing one whole shard; 0: one a core. The output is the same for any number."
    max_rejects: int = 0
    "More bad pairs than this make the exit code 2, after everything was looked at."
    split: Literal["random", "session", "file", "none"] = "random"
    """random: any pair to either side; session: captures close in time stay on one side; file:
    those of a group in --groups do; none: all in train."""
    groups: str = ""
    """With --split file: text with a line `stem,group` for each capture; groups train and val
    have their side, skip leaves a capture out; in capitals or not."""
    val: float = 0.2
    "Fraction of the pairs for validation."
    seed: int = 42
    "Decides which."
    session_gap: float = 10.0
    "Minutes without a capture that end a session."
    size: Size = Size(756, 1260)
    "Height and width the RGB is resized to, multiples of 14."
    near: float = 0.0
    "Depths up to this many mm are masked."
    far: float = 4000.0
    "Depths beyond this many mm are masked; the depth step is far / 65535."
    depth_size: Literal["camera", "train"] = "camera"
    "Depth and mask at the camera's size, or at --size (nearest neighbour)."
    rgb: Literal["jpeg", "png", "raw"] = "jpeg"
    """Picture codec; png and raw are lossless: png is small and slow to read, raw large and the
    fastest by far."""
    quality: int = 95
    "JPEG quality."
    subsampling: Literal["420", "444"] = "420"
    "JPEG chroma subsampling."
    depth_codec: Literal["npy", "png"] = "npy"
    "Depth as plain .npy, or as 16-bit PNG: smaller, and slower to read."
    shard_mb: float = 256.0
    "MiB a shard is planned for."
    local_rank: int = hidden(-1)
    "Set by the launcher."

    def problems(self) -> list[str]:
        found = []
        alone = [name for name in ("verify", "index") if getattr(self, name)]
        if not alone:
            texts = field_help(ShardSettings)
            found += [
                f"{name.upper()} is missing: {texts[name]}"
                for name in ("raw", "out")
                if not getattr(self, name)
            ]
        else:
            others = [
                *(name.upper() for name in ("raw", "out") if getattr(self, name)),
                *(f"--{name}" for name in alone[1:]),
            ]
            found += [
                f"--{alone[0]} and {name} are both given; expected --{alone[0]} DIR alone, or"
                " RAW OUT"
                for name in others
            ]
        if self.split == "file" and not self.groups and not alone:
            found.append(
                "--split is file and --groups is missing: expected --groups FILE, text with a line"
                " a capture: stem,group"
            )
        if self.split == "file" and self.index:
            found.append(
                "--split is file with --index: expected random, session or none (folders train and"
                " val in DIR decide, where there are any)"
            )
        if self.groups and self.split != "file":
            found.append(
                f"--groups is {self.groups} and --split is {self.split}: expected --split file"
                " with it"
            )
        if max(self.size) > 8192:
            found.append(f"--size is {self.size}: expected at most 8192 pixels a side")
        elif any(side < PATCH or side % PATCH for side in self.size):
            near = [
                sorted({max(PATCH, side // PATCH * PATCH), -(-side // PATCH) * PATCH})
                for side in self.size
            ]
            height, width = (" or ".join(map(str, sides)) for sides in near)
            found.append(
                f"--size is {self.size}: expected multiples of {PATCH}; nearest are height"
                f" {height}, width {width}"
            )
        for name, good, expected in (
            ("workers", self.workers >= 0, "0 or more"),
            ("max_rejects", self.max_rejects >= 0, "0 or more"),
            ("val", 0 < self.val < 1, "between 0 and 1 (for no validation: --split none)"),
            ("seed", 0 <= self.seed < 2**64, "0 or more"),
            ("session_gap", 0 < self.session_gap < math.inf, "more than 0 minutes"),
            ("near", 0 <= self.near < math.inf, "0 or more mm"),
            ("far", self.near < self.far < math.inf, "more than --near, in mm"),
            ("unit", self.unit is None or 0 < self.unit < math.inf, "more than 0 mm"),
            ("quality", 1 <= self.quality <= 100, "1 to 100"),
            ("shard_mb", 0 < self.shard_mb < math.inf, "more than 0 MiB"),
        ):
            if not good:
                found.append(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}: expected {expected}"
                )
        return found

    def content(self) -> dict[str, Any]:
        """The settings that the dataset depends on: not where files lie (what --groups says is in
        the plan), nor how fast it is made.
        """
        return {
            k: v
            for k, v in as_dict(self).items()
            if k
            not in (
                "raw",
                "out",
                "append",
                "groups",
                "verify",
                "index",
                "unit",
                "workers",
                "max_rejects",
            )
        }
