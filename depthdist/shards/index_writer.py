"""Compose index.json, and the table and names beside it, from the commit records of all shards."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from depthdist import __version__
from depthdist.captures.edge_agreement import EdgeScores, describe_dataset
from depthdist.captures.near_duplicates import FINGERPRINT, summarize_split
from depthdist.geometry.image_size import most_stretched
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.encoding import as_npy
from depthdist.shards.format import LEVELS, Encoding
from depthdist.shards.index import as_rows, named_by_content
from depthdist.shards.plan import Plan
from depthdist.shards.settings import ShardSettings
from depthdist.shards.split_names import SPLITS
from depthdist.shards.statistics import describe_missing, merge_stats, statistics

Record = dict[str, Any]  # the commit record of one shard


def compose_index(
    settings: ShardSettings,
    plan: Plan,
    records: dict[str, Record],
    num_rejects: int,
    old: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the content of index.json, and the files of table and names by name.

    records  by shard, of the whole dataset
    old      the content of index.json that captures are appended to; else empty
    """
    encoding = plan.encoding
    added = any(records[job.name]["count"] for job in plan.jobs)
    splits = _by_split(records)
    in_order = [record for shards in splits.values() for record in shards]
    entries, files = _table_and_names(in_order)
    index = {
        "schema": SCHEMA,
        "version": VERSION,
        "created_by": f"depthdist {__version__}",
        "config_hash": _config_hash(plan, old, added),
        "settings": settings.content(),
        "size": list(plan.size),
        **_member_entries(encoding, old.get("rgb", {}).get("size") or plan.camera_size),
        "splits": {name: _split_entry(shards, settings) for name, shards in splits.items()},
        "shards": [_shard_entry(record) for record in in_order],
        **entries,
        **_measured_entries(in_order),
        "rejects": num_rejects,
    }
    optional = {
        "near_duplicates": _near_duplicates(splits, "val"),
        "near_duplicates_test": _near_duplicates(splits, "test"),
        "warnings": sum(len(record.get("warnings", ())) for record in in_order),
        "edge_agreement": _edge_agreement(in_order),
        "stretched": _stretched(old, plan) if added else old.get("stretched"),
        "groups": {**old.get("groups", {}), **_named_groups(plan.groups)},
        "appended": old.get("appended", 0) + bool(old and added),
    }
    return index | {name: value for name, value in optional.items() if value}, files


def _by_split(records: dict[str, Record]) -> dict[str, list[Record]]:
    """Return the records of each split, in the order of JSON's keys, shards by number."""
    splits: dict[str, list[Record]] = {}
    for name in sorted(records, key=lambda name: (name.split("/")[0], len(name), name)):
        splits.setdefault(name.split("/")[0], []).append(records[name])
    return splits


def _table_and_names(
    records: list[Record],
) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Return the index's entries for table and names, and the content of both files by name."""
    samples = [
        (number, *sample) for number, record in enumerate(records) for sample in record["samples"]
    ]
    rows, text = as_rows(samples)
    table = as_npy(rows)
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


def _split_entry(records: list[Record], settings: ShardSettings) -> dict[str, Any]:
    """Return the number of samples, bytes and shards of one split, and its depth statistics."""
    total = merge_stats([record["stats"] for record in records])
    step_mm = settings.far / LEVELS
    return {
        "count": sum(record["count"] for record in records),
        "bytes": sum(record["bytes"] for record in records),
        "shards": len(records),
        "stats": statistics(total, step_mm, settings.keep_near, settings.keep_far),
    }


def _shard_entry(record: Record) -> dict[str, Any]:
    return {part: record[part] for part in ("name", "bytes", "sha256", "count")}


def _measured_entries(records: list[Record]) -> dict[str, Any]:
    """Return how many pixels were measured, and how many of them --near and --far mask."""
    total = merge_stats([record["stats"] for record in records])
    names = ("measured", "nearer", "farther", "measured_min_mm", "measured_max_mm")
    return {
        "out_of_range_pixels": total["nearer"] + total["farther"],
        "measured": {name: total[name] for name in names},
        "no_value": describe_missing(total),
    }


def _edge_agreement(records: list[Record]) -> dict[str, Any]:
    """Return what the edges of image and depth say of all captures together, {} if all is well."""
    scores = [
        EdgeScores(*values) if values else None
        for record in records
        for values in record.get("edges", ())
    ]
    text = describe_dataset(scores)
    return {"warning": text} if text else {}


def _stretched(old: dict[str, Any], plan: Plan) -> list[int]:
    """Return the size of the most stretched images, old or new; [] where none is by much."""
    sizes = [size for size in (old.get("stretched"), plan.stretched) if size]
    return most_stretched(map(tuple, sizes), plan.size)


def _near_duplicates(splits: dict[str, list[Record]], held_out: str) -> dict[str, Any]:
    """Return the summary of images of a split that have a near-duplicate in train.

    Empty without them, or where a shard was written before there were fingerprints.
    """
    compared = [splits.get(split, []) for split in (held_out, "train")]
    in_order = [record for shards in compared for record in shards]
    if not all(compared) or not all("fingerprints" in record for record in in_order):
        return {}
    stems, prints = {}, {}
    for split, records in zip((held_out, "train"), compared):
        stems[split] = [stem for record in records for _, stem, *_ in record["samples"]]
        encoded = [text for record in records for text in record["fingerprints"]]
        prints[split] = np.frombuffer(b"".join(map(base64.b64decode, encoded)), FINGERPRINT)
    return summarize_split(prints[held_out], prints["train"], stems[held_out], stems["train"])


def _named_groups(groups: dict[str, str]) -> dict[str, str]:
    """Return the side of each group whose name does not say it, for captures appended later."""
    return {group: side for group, side in groups.items() if group not in SPLITS}
