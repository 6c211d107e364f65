"""The splits of a dataset, and what people call them.

split_word("Validation")     ->  "val"
split_word("monday")         ->  ""
unclear_word("test 2")       ->  "test"    looks like a split, and is none
conflict(["val", "eval"])    ->  a line that says that one of them must be renamed
split_of_path("val/a/0001")  ->  "val"     by its folders
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from depthdist.core.errors import printable_path

SPLITS = ("train", "val", "test")  # in the order of every table
SKIP = "skip"  # no split: captures that are left out
WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validate", "validation", "dev", "eval", "evaluate", "evaluation"),
    "test": ("test", "testing", "holdout", "heldout"),
    SKIP: ("skip", "skipped", "ignore", "ignored", "exclude", "excluded", "unused"),
}
MEANING = {word: split for split, words in WORDS.items() for word in words}
UNSURE = {"dev", "eval", "evaluate", "evaluation", "holdout", "heldout"}
"""Words that mean another split where a plainer word for theirs stands beside them."""
JOINED = ("trainval", "traintest", "traindev", "valtest")  # two splits in one word
SUFFIXES = ("set", "split", "data")  # as in "test set"
EXPECTED = f"expected {', '.join(SPLITS)} or {SKIP}, or a name without such a word"
MAX_SHOWN = 5
NUM_NAMES = 4096  # whose meaning is remembered
NO_WORDS: Mapping[str, str] = {}
FIRST_WORD = re.compile(r"([^\W\d_]+)[-_. \d]")


def split_word(name: str) -> str:
    """Return the split that a name means, or SKIP; "" where it means none.

    In upper or lower case, singular or plural, with or without what joins words: "Hold-out".
    """
    return MEANING.get(_plain(name), "")


def _plain(name: str) -> str:
    """Return a name in lower case, without what joins words, a suffix, and a plural's s."""
    word = re.sub(r"[\W_]+", "", name.lower())
    for suffix in SUFFIXES:
        if word.removesuffix(suffix) in MEANING:
            return word.removesuffix(suffix)
    return word.removesuffix("s") if word not in MEANING else word


def _tokens(name: str) -> list[str]:
    """Return the words of a name in lower case, without numbers."""
    return re.findall(r"[^\W\d_]+", name.lower())


def unclear_word(name: str) -> str:
    """Return the word of a split in a name that holds little else and is none: test2, train+val."""
    if split_word(name):
        return ""
    tokens = _tokens(name)
    words = [token for token in tokens if _plain(token) in MEANING or _plain(token) in JOINED]
    others = [t for t in tokens if t not in words and t not in SUFFIXES and len(t) > 1]
    return words[0] if words and not others else ""


def holds_split_word(name: str) -> bool:
    """Return whether a word of a longer name is that of a split, as in "test_monday"."""
    return not split_word(name) and any(split_word(token) in SPLITS for token in _tokens(name))


def conflict(names: Iterable[str]) -> str:
    """Return in one line why names cannot all be splits as they stand; "" where they can.

    Two words for one split are one of them only if both are sure: dev beside val may be a test.
    """
    found = {name: _plain(name) for name in sorted(set(names))}
    if "valid" in found.values() and {"invalid", "notvalid"} & set(found.values()):
        return (
            "valid stands beside invalid, so it may say how good captures are, not their split;"
            f" {EXPECTED}"
        )
    for split in SPLITS:
        of_split = {name: word for name, word in found.items() if MEANING.get(word) == split}
        if len(set(of_split.values())) > 1 and UNSURE & set(of_split.values()):
            others = " or ".join(f"'{other}'" for other in (*SPLITS[1:], SKIP))
            return (
                f"{' and '.join(of_split)} could both mean {split}; expected one word for each"
                f" split: rename one of them to {others}"
            )
    return ""


def folder_words(path: str) -> Mapping[str, str]:
    """Return the folders of a path that are named like a split, or skip, and which one."""
    return _words_of(path.rpartition("/")[0])


@lru_cache(NUM_NAMES)
def _words_of(folder: str) -> Mapping[str, str]:
    """Return the parts of a folder's path that are named like a split, or skip, and which one."""
    return {part: split_word(part) for part in folder.split("/") if split_word(part)}


def file_words(path: str) -> Mapping[str, str]:
    """Return the first word of a file's name, and the split that it says: train-000001, test_a."""
    first = FIRST_WORD.match(path.rpartition("/")[2])
    return _word_of(first[1]) if first else NO_WORDS


@lru_cache(NUM_NAMES)
def _word_of(name: str) -> Mapping[str, str]:
    """Return a name and the split that it says, {} where it says none."""
    return {name: split_word(name)} if split_word(name) else NO_WORDS


def several_splits(path: str, words: Mapping[str, str]) -> str:
    """Return in one line that the words of a path mean several splits; "" where they mean one."""
    if len(set(words.values())) < 2:
        return ""
    return f"{printable_path(path)} lies in {' and '.join(words)}; expected one split"


def unused_names_warning(paths: Sequence[str], sides: Sequence[str], advice: str) -> str:
    """Return a line about folders or files named like splits that went elsewhere; "" if none.

    A lone training folder is no split, nor are files test_01, test_02 ... of one word.

    paths   of each capture below its root;  sides  the split that it went to
    advice  how to have such names used
    """
    for words_of, least in ((folder_words, 1), (file_words, 2)):
        words = [words_of(path) for path in paths]
        splits = {split for found in words for split in found.values()}
        moved = Counter(
            (part, side)
            for found, side in zip(words, sides)
            for part, split in found.items()
            if split != side
        )
        if not moved or len(splits) < least or splits == {"train"}:
            continue
        parts = ", ".join(sorted({part for found in words for part in found}))
        counts = [f"{num} of {part} are in {side}" for (part, side), num in sorted(moved.items())]
        more = ", ..." if len(counts) > MAX_SHOWN else ""
        return (
            f"WARNING   names that look like splits were not used ({printable_path(parts)}):"
            f" {', '.join(counts[:MAX_SHOWN])}{more}; {advice}"
        )
    return ""


def in_order(splits: Iterable[str]) -> list[str]:
    """Return names of splits in the order of tables."""
    return sorted(splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else 9, name))
