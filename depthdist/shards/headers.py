"""Look at the headers of captures before any work: their sizes, and the size and time of each file.

    headers = look_at(pairs, options)  # one process; in the order of the pairs
    headers = look_together(pairs, options, ranks)  # rank 0, while the others help_to_look(ranks)

On a disk that many machines share an open costs a millisecond: of a million captures that is more
than an hour for one process. So each rank looks at a share.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from depthdist.captures.layouts import CapturePair
from depthdist.captures.read_options import ReadOptions
from depthdist.captures.readers import read_size
from depthdist.core.errors import BadFile
from depthdist.core.progress import with_progress
from depthdist.core.stop_signals import leave_if_stopped
from depthdist.distributed.cpu_group import MEANWHILE, CpuGroup

ALONE = CpuGroup(alone=True)


class Header(NamedTuple):
    """What the headers of a capture's files say, and the disk.

    image_size, size  height and width of image and points
    status            bytes and time of change (ns) of one file after the other, in the order of
                      `CapturePair.files`
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    status: tuple[int, ...]


def look_at(
    pairs: list[CapturePair], options: ReadOptions, ranks: CpuGroup = ALONE
) -> list[Header | BadFile]:
    """Return the header of each pair, or what is wrong with it; rank 0 shows how far it is.

    raises OSError where a file is gone, Stopped on request
    """
    text = "looking at headers"
    if ranks.size > 1:
        text += f", rank 0 of {ranks.size}"
    found: list[Header | BadFile] = []
    for pair in with_progress(pairs, text, "pairs", shown=ranks.rank == 0):
        leave_if_stopped(MEANWHILE)
        try:
            image_size, size = read_size(pair, options)
        except BadFile as err:
            found.append(err)
            continue
        status: list[int] = []
        for name in pair.names:
            file = os.stat(os.path.join(pair.root, name))
            status += (file.st_size, file.st_mtime_ns)
        found.append(Header(image_size, size, tuple(status)))
    return found


def look_together(
    pairs: list[CapturePair], options: ReadOptions, ranks: CpuGroup
) -> list[Header | BadFile]:
    """Return the headers as `look_at` does; each rank looks at its share. For rank 0.

    raises ValueError where a file is gone
    """
    shares = [(pairs[rank :: ranks.size], options) for rank in range(ranks.size)]
    found = _look_at_share(ranks, shares)
    in_turn = []
    for of_rank in found:
        if isinstance(of_rank, str):
            raise ValueError(of_rank)
        in_turn.append(iter(of_rank))
    return [next(in_turn[number % ranks.size]) for number in range(len(pairs))]


def help_to_look(ranks: CpuGroup) -> None:
    """Look at this rank's share for rank 0, if it wants that."""
    _look_at_share(ranks, None)


def release_helpers(ranks: CpuGroup) -> None:
    """Let the other ranks go on without a share."""
    ranks.scatter([None] * ranks.size)


def _look_at_share(
    ranks: CpuGroup, shares: list[tuple[list[CapturePair], ReadOptions]] | None
) -> list[list[Header | BadFile] | str]:
    """Look at a share that rank 0 gives; return those of all ranks there, or what went wrong."""
    share = ranks.scatter(shares)
    if share is None:
        return []
    found: list[Header | BadFile] | str
    try:
        pairs, options = share
        found = look_at(pairs, options, ranks)
    except (OSError, ValueError) as err:
        found = str(err)
    return ranks.gather_on_first(found)
