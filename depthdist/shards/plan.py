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
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from depthdist.captures.layouts import RejectedFile, find_pairs
from depthdist.captures.readers import read_size
from depthdist.captures.sessions import number_sessions
from depthdist.core.errors import BadFile, printable_path
from depthdist.core.settings import Size
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.format import Encoding, Item, Job, as_json
from depthdist.shards.settings import ShardSettings
from depthdist.shards.splits import (
    SKIP,
    choose_groups,
    known_group_sides,
    read_groups,
    split,
    split_note,
)

# --------------------------------------------------------------------------------------------- plan


class Plan(NamedTuple):
    """What a dataset will be, or what is added to one: jobs in order, each of a split, and what the
    headers already rule out.

    held    captures in RAW that the dataset has already
    groups  with --split file, whether for validation, of every group that the dataset has
    """

    jobs: list[Job]
    splits: dict[str, list[str]]
    rejects: list[RejectedFile]
    hash: str
    encoding: Encoding
    note: str
    held: int
    groups: dict[str, bool]


class ExistingDataset(NamedTuple):
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


NO_DATASET = ExistingDataset({}, {}, 0, None, {})


def make_plan(settings: ShardSettings, held: ExistingDataset = NO_DATASET) -> Plan:
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
            f"{printable_path(settings.groups)}: all {len(groups)} captures are of the group {SKIP};"
            " expected some for train and some for val"
        )
    sizes: dict[str, tuple[int, int]] = {}
    for pair in tqdm(pairs, "looking at headers", unit=" pairs", leave=False, delay=2):
        try:
            sizes[pair.stem] = read_size(pair)
        except BadFile as err:
            rejects.append(RejectedFile(err.path, err.reason))
    pairs = [p for p in pairs if p.stem in sizes]
    camera = held.depth_size or (Counter(sizes.values()).most_common(1) or [(None, 0)])[0][0]
    if settings.depth_size == "camera":
        for pair in [p for p in pairs if sizes[p.stem] != camera]:
            found, wanted = ("x".join(map(str, size)) for size in (sizes[pair.stem], camera))
            count = len(held.sides) + sum(size == camera for size in sizes.values())
            rejects.append(
                RejectedFile(
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
            -(-len(ours) // samples_per_shard(encoding, settings.shard_mb)),
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


def _sides(
    stems: list[str], held: ExistingDataset, settings: ShardSettings
) -> tuple[list[int], list[bool]]:
    """For each stem the number of its session, and whether it goes to validation: where its session
    is already, if it is.
    """
    together = [*held.sides, *stems]
    joint = dict(zip(together, number_sessions(together, settings.session_gap)))
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
    stems: list[str], groups: dict[str, str], held: ExistingDataset, settings: ShardSettings
) -> tuple[list[bool], dict[str, bool], str]:
    """For each stem whether it goes to validation, as --groups says; the same of all groups.

    And how many there are, for people.
    """
    path, there = Path(settings.groups), {stem: val for stem, (_, val) in held.sides.items()}
    settled = known_group_sides(path, groups, there, held.groups)
    chosen = choose_groups(
        path,
        [groups[stem] for stem in stems],
        settled,
        Counter(there.values()),
        settings.val,
        settings.seed,
    )
    num_val, skipped = sum(chosen.values()), sum(group == SKIP for group in groups.values())
    note = (
        f"split by {printable_path(path)}: {len(chosen) - num_val} groups in train, {num_val} in val;"
        f" {skipped} captures skipped"
    )
    return [chosen[groups[stem]] for stem in stems], settled | chosen, note


def samples_per_shard(encoding: Encoding, shard_mb: float) -> int:
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
