"""Groups of captures that a person names: all of a group go to one side of the split.

    # shift A, the crate was refilled in between
    stem,group
    21-12-03-18-50-31_Zivid_acquisition,crate 1
    monday/a,train
    monday/b,skip

    read_groups(path, stems)     ->  {stem: group}
    choose(path, groups, ...)    ->  {group: True for validation}

A line a capture, a comma or a tab between the fields; the header may be missing. The groups train
and val are fixed to their side, captures of skip are left out, in capitals or not; the others are
dealt so that validation gets as near to --val as whole groups allow.
"""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from depthdist.core.errors import printable_path
from depthdist.shards.settings import ShardSettings

FIXED = {"train": False, "val": True}  # whether for validation
SKIP = "skip"
MOST = 5  # problems told at once


def read_groups(
    path: Path, stems: Collection[str], optional: Collection[str] = ()
) -> dict[str, str]:
    """The group of each capture, by stem.

    A stem's folder may be left out in the file where the name alone is unique.

    stems, optional  the captures that must have a line, and those that may
    raises ValueError, a line for each problem: no such file, not two fields, no such capture,
    listed twice, a capture not listed
    """
    known = {*stems, *optional}
    by_name, lines, groups, problems = defaultdict(list), {}, {}, []
    for stem in sorted(known):
        by_name[PurePosixPath(stem).name].append(stem)
    for number, fields in _lines(path):
        if not lines and not problems and fields[0].lower() == "stem" and fields[0] not in known:
            continue  # the header
        if len(fields) != 2 or not all(fields):
            problems.append(
                f"line {number}: found {len(fields)} field{'s' * (len(fields) != 1)}"
                f" ({', '.join(fields)[:80]}); expected two, stem,group"
            )
            continue
        stem, group = fields
        found = [stem] if stem in known else by_name.get(stem, [])
        if len(found) > 1:
            problems.append(
                f"line {number}: {stem} could be {' or '.join(found[:3])}; expected its folder"
                " with it"
            )
        elif not found:
            problems.append(
                f"line {number}: {stem} is no capture; expected a stem such as"
                f" {min(known, default='folder/name')}"
            )
        elif found[0] in lines:
            problems.append(
                f"line {number}: {found[0]} is on line {lines[found[0]]} already; expected one line"
                " a capture"
            )
        else:
            lines[found[0]], groups[found[0]] = (
                number,
                group.lower() if group.lower() in (*FIXED, SKIP) else group,
            )
    if missing := sorted(set(stems) - groups.keys()):
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problems.append(
            f"{len(missing)} of {len(stems)} captures have no line ({names}); expected one each"
            f" (the group {SKIP} leaves a capture out)"
        )
    _raise(path, problems)
    return groups


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line that is no comment.

    ValueError where the file cannot be read
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as err:
        raise ValueError(
            f"{printable_path(path)}: cannot be read: {err.strerror}; expected a text file with a line a"
            " capture: stem,group"
        ) from err
    except UnicodeDecodeError as err:
        raise ValueError(
            f"{printable_path(path)}: byte {err.start} is not UTF-8; expected a text file with a line a"
            " capture: stem,group"
        ) from err
    for number, line in enumerate(text.split("\n"), 1):
        if (line := line.strip()) and not line.startswith("#"):
            try:
                yield (
                    number,
                    [
                        field.strip()
                        for field in next(
                            csv.reader([line], delimiter="\t" if "\t" in line else ",")
                        )
                    ],
                )
            except csv.Error:
                yield number, [line]


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        more = (
            [f"{printable_path(path)}: {len(problems) - MOST} more problems"]
            if len(problems) > MOST
            else []
        )
        raise ValueError(
            "\n".join(
                [*(f"{printable_path(path)}: {problem}" for problem in problems[:MOST]), *more]
            )
        )


def known_group_sides(
    path: Path, groups: dict[str, str], held: dict[str, bool], before: dict[str, bool]
) -> dict[str, bool]:
    """The groups whose side is settled: by their name, by an earlier run, or by captures that the
    dataset holds already.

    held    by stem, the side of captures in the dataset;  before  the sides of groups as the
            dataset has them
    raises ValueError where the file wants a capture elsewhere than it is: it stays where it was
    written
    """
    sides, problems = {**before, **FIXED}, []
    for stem in sorted(groups.keys() & held.keys()):
        group, there = groups[stem], "val" if held[stem] else "train"
        if group == SKIP:
            problems.append(f"{stem} is in the dataset's {there} already; --append cannot skip it")
        elif sides.setdefault(group, held[stem]) != held[stem]:
            problems.append(
                f"{stem} is in the dataset's {there} already, and its group {group} is for"
                f" {'val' if sides[group] else 'train'}; expected one side a group"
            )
    _raise(path, problems)
    return sides


def choose_groups(
    path: Path,
    groups: list[str],
    sides: dict[str, bool],
    there: Counter[bool],
    val: float,
    seed: int,
) -> dict[str, bool]:
    """The side of each group: as `sides` has it, else so that validation is as near to `val` of all
    captures as it can be.

    groups  of each capture;  there  how many captures each side has already
    raises ValueError where one side would be empty
    """
    free = Counter(group for group in sorted(groups) if group not in sides)
    have = there + Counter(sides[group] for group in groups if group in sides)  # captures by side
    wanted = math.floor(val * (there.total() + len(groups)) + 0.5) - have[True]
    allowed = range(0 if have[True] else 1, free.total() + (1 if have[False] else 0))
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(free)).tolist()
    names, chosen = list(free), choose_subset(list(free.values()), wanted, order, allowed)
    if chosen is None:
        empty = "train" if have[True] else "val"
        named = (
            f"{len(free)} group{'s' * (len(free) != 1)} that can go to either side, {have[False]}"
            f" captures fixed to train and {have[True]} to val"
        )
        raise ValueError(
            f"{printable_path(path)}: {empty} would be empty: found {named}; expected two groups or more, or"
            f" one named {empty} (no validation: --split none)"
        )
    return {group: sides.get(group, group in {names[i] for i in chosen}) for group in set(groups)}


def choose_subset(
    sizes: list[int], wanted: int, order: list[int], allowed: range
) -> set[int] | None:
    """The indices whose sizes add up, within `allowed`, as near to `wanted` as any do, or None.

    `order` decides between equals.
    """
    reach = [1]  # bit s of reach[k]: some of the first k in `order` add up to s
    for index in order:
        reach.append(reach[-1] | reach[-1] << sizes[index])
    total = min(
        (s for s in allowed if reach[-1] >> s & 1), key=lambda s: (abs(s - wanted), s), default=None
    )
    if total is None:
        return None
    chosen = set()
    for k in range(len(order), 0, -1):
        if not reach[k - 1] >> total & 1:
            chosen.add(order[k - 1])
            total -= sizes[order[k - 1]]
    return chosen


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
    chosen = choose_subset(
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
