"""Compare data loaders: webdataset, LitData, MosaicML Streaming, Energon, DALI, ours, raw files.

Captures and shards are made, and for each other loader an environment with its package (torch and
the rest are this project's) and a copy of the samples in its own format, all kept under --work.
Then each loader runs in a process of its own, in turns A B C A B C, a warm-up epoch and a timed one
each. The delivered values are added up and compared: every sample exactly once. Decoding one JPEG
alone, timed in each repeat, shows how fast the machine was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from depthdist.core.settings import Size, as_dict, did_you_mean
from depthdist.core.text_table import format_table
from tools.benchmarks.bars import format_bar
from tools.benchmarks.captures import IMAGE_SIZE, CaptureSettings, check_lowest, make_raw
from tools.benchmarks.loader_rows import Measurement, Row, cpu_ms, mark_wrong, measure, rate
from tools.benchmarks.machine import describe_machine, format_load, print_machine
from tools.benchmarks.peers import PEERS, convert_samples, make_environment
from tools.benchmarks.processes import run_tool

NUM_SHARDS = 8  # of a dataset; process workers share whole ones
PLAIN = "webdataset_as_written"
STRONG = "webdataset_simplejpeg"
OURS = "depthdist"
RAW_IMAGES = "depthdist_raw_pictures"
LABELS = {
    PLAIN: "webdataset + DataLoader",
    STRONG: "the same, simplejpeg",
    **{name: peer.package.replace("==", " ") for name, peer in PEERS.items()},
    OURS: "depthdist",
    RAW_IMAGES: "depthdist, --rgb raw",
}


@dataclass(frozen=True)
class DataBenchSettings(CaptureSettings):
    """Loaders."""

    work: Path = Path("data/bench")
    """Folder for captures, shards, other loaders' copies and environments; about 6 GB, made
    once."""
    samples: int = 320
    "Samples in an epoch; the captures are linked under other names until there are so many."
    repeats: int = 5
    "Measurements of each loader; the raw files get half as many."
    batch: int = 4
    "Samples in a batch; the raw files have 1, and so has our loader beside them."
    workers: int = 2
    "Worker processes, or threads where a loader has those."
    peers: tuple[str, ...] = tuple(PEERS)
    "Which other loaders, separated by commas; none: webdataset alone."
    truth: Literal["train", "camera"] = "train"
    """Depth in the loaders' table: at the network's size (train) or the camera's (camera). The
    raw files have the camera's."""
    raw_samples: int = 32
    "Samples of the raw files, which are slow; 0 leaves that table out."
    size: Size = IMAGE_SIZE
    "Height and width of the images that are delivered."
    json: Path | None = None
    "Also write every measurement to this file."

    @property
    def chosen_peers(self) -> list[str]:
        """The other loaders beside webdataset."""
        return [] if self.peers == ("none",) else list(self.peers)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = [
            f"--peers has {name!r}: expected {', '.join(PEERS)}, or"
            f" none{did_you_mean(name, list(PEERS))}"
            for name in self.chosen_peers
            if name not in PEERS
        ]
        lowest = {"samples": NUM_SHARDS, "repeats": 1, "batch": 1, "workers": 1, "raw_samples": 0}
        found += check_lowest(self, {**lowest, "captures": 1})
        if self.raw_samples > self.samples:
            found.append(
                f"--raw-samples is {self.raw_samples}: expected at most --samples {self.samples}"
            )
        return found


def compare_loaders(settings: DataBenchSettings) -> int:
    """Print the loaders' table, the raw files' table, and which bars this run met."""
    settings = replace(settings, work=settings.work.resolve())
    machine = describe_machine()
    print_machine(machine)
    raw = make_raw(settings, settings.samples)
    shards = make_shards(settings, raw, settings.truth)
    loaders = loader_rows(settings, shards, make_shards(settings, raw, settings.truth, "raw"))
    decode_ms = measure(loaders, settings.repeats, look=True)
    raw_files = []
    if settings.raw_samples:
        raw_files = raw_file_rows(settings, raw, make_shards(settings, raw, "camera"))
    measure(raw_files, -(-settings.repeats // 2), look=False)
    mark_wrong(loaders + raw_files, loaders[0], lossless=RAW_IMAGES)
    bars = loader_bars({row.job["loader"]: row for row in loaders}, raw_files)
    print_tables(settings, loaders, raw_files, decode_ms)
    print(f"\n{format_load()} at the end, ours included")
    print("\n".join(map(format_bar, bars)))
    if settings.json:
        content = {
            "machine": machine,
            "settings": as_dict(settings),
            "jpeg_decode_ms": decode_ms,
            "bars": bars,
            "loaders": [asdict(row) for row in loaders],
            "raw": [asdict(row) for row in raw_files],
        }
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    return 0


# --------------------------------------------------------------------------------------------- data


def make_shards(settings: DataBenchSettings, raw: Path, truth: str, rgb: str = "jpeg") -> Path:
    """Return the captures as a dataset of NUM_SHARDS tars, all in train."""
    out = settings.work / f"shards-{truth}-{rgb}-{settings.size}-of-{raw.name}"
    height, width = settings.size if truth == "train" else settings.capture_size
    depth_bytes = 2 * height * width
    mask_bytes = height * -(-width // 8)
    pixel_bytes = 0.33 if rgb == "jpeg" else 3
    rgb_bytes = pixel_bytes * settings.size.height * settings.size.width
    sample_bytes = depth_bytes + mask_bytes + rgb_bytes + 4096  # as tools/shard.py plans
    shard_mb = (-(-settings.samples // NUM_SHARDS) + 0.5) * sample_bytes / 2**20
    format_words = ["--size", settings.size, "--depth-size", truth, "--rgb", rgb]
    run_tool("shard.py", raw, out, "--split", "none", *format_words, "--shard-mb", shard_mb)
    return out


def job_of(
    settings: DataBenchSettings, loader: str, shards: Path, data: Path, **others: Any
) -> dict[str, Any]:
    """Return the fields of loaders.Job."""
    return {
        "loader": loader,
        "shards": str(shards),
        "data": str(data),
        "depth_size": json.loads((shards / "index.json").read_text(encoding="utf-8"))["depth"][
            "size"
        ],
        "batch": settings.batch,
        "workers": settings.workers,
        "samples": settings.samples,
        "size": settings.size,
        **others,
    }


def loader_rows(settings: DataBenchSettings, shards: Path, lossless: Path) -> list[Row]:
    """Return a row for each loader; ours also on `lossless`, shards without JPEG.

    Another loader's environment and copy of the samples are made, or its row says why not.
    """
    python = Path(sys.executable)
    rows = [
        Row(LABELS[name], python, job_of(settings, name, shards, shards), "mask packed")
        for name in (PLAIN, STRONG)
    ]
    for name in settings.chosen_peers:
        folder = settings.work / "venvs" / name
        job = job_of(settings, name, shards, settings.work / f"{name}-of-{shards.name}")
        row = Row(LABELS[name], folder / "bin" / "python", job, PEERS[name].note)
        try:
            convert_samples(make_environment(folder, PEERS[name]), job)
        except ValueError as err:
            row.skipped = str(err)
        rows.append(row)
    for name, dataset in ((OURS, shards), (RAW_IMAGES, lossless)):
        note = "mask packed, shuffled, every checksum verified"
        rows.append(Row(LABELS[name], python, job_of(settings, name, dataset, dataset), note))
    return rows


def raw_file_rows(settings: DataBenchSettings, raw: Path, shards: Path) -> list[Row]:
    """Return rows of the raw files without and with workers, and last ours.

    Half an epoch of raw files warms up: there are few different files.
    """
    python = Path(sys.executable)
    rows = []
    for workers in (0, settings.workers):
        few = {"batch": 1, "samples": settings.raw_samples, "workers": workers}
        job = job_of(settings, "raw_path", shards, raw, **few)
        rows.append(Row(f"raw files + DataLoader, {workers} workers", python, job))
    rows.append(Row(LABELS[OURS], python, job_of(settings, OURS, shards, shards, batch=1)))
    return rows


# ------------------------------------------------------------------------------------------ results


def print_tables(
    settings: DataBenchSettings, loaders: list[Row], raw_files: list[Row], decode_ms: float
) -> None:
    """Print the loaders' table, and that of the raw files if they were measured."""
    depth_size = settings.size if settings.truth == "train" else settings.capture_size
    print(
        f"\n{settings.samples} samples, rgb {settings.size}, depth {depth_size}, batch"
        f" {settings.batch}, {settings.workers} workers or threads, median of {settings.repeats}"
    )
    decoding = ["JPEG decoding alone, one thread", "", f"{decode_ms:.1f}"]
    print(speed_table(loaders, loaders[0], "x plain", decoding))
    if raw_files:
        print(
            f"\nraw files of the document: {settings.capture_size} PNG and point map against shards"
            " with truth of that size, batch 1"
        )
        print(speed_table(raw_files, fastest_raw(raw_files), "x raw"))


def speed_table(rows: list[Row], reference: Row, against: str, *last: list[str]) -> str:
    """Return the rows' table, with their speed against `reference` in a column of that name."""
    header = ["", "samples/s", "CPU-ms", "first ms", against, "by CPU"]
    lines = []
    for row in rows:
        if row.skipped:
            lines.append([row.label, *[""] * (len(header) - 1), f"skipped: {row.skipped[:120]}"])
            continue
        lines.append(
            [
                row.label,
                f"{row.median(rate):.1f}",
                f"{row.median(cpu_ms):.1f}",
                f"{row.median(lambda run: 1000 * run['first_batch_s']):.0f}",
                f"{row.speedup(reference):.2f}",
                f"{row.speedup(reference, 'cpu_seconds'):.2f}",
                row.note,
            ]
        )
    return format_table(header, [*lines, *last])


def fastest_raw(raw_files: list[Row]) -> Row:
    """Return the faster of the raw files' rows."""
    measured = [row for row in raw_files[:-1] if row.runs]
    return max(measured, key=lambda row: row.median(rate), default=raw_files[0])


def loader_bars(rows: dict[str, Row], raw_files: list[Row]) -> list[dict[str, Any]]:
    """Return the bars that a release must reach, as `format_bar` takes them."""
    ours = rows[OURS]
    peers = [rows[name] for name in PEERS if name in rows and not rows[name].skipped]
    nearest = min(peers, key=ours.speedup, default=None)
    over_plain = _speedup(ours, rows[PLAIN])
    over_strong = _speedup(ours, rows[STRONG])
    with_simplejpeg = "" if over_strong is None else f"{over_strong:.2f} x with simplejpeg"
    over_raw = _speedup(raw_files[-1], fastest_raw(raw_files)) if raw_files else None
    return [
        _at_least(2.5, "x plain webdataset + DataLoader", over_plain, ours, with_simplejpeg),
        _at_most(4.5, "CPU-ms a sample", cpu_ms, ours),
        _at_least(
            1,
            "x each peer that installed",
            _speedup(ours, nearest),
            ours,
            nearest.label if nearest else "",
        ),
        _at_least(15, "x the raw path", over_raw, raw_files[-1] if raw_files else ours),
        _at_most(0.1, "s to the first batch after a start", lambda r: r["first_batch_s"], ours),
        _at_most(0.1, "s to the first batch after a resume", lambda r: r["resume_s"], ours),
    ]


def _speedup(row: Row, other: Row | None) -> float | None:
    return row.speedup(other) if other and row.measured and other.measured else None


def _at_least(
    limit: float, what: str, found: float | None, row: Row, remark: str = ""
) -> dict[str, Any]:
    met = found is not None and found >= limit and "WRONG" not in row.note
    remark = "" if found is None else remark
    return {"bar": f">= {limit:g} {what}", "found": found, "met": met, "remark": remark}


def _at_most(
    limit: float, what: str, value: Callable[[Measurement], float], row: Row
) -> dict[str, Any]:
    found = row.median(value) if row.measured else None
    met = found is not None and found <= limit and "WRONG" not in row.note
    return {"bar": f"<= {limit:g} {what}", "found": found, "met": met, "remark": ""}
