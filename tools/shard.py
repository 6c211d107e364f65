"""Make a dataset of shards from a folder of captures, add to one, check one, or index tars that
others made.

    python tools/shard.py RAW OUT --workers 8
    python tools/shard.py RAW OUT --append                # captures that came since
    # who belongs together: a line a capture, stem,group
    python tools/shard.py RAW OUT --split file --groups groups.csv
    python tools/shard.py --verify OUT
    python tools/shard.py --index DIR                     # plain webdataset tars, in place
    # or torchrun, srun: many processes on many machines
    deepspeed --hostfile hosts tools/shard.py RAW OUT

Exit code 0: done; 2: bad input, or more bad pairs than --max-rejects (the dataset is there all the
same), or problems found.
"""

from __future__ import annotations

from tqdm import tqdm

from depthdist.captures.near_duplicates import format_warning
from depthdist.core.command import run_command
from depthdist.core.command_line import parse
from depthdist.core.environment import count_workers
from depthdist.core.errors import printable_path
from depthdist.distributed.cpu_group import CpuGroup
from depthdist.shards.build import build_shards
from depthdist.shards.external_tars import index_in_place
from depthdist.shards.index import read_index
from depthdist.shards.settings import ShardSettings
from depthdist.shards.verify import verify_dataset


def main(argv: list[str] | None = None) -> int:
    (settings,) = parse(
        __doc__.splitlines()[0], ShardSettings, argv=argv, epilog=__doc__.split("\n\n", 1)[1]
    )
    return (
        check(settings)
        if settings.verify
        else index_others(settings)
        if settings.index
        else make(settings)
    )


def make(settings: ShardSettings) -> int:
    ranks = CpuGroup()
    index = build_shards(settings, ranks)
    ranks.leave()
    if index is None:  # rank 0 speaks
        return 0
    out, rejected = settings.out, index["rejected"]
    if index["held"]:
        print(
            f"{index['held']} captures are in {out} already, by their names; they were not looked"
            " at again"
        )
    if not index["changed"]:
        print(f"nothing to do: {out} is complete and of these captures and settings")
    return summary(index, settings, out, [f"{r['path']}: {r['reason']}" for r in rejected], "files")


def index_others(settings: ShardSettings) -> int:
    with tqdm(desc="indexing", unit=" samples", delay=1) as bar:
        index = index_in_place(settings, count_workers(settings.workers, 1 << 30), bar.update)
    for note in index["notes"]:
        print(note)
    return summary(
        index,
        settings,
        settings.index,
        [f"{r['shard']}: {printable_path(r['key'])}: {r['why']}" for r in index["rejected"]],
        "samples",
    )


def summary(index: dict, settings: ShardSettings, out: str, rejected: list[str], what: str) -> int:
    """Say what the dataset in `out` is, and what was left out.

    ValueError where that is too much.
    """
    for line in [
        *table(index),
        *warnings(index, settings),
        *(f"rejected  {line}" for line in rejected[:5]),
    ]:
        print(line)
    print(f"{len(rejected)} rejected{f', all in {out}/rejects.jsonl' if rejected else ''}")
    print(f"dataset   {out}/index.json\nnext      python tools/shard.py --verify {out}")
    if len(rejected) > settings.max_rejects:
        raise ValueError(
            f"{len(rejected)} bad {what}, --max-rejects is {settings.max_rejects}; the dataset in"
            f" {out} is whole without them"
        )
    return 0


def table(index: dict) -> list[str]:
    """The summary: a line a split, mm and MiB."""
    lines = [
        f"{'split':<6}{'samples':>9}{'shards':>8}{'MiB':>10}{'valid %':>9}{'min mm':>10}{'mean mm':>10}{'std mm':>9}{'max mm':>10}"
    ]
    for name, split in index["splits"].items():
        stats = split["stats"]
        row = f"{name:<6}{split['count']:>9}{split['shards']:>8}{split['bytes'] / 2**20:>10.1f}{100 * stats['valid_fraction']:>9.1f}"
        lines.append(
            row
            + f"{stats['min_mm']:>10.2f}{stats['mean_mm']:>10.1f}{stats['std_mm']:>9.1f}{stats['max_mm']:>10.2f}"
        )
    depth, rgb = index["depth"], "x".join(map(str, index["size"]))
    size, codec = "x".join(map(str, depth["size"])), index["rgb"]["codec"]
    return [
        *lines,
        (
            f"depth {size}, step {depth['step_mm']:.5f} mm, off by {depth['max_error_mm']:.5f} mm"
            f" at most; rgb {rgb} {codec}"
        ),
    ]


def warnings(index: dict, settings: ShardSettings) -> list[str]:
    """What a reader must not miss: depths left out, and a split that flatters."""
    found, measured = [], index["measured"]
    for side, flag, bound, wanted in (
        ("farther", "far", settings.far, f"{-(-measured['measured_max_mm'] // 1):.0f}"),
        ("nearer", "near", settings.near, "0"),
    ):
        if count := measured[side]:
            share, edge = (
                100 * count / measured["measured"],
                "measured_max_mm" if side == "farther" else "measured_min_mm",
            )
            kept = (
                f"--{flag} {wanted} keeps them"
                if flag == "far" or settings.near
                else "they round to 0"
            )
            masked = (
                f"{count:,} measured pixels ({share:.2f} %) are {side} than {bound:g} mm and were"
                " masked"
            )
            found.append(f"WARNING   {masked}, to {measured[edge]:.1f} mm: {kept}")
    twins = format_warning(index["near_duplicates"]) if "near_duplicates" in index else None
    return (
        found
        + ([f"WARNING   {twins}"] if twins else [])
        + ([index["note"]] if index["note"] else [])
    )


def check(settings: ShardSettings) -> int:
    with tqdm(desc="verifying", unit=" samples", delay=1) as bar:
        problems = verify_dataset(
            settings.verify, count_workers(settings.workers, 1 << 30), bar.update
        )
    for problem in problems:
        print(problem)
    if problems:
        raise ValueError(
            f"{settings.verify}: {len(problems)} problem{'s' * (len(problems) > 1)} found"
        )
    index = read_index(settings.verify)
    count, size = index.num_samples, sum(s["bytes"] for s in index.shards)
    checked = "every size, sha256, CRC-32 and tar header, every sample decoded"
    print(
        f"{settings.verify}: all right: {len(index.shards)} shards, {count} samples,"
        f" {size / 1e6:.1f} MB ({checked})"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
