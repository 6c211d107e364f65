"""Training from folders of captures: their shards take the place, before the ranks meet.

A run keeps the data that it began with: it is resumed with its own shards, also where captures came
since.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from depthdist.core.environment import local_rank
from depthdist.core.errors import SettingsError
from depthdist.core.settings import as_dict, to_json_value
from depthdist.data.capture_folders import (
    FolderSettings,
    real_places,
    shard_captures,
    shard_settings,
)
from depthdist.runs.run_folder import RUN_FILE, open_run
from depthdist.shards.cached_datasets import find_cached
from depthdist.training.settings import Settings, check_together


def with_shards(settings: Settings) -> Settings:
    """Return the settings with shards in place of captures, made where they are not there yet.

    raises SettingsError with what is wrong with them together with the other settings, ValueError
    where captures cannot be sharded
    """
    own = _own_shards(settings)
    data = replace(settings.data, data=own) if own else None
    data = data or shard_captures(settings.data, settings.folder)
    found = replace(settings, data=data, captures=tuple(real_places(settings.data)))
    problems = data.problems() or check_together(found)
    if problems:
        raise SettingsError(problems)
    return found


def _own_shards(settings: Settings) -> tuple[str, ...]:
    """Return the shards that the run to be resumed began with, () where there is none."""
    source = settings.resumed_run
    if source is None or not (source / RUN_FILE).exists():
        return ()
    record = open_run(source).record
    given = {**as_dict(settings.folder), "data": real_places(settings.data)}
    given["size"] = to_json_value(settings.data.size)
    recorded = {**as_dict(FolderSettings()), **record["settings"]}  # older runs lack some
    if any(recorded.get(name) != value for name, value in given.items()):
        return ()
    own = tuple(record["derived"]["data"])
    if not all((Path(place) / "index.json").exists() for place in own):
        return ()
    _say_what_came(settings, own)
    return own


def describe_sharding(settings: Settings) -> list[str]:
    """Return what training would do first with captures that are not sharded yet, a line each."""
    from depthdist.shards.plan import describe_no_pair, describe_plan, make_plan  # imports tqdm

    lines = []
    for place in () if _own_shards(settings) else settings.data.captures:
        given = shard_settings(place, settings.data, settings.folder)
        found = find_cached(given, settings.data.cache)
        if not found.is_whole():
            plan = make_plan(replace(given, out=str(found.folder)))
            if not plan.jobs:
                raise ValueError(describe_no_pair(place, plan.rejects))
            lines.append(f"captures     {place} would be sharded in {found.folder}:")
            lines += [f"captures     {line}" for line in describe_plan(plan)]
    return lines


def _say_what_came(settings: Settings, own: tuple[str, ...]) -> None:
    """Print which folders have other captures than the run began with."""
    if local_rank():
        return
    for place, folder in zip(settings.data.data, own):
        if place not in settings.data.captures:
            continue
        now = find_cached(
            shard_settings(place, settings.data, settings.folder), settings.data.cache
        )
        line = f"shards of {place}: {folder}"
        if str(now.folder.resolve()) != folder:
            line += (
                "; captures came or changed since, and this run goes on without them: a new --run"
                " takes them"
            )
        print(f"captures     {line}", flush=True)
