"""Split captures into train, validation and test: by groups, by session, or at random.

    # shift A, the crate was refilled in between
    stem,group
    21-12-03-18-50-31_Zivid_acquisition,crate 1
    monday/a,train
    monday/b,skip

    read_groups(path, stems)          ->  {stem: group}
    choose_groups(path, groups, ...)  ->  {group: split}

All captures of a group go to one split. The file has one line per capture, with a comma or a tab
between the fields; the header may be missing. Groups that are named like a split (split_names) are
fixed to it, captures of skip are left out; the others are assigned to train and validation so that
validation gets as near to --val as whole groups allow. Only groups named test are for the test.
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
from depthdist.shards.split_names import (
    EXPECTED,
    SKIP,
    SPLITS,
    conflict,
    folder_words,
    holds_split_word,
    several_splits,
    split_word,
    unclear_word,
)

MAX_SHOWN = 5  # problems in one message
MAX_GROUPS = 12  # lines of a table


def read_groups(
    path: Path, stems: Collection[str], optional: Collection[str] = ()
) -> dict[str, str]:
    """Return the group of each capture, by stem.

    A stem's folder may be left out in the file where the name alone is unique.

    stems, optional  the captures that must have a line, and those that may
    A group that is named like a split gets that split's name, or "skip".

    raises ValueError, a line for each problem: no such file, not two fields, no such capture,
    listed twice, a capture not listed, a group that may be a split and may not
    """
    known = {*stems, *optional}
    by_name: dict[str, list[str]] = defaultdict(list)
    for stem in sorted(known):
        by_name[PurePosixPath(stem).name].append(stem)
    line_of: dict[str, int] = {}
    groups: dict[str, str] = {}
    written: dict[str, None] = {}  # groups, as the file spells them
    problems: list[str] = []
    for number, fields in _lines(path):
        first = not line_of and not problems
        if first and fields[0].lower() == "stem" and fields[0] not in known:
            continue  # the header
        if len(fields) != 2 or not all(fields):
            problems.append(
                f"line {number}: found {len(fields)} field{'s' * (len(fields) != 1)}"
                f" ({', '.join(fields)[:80]}); expected two, stem,group"
            )
            continue
        stem, group = fields
        found = [stem] if stem in known else by_name.get(stem, [])
        problem = _line_problem(stem, found, line_of, known)
        if problem:
            problems.append(f"line {number}: {problem}")
            continue
        if group not in written and unclear_word(group):
            problems.append(
                f"line {number}: the group {group} looks like a split ({unclear_word(group)});"
                f" {EXPECTED}"
            )
        line_of[found[0]] = number
        written[group] = None
        groups[found[0]] = split_word(group) or group
    missing = sorted(set(stems) - groups.keys())
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problems.append(
            f"{len(missing)} of {len(stems)} captures have no line ({names}); expected one each"
            f" (the group {SKIP} leaves a capture out)"
        )
    if conflict(written):
        problems.append(f"groups: {conflict(written)}")
    _raise(path, problems)
    return groups


def groups_of_folders(root: Path, stems: Collection[str]) -> dict[str, str]:
    """Return the split of each capture, or "skip", by the folder that it lies in.

    raises ValueError where captures lie in no folder of a split, or in two
    """
    words = {stem: folder_words(stem) for stem in stems}
    groups = {stem: min(found.values(), default="") for stem, found in words.items()}
    problems = list(filter(None, map(several_splits, words, words.values())))
    missing = sorted(stem for stem, group in groups.items() if not group)
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problems.append(
            f"{len(missing)} of {len(groups)} captures lie in no folder of a split ({names});"
            f" --split folder expects them in folders named {', '.join(SPLITS)} or {SKIP}"
        )
    problem = conflict(part for found in words.values() for part in found)
    if problem:
        problems.append(f"folders: {problem}")
    _raise(root, problems)
    return groups


def _line_problem(
    stem: str, found: list[str], line_of: dict[str, int], known: Collection[str]
) -> str:
    """Return what is wrong with a line that may mean the captures `found`, "" if nothing is."""
    if len(found) > 1:
        return f"{stem} could be {' or '.join(found[:3])}; expected its folder with it"
    if not found:
        example = min(known, default="folder/name")
        return f"{stem} is no capture; expected a stem such as {example}"
    if found[0] in line_of:
        return f"{found[0]} is on line {line_of[found[0]]} already; expected one line a capture"
    return ""


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each line that is no comment.

    raises ValueError where the file cannot be read
    """
    expected = "expected a text file with a line a capture: stem,group"
    try:
        text = path.read_text("utf-8-sig")
    except OSError as err:
        raise ValueError(
            f"{printable_path(path)}: cannot be read: {err.strerror}; {expected}"
        ) from err
    except UnicodeDecodeError as err:
        raise ValueError(
            f"{printable_path(path)}: byte {err.start} is not UTF-8; {expected}"
        ) from err
    for number, raw_line in enumerate(text.split("\n"), 1):
        line = raw_line.strip()
        if not line or line.startswith("#"):
            continue
        delimiter = "\t" if "\t" in line else ","
        try:
            fields = [field.strip() for field in next(csv.reader([line], delimiter=delimiter))]
        except csv.Error:
            fields = [line]
        yield number, fields


def _raise(path: Path, problems: list[str]) -> None:
    """Raise ValueError with the first problems, a line each, if there are any."""
    if not problems:
        return
    shown = problems[:MAX_SHOWN]
    if len(problems) > MAX_SHOWN:
        shown.append(f"{len(problems) - MAX_SHOWN} more problems")
    lines = [f"{printable_path(path)}: {printable_path(problem)}" for problem in shown]
    raise ValueError("\n".join(lines))  # a name may hold what other programs take as an end of line


def known_group_sides(
    path: Path, groups: dict[str, str], held: dict[str, str], held_groups: dict[str, str]
) -> dict[str, str]:
    """Return the groups whose split is known: by name, by an earlier run, or by existing captures.

    held         by stem, the split of captures that the dataset has already
    held_groups  the splits of groups as the dataset has them
    raises ValueError where the file wants a capture in another split than the dataset has it
    """
    sides = {**held_groups, **{name: name for name in SPLITS}}
    problems = [
        f"the dataset has captures of the group {group} in {side}, from before it was a split;"
        " --append cannot move them: shard all captures again, into another OUT"
        for group, side in held_groups.items()
        if side != sides[group] and group in groups.values()
    ]
    for stem in sorted(groups.keys() & held.keys()):
        group = groups[stem]
        split_name = held[stem]
        if group == SKIP:
            problems.append(
                f"{stem} is in the dataset's {split_name} already; --append cannot skip it"
            )
        elif sides.setdefault(group, split_name) != split_name:
            problems.append(
                f"{stem} is in the dataset's {split_name} already, and its group {group} is for"
                f" {sides[group]}; expected one side a group"
            )
    _raise(path, problems)
    return sides


def choose_groups(
    path: Path,
    groups: list[str],
    sides: dict[str, str],
    counts: Counter[str],
    val: float,
    seed: int,
) -> dict[str, str]:
    """Return the split of each group: as in `sides`, else so that val gets nearest to `val`.

    groups  of each capture
    counts  how many captures each split has already
    val     fraction of all captures but those of the test
    raises ValueError where train or val would be empty. With a test and nothing free to choose from
    val may be: then every split was named
    """
    free = Counter(group for group in sorted(groups) if group not in sides)
    have = counts + Counter(sides[group] for group in groups if group in sides)
    num_split = counts.total() + len(groups) - have["test"]
    wanted = math.floor(val * num_split + 0.5) - have["val"]
    allowed = range(0 if have["val"] else 1, free.total() + (1 if have["train"] else 0))
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(free)).tolist()
    chosen = choose_subset(list(free.values()), wanted, order, allowed)
    if chosen is None and not free and have["train"] and have["test"]:
        chosen = set()
    if chosen is None:
        empty = "train" if have["val"] else "val"
        found = (
            f"{len(free)} group{'s' * (len(free) != 1)} that can go to either side, {have['train']}"
            f" captures fixed to train and {have['val']} to val"
        )
        raise ValueError(
            f"{printable_path(path)}: {empty} would be empty: found {found}; expected two groups or"
            f" more, or one named {empty} (no validation: --split none)"
        )
    names = list(free)
    in_val = {names[i] for i in chosen}
    return {group: sides.get(group, "val" if group in in_val else "train") for group in set(groups)}


def groups_note(path: Path, groups: Collection[str], sides: dict[str, str]) -> str:
    """Return what became of each group: a line that counts them, and a table.

    groups  of each capture, "skip" among them
    """
    captures = Counter(groups)
    counts = Counter(sides[group] for group in captures if group != SKIP)
    test = f", {counts['test']} in test" if counts["test"] else ""
    lines = [
        f"split by {printable_path(path)}: {counts['train']} groups in train, {counts['val']} in"
        f" val{test}; {captures[SKIP]} captures skipped"
    ]
    if captures and not counts["val"]:
        lines[0] += "; none for validation: training keeps its last weights"
    rank = {**{name: i for i, name in enumerate(SPLITS)}, "-": len(SPLITS)}
    rows = sorted(
        ((sides.get(group, "-"), group, number) for group, number in captures.items()),
        key=lambda row: (rank[row[0]], row[1]),
    )
    width = max((len(printable_path(group)) for _, group, _ in rows[:MAX_GROUPS]), default=0)
    lines += [
        f"  {printable_path(group):<{width}}  -> {side:<5}  {number} captures"
        for side, group, number in rows[:MAX_GROUPS]
    ]
    if len(rows) > MAX_GROUPS:
        lines.append(f"  and {len(rows) - MAX_GROUPS} more groups")
    unclear = sorted(filter(holds_split_word, captures))
    if unclear:
        names = printable_path(", ".join(unclear[:MAX_SHOWN]))
        lines.append(
            f"note: {names}{', ...' * (len(unclear) > MAX_SHOWN)}: the name holds a split's word"
            " and is no split's name, so it was assigned as any other group"
        )
    return "\n".join(lines)


def choose_subset(
    sizes: list[int], wanted: int, order: list[int], allowed: range
) -> set[int] | None:
    """Return the indices whose sizes add up nearest to `wanted` within `allowed`, or None.

    order  of preference between sets that are equally near
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


def split(session: list[int], settings: ShardSettings, wanted: int | None = None) -> list[str]:
    """Return for each pair whether it goes to "train" or "val", given its session's number.

    Seeded; with --val 0.2, 58 pairs give 46 and 12.

    wanted  how many go to validation; by default --val of them, and at least one on each side
    raises ValueError where one side would be empty
    """
    count = len(session)
    if settings.split not in ("auto", "random", "session"):  # groups decide, not sessions
        return ["train"] * count
    if wanted is None:
        if count < 2:
            raise ValueError(
                f"{settings.raw}: {count} usable pair cannot be split; take --split none"
            )
        wanted = min(count - 1, max(1, math.floor(settings.val * count + 0.5)))
    random = np.random.Generator(np.random.Philox(settings.seed))
    if settings.split != "session":
        chosen = set(random.permutation(count)[:wanted].tolist())
        return ["val" if i in chosen else "train" for i in range(count)]
    sizes = Counter(session)
    if len(sizes) < 2:
        raise ValueError(
            f"{settings.raw}: all {count} pairs are of one session; --split session needs two"
            " (--session-gap, or --split random)"
        )
    order = random.permutation(len(sizes)).tolist()
    numbers = choose_subset(
        [sizes[i] for i in range(len(sizes))], wanted, order, allowed=range(1, count)
    )
    assert numbers is not None  # two sessions or more: each alone is a subset of allowed size
    return ["val" if number in numbers else "train" for number in session]


def split_note(session: list[int], sides: list[str], settings: ShardSettings) -> str:
    """Return what a reader of validation scores should know about the split, "" if nothing."""
    train = {n for n, side in zip(session, sides) if side == "train"}
    if settings.split == "session":
        return (
            f"split by session: {len(train)} sessions in train, {len(set(session)) - len(train)}"
            " in val"
        )
    shared = sum(side == "val" and n in train for n, side in zip(session, sides))
    if not shared or len(set(session)) < 2:
        return ""
    return (
        f"note: {shared} of {sides.count('val')} validation pairs were taken in a session that is"
        " also in train, so validation scores are optimistic; --split session keeps sessions apart"
    )
