"""Write one shard: captures in, one tar and its commit record out.

Runs in a worker process, one whole shard at a time.

    write_shard(job)  ->  job.folder/train/shard-000000.tar, then job.folder/train/shard-000000.json

What is written depends on the job alone: not on the clock, the worker, or other shards, so any
number of workers gives the same bytes. Both files get their names only when they are whole and on
the disk. `build.py` plans the jobs.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from depthdist.captures.edge_agreement import EdgeScores
from depthdist.core.errors import BadFile
from depthdist.core.files import write_atomic
from depthdist.shards.encoding import EncodedSample, encode_sample
from depthdist.shards.format import Item, Job, as_json, crc32
from depthdist.shards.statistics import merge_stats

SYNC_BYTES = 32 << 20  # written before the disk is asked to store them

Report = Callable[[int, int, int], None]  # samples made, raw bytes read, rejects


class _Tar:
    """A USTAR file that is hashed while it is written, and knows where each member's bytes lie."""

    def __init__(self, path: Path):
        self.file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.crc = 0
        self.disk = ThreadPoolExecutor(1)
        self.synced = 0
        self.syncing: Future[None] | None = None

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self.sha256.update(data)
        self.crc = crc32(data, self.crc)
        self.bytes += len(data)
        self.file.write(data)

    def add(self, key: str, members: dict[str, bytes]) -> list[Any]:
        """Append a sample and return where it is.

        returns  [start, length, CRC-32 of all its bytes, [[offset, size, CRC-32] of each member]]
        """
        start = self.bytes
        places = []
        self.crc = 0
        for name, content in members.items():
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size, info.mode = len(content), 0o444  # mtime, uid and gid are 0
            self.write(info.tobuf(tarfile.USTAR_FORMAT))
            places.append([self.bytes, len(content), crc32(content)])
            self.write(content)
            self.write(bytes(-len(content) % tarfile.BLOCKSIZE))
        if self.bytes - self.synced > SYNC_BYTES:  # the disk works while pairs are encoded
            self._wait()
            self.synced = self.bytes
            self.syncing = self.disk.submit(os.fsync, self.file.fileno())
        return [start, self.bytes - start, self.crc, places]

    def _wait(self) -> None:
        if self.syncing:
            self.syncing.result()  # raises the disk's error

    def finish(self) -> None:
        """Write the end, and wait until all is on the disk."""
        self.write(bytes(2 * tarfile.BLOCKSIZE))
        self.write(bytes(-self.bytes % tarfile.RECORDSIZE))
        self.file.flush()
        self._wait()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.disk.shutdown()
        self.file.close()


def write_shard(job: Job, report: Report = lambda samples, num_bytes, rejects: None) -> None:
    """Write the job's tar, then its commit record.

    report  is called after each pair

    A bad pair is left out and listed in the record. raises ValueError, one line, when the shard
    cannot be written
    """
    path = job.folder / job.name
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tar = _Tar(unfinished)
        try:
            record = _write_samples(job, tar, report)
            tar.finish()
        finally:
            tar.close()
        os.replace(unfinished, path)
        record |= {
            "hash": job.hash,
            "name": job.name,
            "bytes": tar.bytes,
            "sha256": tar.sha256.hexdigest(),
        }
        write_atomic(path.with_suffix(".json"), as_json(record))
    except OSError as err:
        raise ValueError(
            f"{err.filename or path}: the shard cannot be written: {err.strerror}; finished shards"
            " are kept, run again"
        ) from err
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            unfinished.unlink(missing_ok=True)


def _write_samples(job: Job, tar: _Tar, report: Report) -> dict[str, Any]:
    """Write a sample for each usable pair, and return the record's entries about them."""
    samples: list[list[Any]] = []
    rejects: list[dict[str, str]] = []
    stats: list[dict[str, Any]] = []
    fingerprints: list[str] = []
    warnings: list[dict[str, str]] = []
    edges: list[EdgeScores | None] = []
    for item in job.items:
        try:
            sample = _encode(item, job)
        except BadFile as err:
            path = err.path.relative_to(job.root).as_posix()
            rejects.append({"path": path, "reason": err.reason})
            report(0, 0, 1)
            continue
        place = tar.add(item.key, sample.members)
        samples.append([item.key, item.pair.stem, item.session, *place])
        stats.append(sample.stats)
        fingerprints.append(base64.b64encode(sample.fingerprint.tobytes()).decode())
        path = item.pair.xyz.relative_to(job.root).as_posix()
        warnings += [{"path": path, "reason": text} for text in sample.warnings]
        edges.append(sample.edges)
        report(1, sample.stats["raw_bytes"], 0)
    return {
        "count": len(samples),
        "samples": samples,
        "fingerprints": fingerprints,
        "rejects": rejects,
        "warnings": warnings,
        "edges": edges,
        "stats": merge_stats(stats),
    }


def _encode(item: Item, job: Job) -> EncodedSample:
    """Return the capture as a sample; raise ValueError that names the pair."""
    try:
        return encode_sample(item, job.root, job.encoding, job.options)
    except BadFile:
        raise
    except Exception as err:  # a bug, or no memory: one line that says at which pair
        raise ValueError(
            f"{item.pair.xyz}: cannot be made a sample ({type(err).__name__}: {err})"
        ) from err
