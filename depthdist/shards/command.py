"""Make a dataset of shards from a folder of captures, extend one, verify one, or index tars.

    depthdist shard RAW OUT --workers 8
    depthdist shard RAW OUT --append                # captures that came since
    # who belongs together: a line a capture, stem,group
    depthdist shard RAW OUT --split file --groups groups.csv
    depthdist shard --verify OUT
    depthdist shard --index DIR                     # plain webdataset tars, in place
    # or torchrun, srun: many processes on many machines
    deepspeed --hostfile hosts tools/shard.py RAW OUT

Exit code 0: done; 2: bad input, or more bad pairs than --max-rejects (the dataset is written all
the same), or problems found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depthdist.captures.layouts import find_pairs
from depthdist.core.command_line import parse
from depthdist.core.environment import count_workers, world_size
from depthdist.core.errors import printable_path
from depthdist.core.stop_signals import note_stop_signals
from depthdist.distributed.cpu_group import CpuGroup
from depthdist.distributed.early_failure import expect_ranks
from depthdist.distributed.launcher_watch import watch_launchers
from depthdist.shards.settings import ShardSettings
from depthdist.shards.split_names import in_order

MAX_SHOWN = 5  # rejects that are printed
MANY_JOBS = 1 << 30  # more than there are cores: the number of jobs sets no limit


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and do what it asks for; libraries are imported after that."""
    expect_ranks()
    summary, epilog = __doc__.split("\n\n", 1)
    first = ("raw", "out", "size", "split", "val", "append", "unit", "near", "far", "verify")
    (settings,) = parse(summary, ShardSettings, argv=argv, epilog=epilog, first=first)
    if settings.verify:
        return verify(settings)
    if settings.index:
        return index_tars(settings)
    return make(settings)


def make(settings: ShardSettings) -> int:
    """Shard the captures in RAW, print what OUT holds, and return the exit code."""
    if world_size() > 1:  # alone, a signal ends this process at once
        note_stop_signals()
        watch_launchers()
    ranks = CpuGroup()
    if ranks.size == 1 and not Path(settings.raw).is_dir():
        find_pairs(settings.raw)  # raises the error, before the libraries are imported
    from depthdist.shards.build import build_shards

    index = build_shards(settings, ranks)
    ranks.leave()
    if index is None:  # rank 0 prints
        return 0
    out = settings.out
    if index["held"]:
        print(
            f"{index['held']} captures are in {out} already, by their names; they were not looked"
            " at again"
        )
    if not index["changed"]:
        print(f"nothing to do: {out} is complete and of these captures and settings")
    rejected = [
        f"{printable_path(reject['path'])}: {reject['reason']}" for reject in index["rejected"]
    ]
    return print_summary(index, settings, out, rejected, "files")


def index_tars(settings: ShardSettings) -> int:
    """Index existing tars in place, print what they hold, and return the exit code."""
    from tqdm import tqdm

    from depthdist.shards.external_tars import index_in_place

    with tqdm(desc="indexing", unit=" samples", delay=1) as bar:
        index = index_in_place(settings, count_workers(settings.workers, MANY_JOBS), bar.update)
    for note in index["notes"]:
        print(note)
    rejected = [
        f"{reject['shard']}: {printable_path(reject['key'])}: {reject['why']}"
        for reject in index["rejected"]
    ]
    return print_summary(index, settings, settings.index, rejected, "samples")


def verify(settings: ShardSettings) -> int:
    """Verify every byte of a dataset; raise ValueError where problems were found."""
    from tqdm import tqdm

    from depthdist.shards.index import read_index
    from depthdist.shards.verify import verify_dataset

    folder = settings.verify
    with tqdm(desc="verifying", unit=" samples", delay=1) as bar:
        num_workers = count_workers(settings.workers, MANY_JOBS)
        problems = verify_dataset(folder, num_workers, bar.update)
    for problem in problems:
        print(problem)
    if problems:
        raise ValueError(f"{folder}: {len(problems)} problem{'s' * (len(problems) > 1)} found")
    index = read_index(folder)
    megabytes = sum(shard["bytes"] for shard in index.shards) / 1e6
    counts = [f"{index.raw['splits'][name]['count']} {name}" for name in in_order(index.stats)]
    for line in format_leaks(folder):
        print(line)
    print(
        f"{folder}: all right: {len(index.shards)} shards, {index.num_samples} samples"
        f" ({', '.join(counts)}), {megabytes:.1f} MB (every size, sha256, CRC-32 and tar header,"
        " every sample decoded)"
    )
    return 0


def print_summary(
    index: dict[str, Any], settings: ShardSettings, out: str, rejected: list[str], what: str
) -> int:
    """Print what the dataset in `out` holds and what was rejected.

    raises ValueError where more was rejected than --max-rejects
    """
    lines = [*format_table(index), *format_warnings(index, settings, out), *format_leaks(out)]
    lines += [f"rejected  {line}" for line in rejected[:MAX_SHOWN]]
    lines.append(f"{len(rejected)} rejected{f', all in {out}/rejects.jsonl' if rejected else ''}")
    lines.append(f"dataset   {out}/index.json")
    lines.append(f"next      depthdist shard --verify {out}")
    print("\n".join(lines))
    if len(rejected) > settings.max_rejects:
        raise ValueError(
            f"{len(rejected)} bad {what}, --max-rejects is {settings.max_rejects}; the dataset in"
            f" {out} is whole without them"
        )
    return 0


def format_table(index: dict[str, Any]) -> list[str]:
    """Return the summary of a dataset: a line per split, in MiB and mm, and how depth is stored."""
    lines = [
        f"{'split':<6}{'samples':>9}{'shards':>8}{'MiB':>10}{'valid %':>9}"
        f"{'min mm':>10}{'mean mm':>10}{'std mm':>9}{'max mm':>10}"
    ]
    for name in in_order(index["splits"]):
        split = index["splits"][name]
        stats = split["stats"]
        lines.append(
            f"{name:<6}{split['count']:>9}{split['shards']:>8}{split['bytes'] / 2**20:>10.1f}"
            f"{100 * stats['valid_fraction']:>9.1f}{stats['min_mm']:>10.2f}"
            f"{stats['mean_mm']:>10.1f}{stats['std_mm']:>9.1f}{stats['max_mm']:>10.2f}"
        )
    depth = index["depth"]
    depth_size = "x".join(map(str, depth["size"]))
    rgb, seen = index["rgb"], "x".join(map(str, index["size"]))
    images = f"{seen} {rgb['codec']}"
    if "size" in rgb:
        images = f"{'x'.join(map(str, rgb['size']))} {rgb['codec']}, seen at {seen}"
    lines.append(
        f"depth {depth_size}, step {depth['step_mm']:.5f} mm, off by {depth['max_error_mm']:.5f} mm"
        f" at most; rgb {images}"
    )
    return lines


def format_warnings(index: dict[str, Any], settings: ShardSettings, out: str) -> list[str]:
    """Return what a reader must not miss."""
    from depthdist.shards.dataset_warnings import capture_warnings, dataset_warnings, missing_line

    missing = missing_line(index)
    return [
        *([missing] if missing else []),
        *dataset_warnings(index, settings),
        *capture_warnings(index.get("warned", []), out),
        *([index["note"]] if index["note"] else []),
    ]


def format_leaks(folder: str) -> list[str]:
    """Return a warning for each two splits of a dataset that have the same images."""
    from depthdist.shards.image_hashes import describe_shared_of
    from depthdist.shards.index import read_index

    return [f"WARNING   {line}" for line in describe_shared_of(read_index(folder))]
