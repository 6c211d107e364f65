"""Which images a run has seen: their scores say how well it fits, not how good it is.

scored = choose_samples(run, dataset, "val", include_seen=False)
scored.samples                 # numbers in the split, without those that the run learned from
scored.lines                   # what to print of that
scored.record                  # evaluation.json's "seen"
describe_seen(evaluation)      # a sentence for reports, "" if there is nothing to say
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from depthdist.data.dataset import Dataset
from depthdist.evaluation.tables import FIT
from depthdist.runs.run_folder import Run
from depthdist.runs.seen_images import SeenImages, hashes_of, read_seen
from depthdist.shards.image_hashes import MAX_NAMED, shared_images
from depthdist.shards.split_names import in_order

BY_FILES = "source files"
BY_BYTES = "bytes in the shards"


class ScoredSamples(NamedTuple):
    """The numbers of the samples to score, what to print, and what evaluation.json says of them."""

    samples: list[int]
    lines: list[str]
    record: dict[str, Any]


def check_split(dataset: Dataset, split: str) -> None:
    """Raise ValueError, which says what there is, if the dataset has no image of a split."""
    if dataset.has(split):
        return
    others = [name for name in in_order(dataset.splits) if dataset.has(name)]
    advice = f"--split {others[-1]}" if others[-1:] != ["train"] else f"--split train: {FIT}"
    raise ValueError(
        f"{dataset.place}: has no split {split!r}; it has {', '.join(others)}: take {advice}"
    )


def choose_samples(run: Run, dataset: Dataset, split: str, include_seen: bool) -> ScoredSamples:
    """Return which samples of a split to score: not those that the run learned from.

    With include_seen, and of the split train, all are scored.

    raises ValueError where no other is left
    """
    hashes = hashes_of(dataset, split)
    seen = read_seen(run, dataset)
    record: dict[str, Any] = {
        "known_by": None,
        "images": len(hashes),
        "trained_on": 0,
        "left_out": 0,
        "chosen_by": 0,
        "names": [],
    }
    record["include_seen"] = include_seen
    if seen is None:
        return ScoredSamples(list(range(len(hashes))), [_unknown(run, split)], record)
    trained = shared_images(hashes, seen.train)
    chosen = shared_images(hashes, seen.val) & ~trained
    is_kept = np.ones(len(hashes), bool) if include_seen or split == "train" else ~trained
    names = _names(dataset, split, trained)
    if not is_kept.any():
        raise ValueError(
            f"{dataset.place}: {run.folder} learned from all {len(hashes)} images of {split}"
            f" ({names}): nothing is left to score; take images that are new to it (--data,"
            " --split), or --include-seen to see how well it fits"
        )
    known_by = _known_by(run, dataset, hashes, seen)
    record |= {
        "known_by": known_by,
        "trained_on": int(trained.sum()),
        "left_out": int((~is_kept).sum()),
        "chosen_by": int(chosen.sum()) if split == "test" else 0,
        "names": [dataset.find(split, i)[1].stem for i in _first(trained)],
    }
    lines = [f"{'WARNING   ' if split != 'train' else ''}{describe_record(record, split, names)}"]
    if record["chosen_by"]:
        lines.append(
            f"note: {record['chosen_by']} of {len(hashes)} images of test chose the run's best"
            f" epoch as its validation ({_names(dataset, split, chosen)}): a smaller leak; they are"
            " scored"
        )
    if known_by == BY_BYTES:
        lines.append(
            "note: the data is not the run's own and only bytes in the shards could be compared: an"
            " image that was stored in another way would not be recognised"
        )
    is_silent = not trained.any() and split != "train"
    return ScoredSamples(np.flatnonzero(is_kept).tolist(), lines[is_silent:], record)


def _first(is_in: np.ndarray) -> list[int]:
    """Return the first numbers of those that are in, as many as are named."""
    return np.flatnonzero(is_in)[:MAX_NAMED].tolist()


def _names(dataset: Dataset, split: str, is_in: np.ndarray) -> str:
    """Return the names of the first samples, and whether there are more."""
    names = [dataset.find(split, number)[1].stem for number in _first(is_in)]
    return ", ".join(names) + (", ..." if is_in.sum() > len(names) else "")


def _known_by(run: Run, dataset: Dataset, hashes: np.ndarray, seen: SeenImages) -> str:
    """Return what told whether an image was seen: of other data bytes alone are a weak proof."""
    is_own = run.record["derived"].get("data_sha256") == dataset.sha256
    has_sources = bool((hashes[:, :2] != 0).all() and (seen.train[:, :2] != 0).all())
    return BY_FILES if is_own or has_sources else BY_BYTES


def _unknown(run: Run, split: str) -> str:
    """Return that it cannot be known, and why."""
    return (
        f"WARNING   {run.folder} has no record of the images that it learned from (seen.npy: it is"
        f" older than that) and its data changed or is gone: whether images of {split} are among"
        " them cannot be known; put that data back, or train again"
    )


def describe_record(record: dict[str, Any], split: str, names: str) -> str:
    """Return in one line how many images the run learned from, and whether they are scored."""
    learned = f"the run learned from {record['trained_on']} of {record['images']} images of {split}"
    if split == "train":
        return f"{learned}; {FIT}"
    if record["left_out"]:
        what = f"they are left out of the scores ({names}); --include-seen scores them as well"
    else:
        what = f"they are among the scores, as --include-seen asks ({names}); {FIT}"
    return f"{learned}: {what}"


def describe_seen(evaluation: dict[str, Any]) -> str:
    """Return what a reader must know of seen images in an evaluation.json; "" if nothing."""
    record = evaluation.get("seen")
    if not record:
        return ""
    if record["known_by"] is None:
        return "Whether the run learned from some of these images is not known."
    if not record["trained_on"] and evaluation["split"] != "train":
        return ""
    names = ", ".join(record["names"])
    names += ", ..." * (record["trained_on"] > len(record["names"]))
    text = describe_record(record, evaluation["split"], names)
    return f"{text[0].upper()}{text[1:]}."
