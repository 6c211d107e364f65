"""One shard: captures in, one tar and its commit record out.

Runs in a worker process, one whole shard at a time.

    write_shard(job)  ->  job.folder/train/shard-000000.tar, then job.folder/train/shard-000000.json

What is written depends on the job alone: not on the clock, the worker, or other shards, so any
number of workers gives the same bytes. Both files get their names only when they are whole and on
the disk. `build.py` plans the jobs.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from depthdist.core.errors import BadFile
from depthdist.core.files import write_atomic
from depthdist.shards.encoding import (
    encode_sample,
)
from depthdist.shards.format import Job, as_json, crc32
from depthdist.shards.statistics import merge_stats

SYNC_BYTES = 32 << 20  # after so many the disk is told to write


# --------------------------------------------------------------------------------------- one sample


# ---------------------------------------------------------------------------------------- one shard


class _Tar:
    """A USTAR file that is hashed while it is written, and knows where each member's bytes lie."""

    def __init__(self, path: Path):
        self.file, self.sha256, self.bytes, self.crc = open(path, "wb"), hashlib.sha256(), 0, 0
        self.disk, self.synced, self.syncing = ThreadPoolExecutor(1), 0, None

    def write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.crc = crc32(data, self.crc)
        self.bytes += len(data)
        self.file.write(data)

    def add(self, key: str, members: dict[str, bytes]) -> list[Any]:
        """Write a sample: [start, length, CRC-32 of all its bytes, [[offset, size, CRC-32] of each
        member]].
        """
        start, places, self.crc = self.bytes, [], 0
        for name, content in members.items():
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size, info.mode = len(content), 0o444  # mtime, uid and gid are 0
            self.write(info.tobuf(tarfile.USTAR_FORMAT))
            places.append([self.bytes, len(content), crc32(content)])
            self.write(content)
            self.write(bytes(-len(content) % tarfile.BLOCKSIZE))
        if self.bytes - self.synced > SYNC_BYTES:  # the disk works while pairs are encoded
            self._wait()
            self.synced, self.syncing = self.bytes, self.disk.submit(os.fsync, self.file.fileno())
        return [start, self.bytes - start, self.crc, places]

    def _wait(self) -> None:
        if self.syncing:
            self.syncing.result()  # raises what the disk said

    def finish(self) -> None:
        """Write the end, and wait until all is on the disk."""
        self.write(bytes(2 * tarfile.BLOCKSIZE))
        self.write(bytes(-self.bytes % tarfile.RECORDSIZE))
        self.file.flush()
        self._wait()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.disk.shutdown()
        self.file.close()


def write_shard(
    job: Job, report: Callable[[int, int, int], None] = lambda samples, num_bytes, rejects: None
) -> None:
    """Write the job's tar, then its commit record.

    `report` hears of each pair: samples made, raw bytes read, rejects.

    A bad pair is left out and listed in the record. raises ValueError, one line, when the shard
    cannot be written
    """
    path = job.folder / job.name
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    samples, rejects, stats, prints = [], [], [], []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tar = _Tar(unfinished)
        try:
            for item in job.items:
                try:
                    members, share, seen = encode_sample(item, job.root, job.encoding)
                except BadFile as err:
                    rejects.append(
                        {"path": err.path.relative_to(job.root).as_posix(), "reason": err.reason}
                    )
                    report(0, 0, 1)
                    continue
                except Exception as err:  # ours, or no memory: one line that says at which pair
                    raise ValueError(
                        f"{item.pair.xyz}: cannot be made a sample ({type(err).__name__}: {err})"
                    ) from err
                samples.append(
                    [item.key, item.pair.stem, item.session, *tar.add(item.key, members)]
                )
                stats.append(share)
                prints.append(base64.b64encode(seen.tobytes()).decode())
                report(1, share["raw_bytes"], 0)
            tar.finish()
        finally:
            tar.close()
        os.replace(unfinished, path)
        facts = {
            "count": len(samples),
            "bytes": tar.bytes,
            "sha256": tar.sha256.hexdigest(),
            "samples": samples,
            "fingerprints": prints,
            "rejects": rejects,
        }
        write_atomic(
            path.with_suffix(".json"),
            as_json({"hash": job.hash, "name": job.name, **facts, "stats": merge_stats(stats)}),
        )
    except OSError as err:
        raise ValueError(
            f"{err.filename or path}: the shard cannot be written: {err.strerror}; finished shards"
            " are kept, run again"
        ) from err
    finally:
        try:
            unfinished.unlink(missing_ok=True)
        except OSError:
            pass  # the first error is the one to tell
