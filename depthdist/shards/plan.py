"""What a dataset will be, decided before any work: settings, which pairs, which side of the split,
which shard.

    plan(settings)  ->  Plan: the jobs, one a shard

The same files and settings give the same plan, whatever the number of workers: sizes decide, and a
seed.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from depthdist.captures.layouts import BadFile, Reject, find_pairs, peek, sessions, shown
from depthdist.core import settings as config
from depthdist.core.settings import Size
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.splits import SKIP, choose, known_sides, read_groups, subset
from depthdist.shards.writer import Encoding, Item, Job, as_json

PATCH = 14  # pixels a side of the network's patches


@dataclass(frozen=True)
class ShardSettings:
    """Sharding"""

    raw: str = config.positional("")
    "Folder of captures: images/X_color.png + depth/X_rawDepth.npy, or name.png + name.npy."
    out: str = config.positional("")
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
    local_rank: int = config.hidden(-1)
    "Set by the launcher."

    def problems(self) -> list[str]:
        found = []
        alone = [name for name in ("verify", "index") if getattr(self, name)]
        if not alone:
            texts = config.sentences(ShardSettings)
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
            for k, v in config.as_dict(self).items()
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


# --------------------------------------------------------------------------------------------- plan


class Plan(NamedTuple):
    """What a dataset will be, or what is added to one: jobs in order, each of a split, and what the
    headers already rule out.

    held    captures in RAW that the dataset has already
    groups  with --split file, whether for validation, of every group that the dataset has
    """

    jobs: list[Job]
    splits: dict[str, list[str]]
    rejects: list[Reject]
    hash: str
    encoding: Encoding
    note: str
    held: int
    groups: dict[str, bool]


class Held(NamedTuple):
    """What a dataset holds that more is added to: by stem the session's number and whether it is
    for validation.

    num_shards  by split;  next_key  the first number that no sample has;  depth_size  of all of
                them;  groups  as in Plan
    """

    sides: dict[str, tuple[int, bool]]
    num_shards: dict[str, int]
    next_key: int
    depth_size: Size
    groups: dict[str, bool]


NOTHING = Held({}, {}, 0, None, {})


def plan(settings: ShardSettings, held: Held = NOTHING) -> Plan:
    """The plan for RAW.

    The same files and settings give the same plan. raises ValueError where nothing can be made.
    """
    root, build = Path(settings.raw), Path(settings.out) / ".build"
    pairs, rejects = find_pairs(root)
    num_found = len(pairs)
    pairs = [pair for pair in pairs if pair.stem not in held.sides]
    num_held = num_found - len(pairs)
    groups = (
        read_groups(Path(settings.groups), [p.stem for p in pairs], held.sides)
        if settings.split == "file"
        else {}
    )
    pairs = [pair for pair in pairs if groups.get(pair.stem) != SKIP]
    if not pairs and groups and not held.sides:
        raise ValueError(
            f"{shown(settings.groups)}: all {len(groups)} captures are of the group {SKIP};"
            " expected some for train and some for val"
        )
    sizes: dict[str, tuple[int, int]] = {}
    for pair in tqdm(pairs, "looking at headers", unit=" pairs", leave=False, delay=2):
        try:
            sizes[pair.stem] = peek(pair)
        except BadFile as err:
            rejects.append(Reject(err.path, err.reason))
    pairs = [p for p in pairs if p.stem in sizes]
    camera = held.depth_size or (Counter(sizes.values()).most_common(1) or [(None, 0)])[0][0]
    if settings.depth_size == "camera":
        for pair in [p for p in pairs if sizes[p.stem] != camera]:
            found, wanted = ("x".join(map(str, size)) for size in (sizes[pair.stem], camera))
            count = len(held.sides) + sum(size == camera for size in sizes.values())
            rejects.append(
                Reject(
                    pair.xyz,
                    f"xyz is {found}; expected {wanted} as the other {count}: a dataset has one"
                    " size (or take --depth-size train)",
                )
            )
        pairs = [p for p in pairs if sizes[p.stem] == camera]
    rejects = sorted(rejects)
    depth_size = settings.size if settings.depth_size == "train" else camera and Size(*camera)
    encoding = Encoding(
        settings.size,
        depth_size,
        settings.near,
        settings.far,
        settings.rgb,
        settings.quality,
        settings.subsampling,
        settings.depth_codec,
    )
    if not pairs:
        return Plan([], {}, rejects, "", encoding, "", num_held, held.groups)
    number, in_val = _sides([p.stem for p in pairs], held, settings)
    note, settled = split_note(number, in_val, settings), {}
    if settings.split == "file":
        in_val, settled, note = _by_file([p.stem for p in pairs], groups, held, settings)
    items = [Item(f"{held.next_key + i:08d}", pair, number[i]) for i, pair in enumerate(pairs)]
    jobs, splits = [], {}
    for name in ["train"] if settings.split == "none" else ["train", "val"]:
        ours = [item for item, val in zip(items, in_val) if val == (name == "val")]
        num_shards, first = (
            -(-len(ours) // samples_a_shard(encoding, settings.shard_mb)),
            held.num_shards.get(name, 0),
        )
        cuts = [len(ours) * i // num_shards for i in range(num_shards + 1)] if num_shards else []
        made = [
            _job(f"{name}/shard-{first + i:06d}.tar", ours[a:b], root, build, encoding)
            for i, (a, b) in enumerate(zip(cuts, cuts[1:]))
        ]
        splits[name] = [job.name for job in made]
        jobs += made
    content = [
        settings.content(),
        [job.hash for job in jobs],
        [[str(r.path.relative_to(root)), r.reason] for r in rejects],
    ]
    whole = hashlib.sha256(as_json([*content, groups] if groups else content))
    return Plan(jobs, splits, rejects, whole.hexdigest(), encoding, note, num_held, settled)


def _sides(stems: list[str], held: Held, settings: ShardSettings) -> tuple[list[int], list[bool]]:
    """For each stem the number of its session, and whether it goes to validation: where its session
    is already, if it is.
    """
    together = [*held.sides, *stems]
    joint = dict(zip(together, sessions(together, settings.session_gap)))
    known = {
        joint[stem]: side for stem, side in held.sides.items()
    }  # joint number -> (number in the dataset, side)
    fresh = sorted({joint[stem] for stem in stems} - known.keys())
    first = 1 + max((session for session, _ in held.sides.values()), default=-1)
    number = {
        **{j: first + i for i, j in enumerate(fresh)},
        **{j: session for j, (session, _) in known.items()},
    }
    numbers = [number[joint[stem]] for stem in stems]
    if not held.sides or settings.split == "file":
        return numbers, split(numbers, settings)
    if settings.split != "session":
        there = sum(val for _, val in held.sides.values())
        wanted = math.floor(settings.val * (len(held.sides) + len(stems)) + 0.5) - there
        return numbers, split(numbers, settings, min(len(stems), max(0, wanted)))
    settled = {stem: known[joint[stem]][1] for stem in stems if joint[stem] in known}
    free = [stem for stem in stems if stem not in settled]
    if len({joint[stem] for stem in free}) > 1:
        settled |= dict(zip(free, split([fresh.index(joint[stem]) for stem in free], settings)))
    return numbers, [
        settled.get(stem, False) for stem in stems
    ]  # one new session alone: more to learn from


def _by_file(
    stems: list[str], groups: dict[str, str], held: Held, settings: ShardSettings
) -> tuple[list[bool], dict[str, bool], str]:
    """For each stem whether it goes to validation, as --groups says; the same of all groups.

    And how many there are, for people.
    """
    path, there = Path(settings.groups), {stem: val for stem, (_, val) in held.sides.items()}
    settled = known_sides(path, groups, there, held.groups)
    chosen = choose(
        path,
        [groups[stem] for stem in stems],
        settled,
        Counter(there.values()),
        settings.val,
        settings.seed,
    )
    num_val, skipped = sum(chosen.values()), sum(group == SKIP for group in groups.values())
    note = (
        f"split by {shown(path)}: {len(chosen) - num_val} groups in train, {num_val} in val;"
        f" {skipped} captures skipped"
    )
    return [chosen[groups[stem]] for stem in stems], settled | chosen, note


def samples_a_shard(encoding: Encoding, shard_mb: float) -> int:
    """How many samples are planned for one shard.

    From sizes alone, for the plan must not depend on what is in the files.
    """
    height, width = encoding.depth_size
    rgb = (
        encoding.size[0] * encoding.size[1] * {"jpeg": 0.33, "png": 1.5, "raw": 3}[encoding.codec]
    )  # bytes a pixel, measured
    return max(
        1, int(shard_mb * 2**20 // (2 * height * width + height * -(-width // 8) + rgb + 8 * 512))
    )


def _job(name: str, items: list[Item], root: Path, build: Path, encoding: Encoding) -> Job:
    inputs = []
    for item in items:
        for path in item.pair.files.values():
            status = path.stat()
            inputs.append(
                [
                    item.key,
                    item.session,
                    item.pair.stem,
                    path.relative_to(root).as_posix(),
                    status.st_size,
                    status.st_mtime_ns,
                ]
            )
    return Job(
        name,
        items,
        hashlib.sha256(as_json([SCHEMA, VERSION, name, encoding, inputs])).hexdigest(),
        root,
        build,
        encoding,
    )


# -------------------------------------------------------------------------------------------- split


def split(session: list[int], settings: ShardSettings, wanted: int | None = None) -> list[bool]:
    """For each pair whether it goes to validation, given its session's number.

    Seeded; 58 pairs give 46 and 12.

    wanted  how many shall; by default --val of them, and at least one on each side
    raises ValueError where one side would be empty
    """
    count = len(session)
    if settings.split in ("none", "file"):  # a file's groups decide, not sessions
        return [False] * count
    if wanted is None:
        if count < 2:
            raise ValueError(
                f"{settings.raw}: {count} usable pair cannot be split; take --split none"
            )
        wanted = min(count - 1, max(1, math.floor(settings.val * count + 0.5)))
    random = np.random.Generator(np.random.Philox(settings.seed))
    if settings.split == "random":
        chosen = set(random.permutation(count)[:wanted].tolist())
        return [i in chosen for i in range(count)]
    sizes = Counter(session)
    if len(sizes) < 2:
        raise ValueError(
            f"{settings.raw}: all {count} pairs are of one session; --split session needs two"
            " (--session-gap, or --split random)"
        )
    chosen = subset(
        [sizes[i] for i in range(len(sizes))],
        wanted,
        random.permutation(len(sizes)).tolist(),
        range(1, count),
    )
    return [number in chosen for number in session]


def split_note(session: list[int], in_val: list[bool], settings: ShardSettings) -> str:
    """What a reader of validation scores should know about the split."""
    train = {n for n, val in zip(session, in_val) if not val}
    if settings.split == "session":
        return (
            f"split by session: {len(train)} sessions in train, {len(set(session)) - len(train)}"
            " in val"
        )
    near = sum(val and n in train for n, val in zip(session, in_val))
    if not near or len(set(session)) < 2:
        return ""
    text = (
        "validation pairs were taken in a session that is also in train, which flatters; --split"
        " session keeps sessions apart"
    )
    return f"note: {near} of {sum(in_val)} {text}"
