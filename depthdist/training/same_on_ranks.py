"""What must be the same on all ranks: the settings, DeepSpeed's file, the data.

settings = agree_on_settings(settings, ds_config, world)
agree_on_data(dataset, settings, world)

Ranks read files of their own machine: another command typed there, another DeepSpeed file or other
captures would train on without a word, each rank in its own way.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

from depthdist.core.settings import field_names, typed_flag
from depthdist.data.dataset import Dataset, ReadSettings
from depthdist.distributed.process_group import World, broadcast_from_rank_0
from depthdist.shards.remote_cache import CacheSettings
from depthdist.training.settings import Settings

OF_A_MACHINE = {
    *field_names(ReadSettings, CacheSettings),
    *("data", "groups", "raw", "run", "resume", "deepspeed"),
}
"""Settings that may differ between machines: paths, whose content is compared, and speed."""
OF_THE_RUN = {"recipe", "calibrate", "lr"}
"""Those that a run which goes on remembers; rank 0's disk has the run."""


def agree_on_settings(settings: Settings, ds_config: dict[str, Any], world: World) -> Settings:
    """Return the settings as rank 0 has them, in what a run that goes on remembers.

    raises ValueError where this rank was given others than rank 0
    """
    mine = settings.as_dict()
    its, its_config, host = broadcast_from_rank_0((mine, ds_config, socket.gethostname()))
    me = f"rank {world.rank} on {socket.gethostname()}"
    for name in sorted(mine.keys() - OF_A_MACHINE - OF_THE_RUN):
        if mine[name] != its.get(name):
            raise ValueError(
                f"{me} has {typed_flag(name, mine[name])}, but rank 0 on {host} has"
                f" {typed_flag(name, its.get(name))}: every machine needs the same command"
            )
    if ds_config != its_config:
        names = sorted(ds_config.keys() | its_config.keys())
        keys = [key for key in names if ds_config.get(key) != its_config.get(key)]
        raise ValueError(
            f"--deepspeed {settings.engine.deepspeed}: {me} has another {', '.join(keys)} than"
            f" rank 0 on {host}: every machine needs the same file, and devices alike"
        )
    if all(mine[name] == its[name] for name in OF_THE_RUN):
        return settings
    given = {name: its[name] for name in OF_THE_RUN}
    return replace(settings, train=replace(settings.train, **given))


def agree_on_data(dataset: Dataset, settings: Settings, world: World) -> None:
    """Raise ValueError where this rank sees other data than rank 0."""
    its, host = broadcast_from_rank_0((dataset.sha256, socket.gethostname()))
    if its == dataset.sha256:
        return
    advice = "every machine needs the same shards"
    if settings.captures:
        advice = (
            "each machine makes shards of the captures that it has: they need the same files"
            " (rsync -a), or shards made once, with depthdist shard, on a disk that all have"
        )
    raise ValueError(
        f"--data {dataset.place}: rank {world.rank} on {socket.gethostname()} sees other data than"
        f" rank 0 on {host}; {advice}"
    )
