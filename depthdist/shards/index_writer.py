"""Compose index.json, and the table and names beside it, from the commit records of all shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from depthdist import __version__
from depthdist.captures.edge_agreement import describe_scores
from depthdist.captures.near_duplicates import summarize_split
from depthdist.geometry.image_size import most_stretched
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.encoding import as_npy
from depthdist.shards.format import LEVELS, Encoding
from depthdist.shards.index import named_by_content
from depthdist.shards.plan import Plan
from depthdist.shards.record_sums import RecordSums, SplitSums
from depthdist.shards.settings import ShardSettings
from depthdist.shards.split_names import SPLITS
from depthdist.shards.statistics import describe_missing, merge_stats, statistics


def compose_index(
    settings: ShardSettings,
    plan: Plan,
    sums: RecordSums,
    added: bool,
    num_rejects: int,
    old: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the content of index.json, and the files of table and names by name.

    sums   of the records of the whole dataset
    added  whether this run has added samples
    old    the content of index.json that captures are appended to; else empty
    """
    encoding = plan.encoding
    entries, files = _table_and_names(sums)
    index = {
        "schema": SCHEMA,
        "version": VERSION,
        "created_by": f"depthdist {__version__}",
        "config_hash": _config_hash(plan, old, added),
        "settings": settings.content(),
        "size": list(plan.size),
        **_member_entries(encoding, old.get("rgb", {}).get("size") or plan.camera_size),
        "splits": {name: _split_entry(split, settings) for name, split in sums.splits.items()},
        "shards": [shard for split in sums.splits.values() for shard in split.shards],
        **entries,
        **_measured_entries(sums),
        "rejects": num_rejects,
    }
    optional = {
        "near_duplicates": _near_duplicates(sums, "val"),
        "near_duplicates_test": _near_duplicates(sums, "test"),
        "warnings": sums.warnings,
        "edge_agreement": _edge_agreement(sums),
        "stretched": _stretched(old, plan) if added else old.get("stretched"),
        "groups": {**old.get("groups", {}), **_named_groups(plan.groups)},
        "appended": old.get("appended", 0) + bool(old and added),
    }
    return index | {name: value for name, value in optional.items() if value}, files


def _table_and_names(sums: RecordSums) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Return the index's entries for table and names, and the content of both files by name."""
    table = as_npy(sums.rows())
    text = sums.text()
    entries = {
        "table": named_by_content("samples", ".npy", table),
        "names": named_by_content("names", ".txt", text),
    }
    return entries, {entries["table"]["name"]: table, entries["names"]["name"]: text}


def _config_hash(plan: Plan, old: dict[str, Any], added: bool) -> str:
    """Return the hash of everything that the dataset was made from."""
    if not old:
        return plan.hash
    if not added:
        return old["config_hash"]
    return hashlib.sha256((old["config_hash"] + plan.hash).encode()).hexdigest()


def _member_entries(encoding: Encoding, camera_size: Sequence[int] | None) -> dict[str, Any]:
    """Return the entries that say how each member of a sample is encoded.

    camera_size  of most images, where they keep their sizes
    """
    rgb: dict[str, Any] = {"member": encoding.members[-1], "codec": encoding.codec}
    if encoding.codec == "jpeg":
        rgb |= {"quality": encoding.quality, "subsampling": encoding.subsampling}
    if encoding.rgb_size is None:
        rgb |= {"size": list(camera_size or ()), "resize": True}
    return {
        "members": encoding.members,
        "depth": {
            "member": f"depth.{encoding.depth_codec}",
            "codec": encoding.depth_codec,
            "steps": True,
            "size": list(encoding.depth_size),
            "step_mm": encoding.step_mm,
            "max_error_mm": encoding.step_mm / 2,
            "near_mm": encoding.near_mm,
            "far_mm": encoding.far_mm,
            "invalid": 0,
        },
        "mask": {"member": "mask.npy", "packed": True},
        "meta": {"member": "meta.json"},
        "rgb": rgb,
    }


def _split_entry(split: SplitSums, settings: ShardSettings) -> dict[str, Any]:
    """Return the number of samples, bytes and shards of one split, and its depth statistics."""
    step_mm = settings.far / LEVELS
    return {
        "count": split.count,
        "bytes": sum(shard["bytes"] for shard in split.shards),
        "shards": len(split.shards),
        "stats": statistics(split.stats.total(), step_mm, settings.keep_near, settings.keep_far),
    }


def _measured_entries(sums: RecordSums) -> dict[str, Any]:
    """Return how many pixels were measured, and how many of them --near and --far mask."""
    total = merge_stats(split.stats.total() for split in sums.splits.values())
    names = ("measured", "nearer", "farther", "measured_min_mm", "measured_max_mm")
    return {
        "out_of_range_pixels": total["nearer"] + total["farther"],
        "measured": {name: total[name] for name in names},
        "no_value": describe_missing(total),
    }


def _edge_agreement(sums: RecordSums) -> dict[str, Any]:
    """Return what the edges of image and depth say of all captures together, {} if all is well."""
    text = describe_scores(sums.edges())
    return {"warning": text} if text else {}


def _stretched(old: dict[str, Any], plan: Plan) -> list[int]:
    """Return the size of the most stretched images, old or new; [] where none is by much."""
    sizes = [size for size in (old.get("stretched"), plan.stretched) if size]
    return most_stretched(map(tuple, sizes), plan.size)


def _near_duplicates(sums: RecordSums, held_out: str) -> dict[str, Any]:
    """Return the summary of images of a split that have a near-duplicate in train.

    Empty without them, or where a shard was written before there were fingerprints.
    """
    splits = (held_out, "train")
    if not all(split in sums.splits and sums.splits[split].has_prints for split in splits):
        return {}
    return summarize_split(
        sums.prints(held_out), sums.prints("train"), sums.stems_of(held_out), sums.stems_of("train")
    )


def _named_groups(groups: dict[str, str]) -> dict[str, str]:
    """Return the side of each group whose name does not say it, for captures appended later."""
    return {group: side for group, side in groups.items() if group not in SPLITS}
