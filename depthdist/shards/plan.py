"""Plan a dataset before any work: which pairs, which side of the split, which shard.

    make_plan(settings)  ->  Plan: the jobs, one per shard

The same files and settings give the same plan, whatever the number of workers: file sizes and a
seed decide.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from depthdist.captures.layouts import CapturePair, FoundCaptures, RejectedFile, search_folder
from depthdist.captures.read_options import ReadOptions
from depthdist.captures.reading_notes import reading_notes
from depthdist.captures.sessions import number_sessions
from depthdist.core.errors import BadFile, printable_path
from depthdist.core.settings import Size
from depthdist.geometry.image_size import (
    RECIPE_SIZE,
    choose_image_size,
    describe_stretch,
    most_stretched,
)
from depthdist.shards.format import Encoding, Item, Job, as_json
from depthdist.shards.headers import Header, look_at
from depthdist.shards.jobs import make_job
from depthdist.shards.sample_bytes import bytes_of_sample, samples_per_shard
from depthdist.shards.settings import ShardSettings, settle_split
from depthdist.shards.split_names import SKIP, in_order, unused_names_warning
from depthdist.shards.splits import (
    choose_groups,
    groups_note,
    groups_of_folders,
    known_group_sides,
    read_groups,
    split,
    split_note,
)

BY_GROUPS = ("file", "folder", "auto")  # splits by groups of captures
Look = Callable[[list[CapturePair], ReadOptions], list[Header | BadFile]]


class Plan(NamedTuple):
    """What a dataset will be, or what is appended to one.

    jobs     in order, one per shard
    splits   names of the shards by split
    rejects  what the headers already rule out
    held     how many captures in RAW the dataset has already
    groups   with --split file or folder, the split of every group of the dataset
    stretched  height and width of the images whose aspect differs most from that of the size, []
               where none differs much
    size       of the images as the network sees them
    camera_size  of most images as they are, None without one
    """

    jobs: list[Job]
    splits: dict[str, list[str]]
    rejects: list[RejectedFile]
    hash: str
    encoding: Encoding
    note: str
    held: int
    groups: dict[str, str]
    stretched: list[int]
    size: Size
    camera_size: Size | None


class ExistingDataset(NamedTuple):
    """The dataset that captures are appended to.

    sides       by stem: the session's number, and the split
    num_shards  by split
    next_key    the first number that no sample has
    depth_size  of all samples, None without a dataset
    groups      as in Plan
    size        of its images, where it is kept: also by an older version's dataset that is made
                again, for which 756x1260 was the default
    """

    sides: dict[str, tuple[int, str]]
    num_shards: dict[str, int]
    next_key: int
    depth_size: Size | None
    groups: dict[str, str]
    size: Size | None = None


NO_DATASET = ExistingDataset(sides={}, num_shards={}, next_key=0, depth_size=None, groups={})


class UsablePairs(NamedTuple):
    """The captures to shard, those that cannot be used, and how many the dataset has already."""

    pairs: list[CapturePair]
    rejects: list[RejectedFile]
    num_held: int
    groups: dict[str, str]  # by stem, with --split file or folder
    notes: list[str]  # for the user, on how files are paired and read
    depth_size: Size | None  # None without pairs
    image_sizes: Counter[tuple[int, int]]  # of the pairs
    headers: dict[str, Header]  # by stem


class SplitSides(NamedTuple):
    """Of each capture the number of its session, and the split that it goes to."""

    sessions: list[int]
    splits: list[str]
    groups: dict[str, str]  # as in Plan
    note: str  # for the user


def make_plan(
    settings: ShardSettings,
    held: ExistingDataset = NO_DATASET,
    found: FoundCaptures | None = None,
    look: Look = look_at,
) -> Plan:
    """Return the plan for RAW; raise ValueError where nothing can be made of it.

    found  the captures in RAW, where they were listed already
    look   reads the headers of captures
    """
    found = found or search_folder(settings.raw)
    settings = settle_split(settings, found.pairs)
    usable = usable_pairs(settings, held, found, look)
    settings, size_note = _choose_size(settings, held, usable.image_sizes)
    settled = _settled_groups(usable.groups, held, settings)
    assert settings.size is not None, "_choose_size has chosen one"
    encoding = _encoding(settings, usable.depth_size)
    if not usable.pairs:
        return Plan(
            jobs=[],
            splits={},
            rejects=usable.rejects,
            hash="",
            encoding=encoding,
            note="",
            held=usable.num_held,
            groups=held.groups,
            stretched=[],
            size=settings.size,
            camera_size=None,
        )
    sides = _choose_sides(usable, settled, held, settings)
    splits = cut_into_shards(usable, sides, held, settings, encoding)
    jobs = [job for of_split in splits.values() for job in of_split]
    return Plan(
        jobs=jobs,
        splits={name: [job.name for job in of_split] for name, of_split in splits.items()},
        rejects=usable.rejects,
        hash=_plan_hash(settings, jobs, usable),
        encoding=encoding,
        note="\n".join(filter(None, (*usable.notes, size_note, sides.note))),
        held=usable.num_held,
        groups=sides.groups,
        stretched=most_stretched(usable.image_sizes, settings.size),
        size=settings.size,
        camera_size=Size(*usable.image_sizes.most_common(1)[0][0]),
    )


def usable_pairs(
    settings: ShardSettings, held: ExistingDataset, found: FoundCaptures, look: Look = look_at
) -> UsablePairs:
    """Return the captures of RAW that are new, not skipped, and whose headers are valid."""
    rejects = list(found.rejects)
    pairs = [pair for pair in found.pairs if pair.stem not in held.sides]
    num_held = len(found.pairs) - len(pairs)
    groups: dict[str, str] = {}
    if settings.split in BY_GROUPS:
        groups = _read_groups(settings, pairs, held)
        pairs = [pair for pair in pairs if groups.get(pair.stem) != SKIP]
        if not pairs and groups and not held.sides:
            raise ValueError(
                f"{printable_path(_groups_path(settings))}: all {len(groups)} captures are to be"
                f" left out ({SKIP}); expected some for train and some for val"
            )
    options = settings.read_options
    headers: dict[str, Header] = {}
    for pair, header in zip(pairs, look(pairs, options)):
        if isinstance(header, Header):
            headers[pair.stem] = header
        else:
            rejects.append(RejectedFile(header.path, header.reason))
    sizes = {stem: header.size for stem, header in headers.items()}  # of the points
    pairs = [pair for pair in pairs if pair.stem in sizes]
    depth_size = held.depth_size
    if pairs and not depth_size:
        depth_size = Size(*Counter(sizes.values()).most_common(1)[0][0])
    if settings.depth_size == "camera":
        rejects += _other_sizes(pairs, sizes, depth_size, len(held.sides))
        pairs = [pair for pair in pairs if sizes[pair.stem] == depth_size]
    return UsablePairs(
        pairs=pairs,
        rejects=sorted(rejects),
        num_held=num_held,
        groups=groups,
        notes=[*found.notes, *reading_notes(pairs, options)],
        depth_size=depth_size,
        image_sizes=Counter(headers[pair.stem].image_size for pair in pairs),
        headers=headers,
    )


def chosen_size(raw: str) -> Size:
    """Return the size that the captures in RAW get without --size; raise ValueError if none is."""
    settings = settle_split(ShardSettings(raw=raw), [])
    usable = usable_pairs(settings, NO_DATASET, search_folder(raw))
    if not usable.pairs:
        raise ValueError(describe_no_pair(raw, usable.rejects))
    settings, _ = _choose_size(settings, NO_DATASET, usable.image_sizes)
    assert settings.size is not None
    return settings.size


def describe_no_pair(raw: str, rejects: list[RejectedFile]) -> str:
    """Return the error line of captures none of which can be used."""
    first = ""
    if rejects:
        bad = BadFile(rejects[0].path, rejects[0].reason)
        first = f", {len(rejects)} rejected; the first: {bad}"
    return f"{printable_path(raw)}: no usable pair{first}"


def _choose_size(
    settings: ShardSettings, held: ExistingDataset, image_sizes: Counter[tuple[int, int]]
) -> tuple[ShardSettings, str]:
    """Return the settings with a size, and where it was chosen, the line that says why."""
    if settings.size or not image_sizes:
        return replace(settings, size=settings.size or held.size or Size(*RECIPE_SIZE)), ""
    camera = image_sizes.most_common(1)[0][0]
    ours = Size(*choose_image_size(camera))
    why = f"the camera's {Size(*camera)} at the recipe's number of pixels"
    if not held.size or held.size == ours:
        return replace(settings, size=ours), f"size {ours}: {why}"
    note = f"size {held.size}: as the dataset has it ({ours} would be {why}"
    problem = describe_stretch(camera, held.size)
    note += f"; {problem}: --size {ours} and another OUT)" if problem else ")"
    return replace(settings, size=held.size), note


def _read_groups(
    settings: ShardSettings, pairs: list[CapturePair], held: ExistingDataset
) -> dict[str, str]:
    """Return the group of each capture: by its layout, its folder or the file of --groups."""
    if settings.split == "auto":
        return {pair.stem: pair.split or SKIP for pair in pairs}
    stems = [pair.stem for pair in pairs]
    if settings.split == "folder":
        return groups_of_folders(Path(settings.raw), stems)
    return read_groups(Path(settings.groups), stems, held.sides)


def _groups_path(settings: ShardSettings) -> Path:
    """Return what says the groups: the file of --groups, or the folder of captures."""
    return Path(settings.groups or settings.raw)


def _other_sizes(
    pairs: list[CapturePair],
    sizes: dict[str, tuple[int, int]],
    expected: tuple[int, int] | None,
    num_held: int,
) -> list[RejectedFile]:
    """Return a reject for each pair whose point map has another size than most have."""
    num_expected = num_held + sum(size == expected for size in sizes.values())
    rejects = []
    for pair in pairs:
        if sizes[pair.stem] == expected:
            continue
        assert expected is not None  # the most common of these sizes
        found = "x".join(map(str, sizes[pair.stem]))
        reason = (
            f"xyz is {found}; expected {'x'.join(map(str, expected))} as the other {num_expected}:"
            " a dataset has one size (or take --depth-size train)"
        )
        rejects.append(RejectedFile(pair.xyz, reason))
    return rejects


def _encoding(settings: ShardSettings, camera_size: Size | None) -> Encoding:
    """Return how captures are encoded; without a capture its depth size means nothing."""
    assert settings.size is not None, "_choose_size has chosen one"
    depth_size = settings.size
    if settings.depth_size == "camera" and camera_size is not None:
        depth_size = camera_size
    return Encoding(
        rgb_size=settings.size if settings.rgb_size == "train" else None,
        depth_size=depth_size,
        near_mm=settings.near,
        far_mm=settings.far,
        codec=settings.rgb,
        quality=settings.jpeg.quality,
        subsampling=settings.jpeg.subsampling,
        depth_codec=settings.depth_codec,
        check_view=settings.check_view,
    )


def cut_into_shards(
    usable: UsablePairs,
    sides: SplitSides,
    held: ExistingDataset,
    settings: ShardSettings,
    encoding: Encoding,
) -> dict[str, list[Job]]:
    """Return the jobs of each split, with equal numbers of samples up to one."""
    items = [
        Item(key=f"{held.next_key + i:08d}", pair=pair, session=sides.sessions[i])
        for i, pair in enumerate(usable.pairs)
    ]
    splits = {}
    for name in in_order({"train", *sides.splits}):
        chosen = [item for item, side in zip(items, sides.splits) if side == name]
        num_shards = -(-len(chosen) // samples_per_shard(encoding, settings.shard_mb))
        first = held.num_shards.get(name, 0)
        cuts = [len(chosen) * i // max(num_shards, 1) for i in range(num_shards + 1)]
        splits[name] = [
            make_job(
                f"{name}/shard-{first + i:06d}.tar",
                chosen[start:end],
                usable.headers,
                settings,
                encoding,
            )
            for i, (start, end) in enumerate(pairwise(cuts))
        ]
    return splits


def _plan_hash(settings: ShardSettings, jobs: list[Job], usable: UsablePairs) -> str:
    """Return the hash of all that the plan depends on."""
    root = Path(settings.raw)
    content = [
        settings.content(),
        [job.hash for job in jobs],
        [[str(reject.path.relative_to(root)), reject.reason] for reject in usable.rejects],
    ]
    if usable.groups:
        content.append(usable.groups)
    return hashlib.sha256(as_json(content)).hexdigest()


def _settled_groups(
    groups: dict[str, str], held: ExistingDataset, settings: ShardSettings
) -> dict[str, str]:
    """Return the groups whose split is known before any is chosen."""
    held_sides = {stem: side for stem, (_, side) in held.sides.items()}
    return known_group_sides(_groups_path(settings), groups, held_sides, held.groups)


def _choose_sides(
    usable: UsablePairs, settled: dict[str, str], held: ExistingDataset, settings: ShardSettings
) -> SplitSides:
    """Return session and split of each capture, as --split says."""
    stems = [pair.stem for pair in usable.pairs]
    joint = _joint_sessions(stems, held, settings)
    sessions = _session_numbers(stems, held, joint)
    if settings.split in BY_GROUPS:
        sides = _sides_by_groups(stems, sessions, usable.groups, settled, held, settings)
    else:
        splits = _sides_by_chance(stems, sessions, held, joint, settings)
        note = split_note(sessions, splits, settings)
        sides = SplitSides(sessions=sessions, splits=splits, groups={}, note=note)
    advice = "--split folder takes folders as they are named, --split file a list of captures"
    warning = unused_names_warning(stems, sides.splits, advice)
    return sides._replace(note="\n".join(filter(None, (warning, sides.note))))


def _sides_by_chance(
    stems: list[str],
    sessions: list[int],
    held: ExistingDataset,
    joint: dict[str, int],
    settings: ShardSettings,
) -> list[str]:
    """Return the split of each capture where no groups say it."""
    if not held.sides:
        return split(sessions, settings)
    if settings.split == "session":
        return _append_by_session(stems, held, joint, settings)
    num_held_val = sum(side == "val" for _, side in held.sides.values())
    wanted = math.floor(settings.val * (len(held.sides) + len(stems)) + 0.5) - num_held_val
    return split(sessions, settings, min(len(stems), max(0, wanted)))


def _joint_sessions(
    stems: list[str], held: ExistingDataset, settings: ShardSettings
) -> dict[str, int]:
    """Return the session of each capture, old and new, numbered as if all were sharded at once."""
    together = [*held.sides, *stems]
    return dict(zip(together, number_sessions(together, settings.session_gap)))


def _session_numbers(stems: list[str], held: ExistingDataset, joint: dict[str, int]) -> list[int]:
    """Return each stem's session number in the dataset; new sessions follow the existing ones."""
    number = {joint[stem]: session for stem, (session, _) in held.sides.items()}
    first = 1 + max((session for session, _ in held.sides.values()), default=-1)
    fresh = sorted({joint[stem] for stem in stems} - number.keys())
    number |= {session: first + i for i, session in enumerate(fresh)}
    return [number[joint[stem]] for stem in stems]


def _append_by_session(
    stems: list[str], held: ExistingDataset, joint: dict[str, int], settings: ShardSettings
) -> list[str]:
    """Return the split of each stem: the one where its session is already.

    New sessions are split among themselves; a single one goes to train.
    """
    side = {joint[stem]: side for stem, (_, side) in held.sides.items()}
    free = [stem for stem in stems if joint[stem] not in side]
    fresh = sorted({joint[stem] for stem in free})
    chosen = {}
    if len(fresh) > 1:
        chosen = dict(zip(free, split([fresh.index(joint[stem]) for stem in free], settings)))
    return [side.get(joint[stem], chosen.get(stem, "train")) for stem in stems]


def _sides_by_groups(
    stems: list[str],
    sessions: list[int],
    groups: dict[str, str],
    settled: dict[str, str],
    held: ExistingDataset,
    settings: ShardSettings,
) -> SplitSides:
    """Return the splits as --groups or the folders say."""
    path = _groups_path(settings)
    chosen = choose_groups(
        path,
        [groups[stem] for stem in stems],
        settled,
        counts=Counter(side for _, side in held.sides.values()),
        val=settings.val,
        seed=settings.seed,
    )
    skipped = [group for group in groups.values() if group == SKIP]
    return SplitSides(
        sessions=sessions,
        splits=[chosen[groups[stem]] for stem in stems],
        groups=settled | chosen,
        note=groups_note(path, [*(groups[stem] for stem in stems), *skipped], chosen),
    )


def describe_plan(plan: Plan) -> list[str]:
    """Return what a plan would make, and about how many bytes, for people."""
    counts = {name: 0 for name in plan.splits}
    for job in plan.jobs:
        counts[job.name.split("/")[0]] += len(job.items)
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    size = sum(counts.values()) * bytes_of_sample(plan.encoding) / 1e6
    return [
        f"{listed}, {len(plan.rejects)} rejected by their headers; about {size:.0f} MB",
        *plan.note.splitlines(),
    ]
