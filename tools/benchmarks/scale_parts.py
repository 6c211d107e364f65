"""The parts that `tools/bench.py scale` measures, each in a process of its own.

python -m tools.benchmarks.scale_parts start FOLDER 1000000 64
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from tools.benchmarks.plan import peak_mib
from tools.benchmarks.scale_records import merge, write_records

NAMES = 45  # of the values of an image in an evaluation, depth ranges included
LOCAL = 8  # ranks of a machine


class Counts:
    """Files that this process opened, and shards whose size it asked the disk for."""

    def __init__(self) -> None:
        self.opens = 0
        self.stats = 0
        sys.addaudithook(self._note)
        stat = os.stat

        def counted(*given: Any, **how: Any) -> os.stat_result:
            self.stats += str(given[0]).endswith(".tar")
            return stat(*given, **how)

        os.stat = counted

    def _note(self, event: str, given: Any) -> None:
        self.opens += event == "open"


@contextmanager
def part(found: dict[str, Any], name: str, counts: Counts, before: float) -> Iterator[None]:
    """Note how long a part takes, what it opens, and the peak so far."""
    opens, stats = counts.opens, counts.stats
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    opens, stats = counts.opens - opens, counts.stats - stats  # before the peak is read
    found[name] = {"s": seconds, "mib": peak_mib() - before, "opens": opens, "stats": stats}


def be_rank(rank: int, ranks: int) -> None:
    """Set what a launcher tells a rank; 8 are on a machine."""
    local = min(LOCAL, ranks)
    told = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank % local}
    for name, value in {**told, "LOCAL_WORLD_SIZE": local}.items():
        os.environ[name] = str(value)


def made_up_scores(num_images: int, seed: int) -> Any:
    """Return what a rank sends of so many scored images."""
    from depthdist.evaluation.exact_sums import MetricSums
    from depthdist.evaluation.scoring import RankScores

    draw = np.random.default_rng(seed)
    sums = MetricSums()
    for _ in range(num_images):
        values = draw.exponential(30.0, NAMES).tolist()
        sums.add({f"metric_mm@{number}": value for number, value in enumerate(values)})
    return RankScores({"none": sums}, num_images)


def start(folder: Path, count: int, ranks: int) -> dict[str, Any]:
    """Do what rank 0 does until training begins, but for the network and the model."""
    import torch  # noqa: F401  counts as an import

    from depthdist.data.dataset import DataSettings
    from depthdist.evaluation.exact_sums import MetricSums
    from depthdist.runs.seen_images import SeenImages, hashes_by_ranks, write_seen
    from depthdist.shards.image_hashes import describe_shared

    be_rank(0, ranks)
    counts, before = Counts(), peak_mib()
    found: dict[str, Any] = {}
    settings = DataSettings(data=(str(folder / "data"),))
    with part(found, "settings and opening", counts, before):
        problems = settings.problems()
        assert not problems, problems
        dataset = settings.opened
    with part(found, "sizes of shards", counts, before):
        dataset.check_shards()

    def gather(own: Any) -> list[Any]:
        content = pickle.dumps(own)  # of ranks that know as much
        return [own, *(pickle.loads(content) for _ in range(1, ranks))]

    with part(found, "hashes of images", counts, before):
        hashes = {
            split: hashes_by_ranks(dataset, split, 0, ranks, gather) for split in dataset.splits
        }
    with part(found, "seen.npy", counts, before):
        write_seen(folder, SeenImages(hashes["train"], hashes["val"]), Path("tiny"))
        describe_shared(hashes, lambda split, i: dataset.find(split, i)[1].stem)
    with part(found, "order", counts, before):
        dataset.order(0).epoch(0)

    own = made_up_scores(-(-(count // 5) // ranks), 0)
    found["bytes of scores"] = len(pickle.dumps(own))
    with part(found, "scores", counts, before):
        MetricSums.means([scores.sums["none"] for scores in gather(own)])

    first = counts.stats
    for rank in range(min(LOCAL, ranks)):
        be_rank(rank, ranks)
        settings = DataSettings(data=(str(folder / "data"),))
        settings.problems()
        settings.opened.check_shards()
    found["stats of a machine"] = counts.stats - first
    return found


def meet(folder: Path, count: int, ranks: int) -> dict[str, Any]:
    """Let `ranks` processes meet and exchange; return rank 0's times, and the most memory of one.

    They are forked once all is imported: 64 interpreters that import torch on two cores would
    measure the imports.
    """
    import torch.distributed  # noqa: F401

    import depthdist.data.dataset
    import depthdist.distributed.cpu_group
    import depthdist.evaluation.scoring
    import depthdist.runs.seen_images  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    forked = [_fork_rank(folder, rank, ranks) for rank in range(ranks)]
    answers = [json.loads(answer.read() or "null") for _, answer in forked]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in forked]
    if any(codes):
        raise ValueError(f"{sum(map(bool, codes))} of {ranks} processes ended with an error")
    return {**answers[0], "mib": max(answer["mib"] for answer in answers)}


def _fork_rank(folder: Path, rank: int, ranks: int) -> tuple[int, IO[bytes]]:
    """Start a rank; return its process id, and where it writes what it measured."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, open(read, "rb")
    code = 1
    try:
        be_rank(rank, ranks)
        os.write(write, json.dumps(one_rank(folder, ranks)).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # what the parent has open is not this process's to close


def one_rank(folder: Path, ranks: int) -> dict[str, Any]:
    """Meet the others, and exchange what an evaluation and the start of a run do."""
    from depthdist.data.dataset import DataSettings
    from depthdist.distributed.cpu_group import CpuGroup
    from depthdist.runs.seen_images import hashes_by_ranks

    began = time.perf_counter()
    group = CpuGroup()
    group.gather(0)
    met = time.perf_counter()
    own = made_up_scores(100, group.rank)
    group.gather(0)
    ready = time.perf_counter()
    group.gather(own)
    scored = time.perf_counter()
    dataset = DataSettings(data=(str(folder / "data"),)).opened
    hashes_by_ranks(dataset, "val", group.rank, group.size, group.gather)
    hashed = time.perf_counter()
    group.gather(0)
    group.leave()
    return {
        "meet_s": met - began,
        "scores_s": scored - ready,
        "hashes_s": hashed - scored,
        "mib": peak_mib(),
    }


def shard(folder: Path, count: int, ranks: int) -> dict[str, Any]:
    """List, look at headers and plan, of the files of so many small captures."""
    from depthdist.captures.layouts import search_folder
    from depthdist.shards.headers import look_at
    from depthdist.shards.plan import make_plan
    from depthdist.shards.settings import ShardSettings

    raw, few = folder / "raw", folder / "few"
    write_files(raw, count)
    write_files(few, 10)
    make_plan(ShardSettings(raw=str(few), out=str(folder / "out")))  # loads what it needs
    counts, before = Counts(), peak_mib()
    start = time.perf_counter()
    found = search_folder(raw)
    listed = time.perf_counter()
    settings = ShardSettings(raw=str(raw), out=str(folder / "out"))
    opens = counts.opens
    headers = look_at(found.pairs, settings.read_options)
    looked = time.perf_counter()
    opens = counts.opens - opens
    make_plan(settings, found=found, look=lambda pairs, options: headers)
    planned = time.perf_counter()
    return {
        "listing_s": listed - start,
        "headers_s": looked - listed,
        "rest_s": planned - looked,
        "opens": opens / count,
        "mib": peak_mib() - before,
    }


def write_files(raw: Path, count: int) -> None:
    """Write images and point maps of a few pixels, named as the camera names them."""
    import io

    from PIL import Image

    image, points = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(image, "png")
    np.save(points, np.ones((30, 40, 3), np.float32))
    for name in ("images", "depth"):
        (raw / name).mkdir(parents=True)
    for number in range(count):
        day, second = divmod(number, 86400)
        clock = f"{second // 3600:02d}-{second // 60 % 60:02d}-{second % 60:02d}"
        stem = f"22-{day // 28 % 12 + 1:02d}-{day % 28 + 1:02d}-{clock}_Zivid_acquisition"
        (raw / f"images/{stem}_color.png").write_bytes(image.getvalue())
        (raw / f"depth/{stem}_rawDepth.npy").write_bytes(points.getvalue())


PARTS = {
    "start": start,
    "meet": meet,
    "shard": shard,
    "records": write_records,
    "merge": merge,
}

if __name__ == "__main__":
    which, where, how_many, of = sys.argv[1:]
    print(json.dumps(PARTS[which](Path(where), int(how_many), int(of))))
