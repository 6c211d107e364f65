"""Data loaders side by side on the same samples: webdataset, LitData, MosaicML Streaming, Energon,
DALI, ours; and the raw path.

Captures and shards are made, an environment a peer with its package (torch and the rest are this
project's) and a copy of the samples in the peer's own format, all kept under --work. Then one
process a loader and repeat, A B C A B C, each with a warm-up epoch and a timed one. What was
delivered is added up and compared: every sample exactly once. One JPEG's decoding alone, timed in
each repeat, says how fast the machine was.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import simplejpeg

from depthdist.core.settings import Size, as_dict, did_you_mean
from tools.benchmarks.captures import CaptureSettings, make_raw, say

TOOLS = Path(__file__).resolve().parents[1]
SHARDS = 8  # a dataset; process workers share whole ones
LIMIT_S = 300  # a measurement that takes longer has failed


class Peer(NamedTuple):
    """A loader of others: what pip installs, the module that must import then, and what its numbers
    come with.

    With `needs` those are installed instead of all that the package asks for; `stubs` are files put
    beside it.
    """

    package: str
    module: str
    note: str
    needs: tuple[str, ...] = ()
    stubs: dict[str, str] = {}


# streaming.vision subclasses one and may call the other; a torchvision for another torch does not
# even import
TORCHVISION = {
    "torchvision/__init__.py": "",
    "torchvision/datasets.py": "class VisionDataset: ...\n",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "to_tensor = None\n",
}
PEERS = {
    # The first two ask for torchvision, and that for another torch; LitData works without it.
    "litdata": Peer(
        "litdata==0.2.76",
        "litdata",
        "mask packed",
        ("lightning-utilities", "boto3", "requests", "tifffile", "obstore"),
    ),
    "mosaicml": Peer(
        "mosaicml-streaming==0.13.0",
        "streaming",
        "mask packed; torchvision stubbed",
        ("Brotli", "python-snappy", "zstd", "xxhash<4", "catalogue"),
        TORCHVISION,
    ),
    "energon": Peer("megatron-energon==7.4.1", "megatron.energon", "mask packed"),
    "dali": Peer("nvidia-dali-cuda120==2.4.0", "nvidia.dali", "mask packed, CPU pipeline"),
}
PLAIN, STRONG, OURS, RAW_PICTURES = (
    "webdataset_as_written",
    "webdataset_simplejpeg",
    "depthdist",
    "depthdist_raw_pictures",
)
LABELS = {
    PLAIN: "webdataset + DataLoader",
    STRONG: "the same, simplejpeg",
    **{name: peer.package.replace("==", " ") for name, peer in PEERS.items()},
    OURS: "depthdist",
    RAW_PICTURES: "depthdist, --rgb raw",
}


@dataclass(frozen=True)
class DataBenchSettings(CaptureSettings):
    """Loaders"""

    work: Path = Path("data/bench")
    "Folder for captures, shards, peers' copies and environments; about 6 GB, made once."
    samples: int = 320
    "Samples an epoch; the captures are linked under other names until there are so many."
    repeats: int = 5
    "Measurements a loader; the raw path gets half as many."
    batch: int = 4
    "Samples a batch; the raw path has 1, and so have we beside it."
    workers: int = 2
    "Worker processes, or threads where a loader has those."
    peers: tuple[str, ...] = tuple(PEERS)
    "Which other loaders, with commas between; none: webdataset alone."
    truth: Literal["train", "camera"] = "train"
    """Depth in the loaders' table: at the network's size (train) or the camera's (camera). The
    raw path has the camera's."""
    raw_samples: int = 32
    "Samples of the raw path, which is slow; 0 leaves that table out."
    size: Size = Size(756, 1260)
    "Height and width of the pictures that are delivered."
    json: Path | None = None
    "Also write every measurement to this file."

    @property
    def chosen(self) -> list[str]:
        return [] if self.peers == ("none",) else list(self.peers)

    def problems(self) -> list[str]:
        found = [
            f"--peers has {name!r}: expected {', '.join(PEERS)}, or"
            f" none{did_you_mean(name, list(PEERS))}"
            for name in self.chosen
            if name not in PEERS
        ]
        for name, low in {
            "samples": SHARDS,
            "repeats": 1,
            "batch": 1,
            "workers": 1,
            "raw_samples": 0,
            "captures": 1,
        }.items():
            if getattr(self, name) < low:
                found.append(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}: expected {low} or more"
                )
        if self.raw_samples > self.samples:
            found.append(
                f"--raw-samples is {self.raw_samples}: expected at most --samples {self.samples}"
            )
        return found


@dataclass
class Row:
    """One loader of a table: how it is run, and what each repeat gave.

    `skipped` says why it has no numbers.
    """

    label: str
    python: Path
    job: dict[str, Any]
    note: str = ""
    skipped: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)

    def middle(self, value: Callable[[dict[str, Any]], float]) -> float:
        return median(map(value, self.runs))

    def times(self, other: Row, what: str = "seconds") -> float:
        """How many times as fast as `other`, repeat by repeat, the middle one.

        By the clock, or what="cpu_seconds".
        """
        return median(
            rate(mine, what) / rate(theirs, what) for mine, theirs in zip(self.runs, other.runs)
        )


def rate(run: dict[str, Any], what: str = "seconds") -> float:
    return run["samples"] / run[what]


def cpu_ms(run: dict[str, Any]) -> float:
    return 1000 / rate(run, "cpu_seconds")


# --------------------------------------------------------------------------------------------- data


def data(settings: DataBenchSettings) -> int:
    """The loaders' table, the raw path's table, and which bars this run met."""
    settings, facts = replace(settings, work=settings.work.resolve()), machine()
    print("\n".join(f"{name:<10}{value}" for name, value in facts.items()), flush=True)
    raw = make_raw(settings, settings.samples)
    loaders = loader_rows(
        settings,
        make_shards(settings, raw, settings.truth),
        make_shards(settings, raw, settings.truth, "raw"),
    )
    decode_ms = measure(loaders, settings.repeats, look=True)
    raws = (
        raw_rows(settings, raw, make_shards(settings, raw, "camera"))
        if settings.raw_samples
        else []
    )
    measure(raws, -(-settings.repeats // 2), look=False)
    judge(loaders + raws, loaders[0])
    bars = bars_of({row.job["loader"]: row for row in loaders}, raws)
    depth = settings.size if settings.truth == "train" else settings.capture_size
    shown = (
        f"{settings.samples} samples, rgb {settings.size}, depth {depth}, batch {settings.batch},"
        f" {settings.workers} workers or threads"
    )
    print(
        f"\n{shown}, middle of {settings.repeats}\n"
        + "\n".join(table(loaders, loaders[0], "x plain"))
    )
    print(f"{'JPEG decoding alone, one thread':<34}{'':>9}{decode_ms:>8.1f}")
    if raws:
        print(
            f"\nraw path of the document: {settings.capture_size} PNG and point map against shards"
            " with truth of that size, batch 1"
        )
        print("\n".join(table(raws, baseline(raws), "x raw")))
    print(f"\n{load()} at the end, ours included")
    print("\n".join(map(verdict, bars)))
    if settings.json:
        content = {
            "machine": facts,
            "settings": as_dict(settings),
            "jpeg_decode_ms": decode_ms,
            "bars": bars,
        }
        content |= {
            name: [asdict(row) for row in rows]
            for name, rows in (("loaders", loaders), ("raw", raws))
        }
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps(content, indent=1, default=str))
    return 0


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    cpu = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    packages = ("torch", "numpy", "webdataset", "simplejpeg", "pillow", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores, {cpu}, {load()} at the start",
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def make_shards(settings: DataBenchSettings, raw: Path, truth: str, rgb: str = "jpeg") -> Path:
    """The captures as a dataset of SHARDS tars, all in train."""
    out = settings.work / f"shards-{truth}-{rgb}-{settings.size}-of-{raw.name}"
    height, width = settings.size if truth == "train" else settings.capture_size
    sample = (
        2 * height * width
        + height * -(-width // 8)
        + (0.33 if rgb == "jpeg" else 3) * settings.size.height * settings.size.width
        + 4096
    )  # bytes, as planned there
    shard_mb = (-(-settings.samples // SHARDS) + 0.5) * sample / 2**20
    tool(
        "shard.py",
        raw,
        out,
        "--split",
        "none",
        "--size",
        settings.size,
        "--depth-size",
        truth,
        "--rgb",
        rgb,
        "--shard-mb",
        shard_mb,
    )
    return out


def tool(name: str, *arguments: Any) -> None:
    say(f"tools/{name} {' '.join(map(str, arguments))}")
    run([sys.executable, TOOLS / name, *arguments])


def run(command: list[Any], limit_s: float = 3600) -> str:
    """What a command printed. raises ValueError with the line that says why it failed."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:  # some leave lock files there
        env = {**os.environ, **one_thread, "PYTHONPATH": str(TOOLS.parent), "TMPDIR": scratch}
        try:
            done = subprocess.run(
                list(map(str, command)), env=env, capture_output=True, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{Path(command[1]).name}: not done after {limit_s} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or [
            f"exit code {done.returncode}"
        ]
        raise ValueError(
            next((line for line in lines if line.startswith("ERROR:")), lines[-1]).strip()
        )
    return done.stdout


# -------------------------------------------------------------------------------------------- peers


def environment(folder: Path, peer: Peer) -> Path:
    """The Python of a peer's own environment, made when it is missing. raises ValueError: it does
    not install or import.

    This project's packages are seen from there by a .pth file and pinned by a constraint, so torch
    is never another.
    """
    python, ready = folder / "bin" / "python", folder / "ready"
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    made_of = json.dumps([peer, packages])
    if ready.exists() and ready.read_text() == made_of:
        return python
    say(f"installing {peer.package}")
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", folder])
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "project.pth").write_text("\n".join(packages))
    (folder / "pins").write_text(
        "\n".join(f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy"))
    )
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", folder / "pins"]
    run([*pip, *(["--no-deps"] if peer.needs else []), peer.package])
    if peer.needs:
        run([*pip, *peer.needs])
    for name, text in peer.stubs.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    run([python, "-c", f"import {peer.module}"])
    ready.write_text(made_of)
    return python


def converted(python: Path, job: dict[str, Any]) -> None:
    """Write the samples in the loader's own format, once."""
    folder = Path(job["data"])
    done, index = folder.with_suffix(".done"), Path(job["shards"], "index.json").read_text()
    if done.exists() and done.read_text() == index:
        return
    say(f"converting for {job['loader']}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run([python, TOOLS / "benchmarks/loaders.py", "convert", json.dumps(job)])
    done.write_text(index)


# --------------------------------------------------------------------------------------------- rows


def job_of(
    settings: DataBenchSettings, loader: str, shards: Path, data: Path, **others: Any
) -> dict[str, Any]:
    """The fields of loaders.Job."""
    depth_size = json.loads((shards / "index.json").read_text())["depth"]["size"]
    names = ("batch", "workers", "samples", "size")
    common = {"loader": loader, "shards": str(shards), "data": str(data), "depth_size": depth_size}
    return common | {name: getattr(settings, name) for name in names} | others


def loader_rows(settings: DataBenchSettings, shards: Path, uncoded: Path) -> list[Row]:
    """A row a loader, peers with their environment and their copy of the samples, or with the
    reason why not; ours also on raw pictures.
    """
    rows = [
        Row(
            LABELS[name],
            Path(sys.executable),
            job_of(settings, name, shards, shards),
            "mask packed",
        )
        for name in (PLAIN, STRONG)
    ]
    for name in settings.chosen:
        job = job_of(settings, name, shards, settings.work / f"{name}-of-{shards.name}")
        row = Row(
            LABELS[name], settings.work / "venvs" / name / "bin" / "python", job, PEERS[name].note
        )
        try:
            converted(environment(settings.work / "venvs" / name, PEERS[name]), job)
        except ValueError as err:
            row.skipped = str(err)
        rows.append(row)
    both = ((OURS, shards), (RAW_PICTURES, uncoded))
    return [
        *rows,
        *(
            Row(
                LABELS[name],
                Path(sys.executable),
                job_of(settings, name, at, at),
                "mask packed, shuffled, every byte proven",
            )
            for name, at in both
        ),
    ]


def raw_rows(settings: DataBenchSettings, raw: Path, shards: Path) -> list[Row]:
    """The raw path without and with workers, and ours.

    Half of the raw path's epoch warms up: the files are few.
    """
    python, slow = Path(sys.executable), {"batch": 1, "samples": settings.raw_samples}
    rows = [
        Row(
            f"raw files + DataLoader, {workers} workers",
            python,
            job_of(settings, "raw_path", shards, raw, workers=workers, **slow),
        )
        for workers in (0, settings.workers)
    ]
    return [*rows, Row(LABELS[OURS], python, job_of(settings, OURS, shards, shards, batch=1))]


def measure(rows: list[Row], repeats: int, look: bool) -> float:
    """Fill in the rows' runs, A B C A B C.

    The first repeat looks at all values. returns what one JPEG took alone meanwhile, ms
    """
    decode_ms = []
    for repeat in range(repeats):
        for row in [row for row in rows if not row.skipped]:
            try:
                command = [
                    row.python,
                    TOOLS / "benchmarks/loaders.py",
                    "measure",
                    json.dumps({**row.job, "look": look and not repeat}),
                ]
                row.runs.append(json.loads(run(command, LIMIT_S).splitlines()[-1]))
            except ValueError as err:
                row.skipped = str(err)
                continue
            say(
                f"{repeat + 1}/{repeats}  {row.label:<32}{rate(row.runs[-1]):>8.1f}"
                f" samples/s{cpu_ms(row.runs[-1]):>8.1f} CPU-ms a sample"
            )
        decode_ms.append(decoding_ms(rows[0].job["shards"]) if rows else 0.0)
    return median(decode_ms)


def decoding_ms(shards: str) -> float:
    """CPU time to decode one of the pictures, nothing else, into a new array."""
    with tarfile.open(sorted(Path(shards, "train").glob("*.tar"))[0]) as tar:
        pictures = [
            tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")
        ]
    start = time.process_time()
    for content in pictures:
        simplejpeg.decode_jpeg(content)
    return 1000 * (time.process_time() - start) / len(pictures)


# ------------------------------------------------------------------------------------ what came out


def judge(rows: list[Row], reference: Row) -> None:
    """Mark the rows that lost or repeated samples, or, where one looked, delivered other values
    than `reference`.
    """
    for row in [row for row in rows if row.runs]:
        lost, repeated = (max(run[what] for run in row.runs) for what in ("lost", "repeated"))
        wrong = [f"{lost} samples lost"] * bool(lost) + [f"{repeated} repeated"] * bool(repeated)
        if (
            not wrong
            and row.runs[0]["delivered"]
            and not alike(
                row.runs[0],
                reference.runs[0],
                0.01 if row.job.get("loader") == RAW_PICTURES else 0.001,
            )
        ):
            wrong = [f"other values than {reference.label} delivers"]
        if wrong:
            row.note = f"WRONG: {', '.join(wrong)}" + f"; {row.note}" * bool(row.note)


def alike(run: dict[str, Any], other: dict[str, Any], within: float = 0.001) -> bool:
    """The same depth and mask, and pictures alike but for another JPEG decoder's rounding (or for
    JPEG itself: `within` more).
    """
    mine, theirs = run["delivered"], other["delivered"]
    return (
        mine["depth"] == theirs["depth"]
        and mine["valid"] == theirs["valid"]
        and abs(mine["rgb"] / theirs["rgb"] - 1) < within
    )


def table(rows: list[Row], reference: Row, against: str) -> list[str]:
    lines = [f"{'':<34}{'samples/s':>9}{'CPU-ms':>8}{'first ms':>10}{against:>9}{'by CPU':>8}"]
    for row in rows:
        if row.skipped:
            lines.append(f"{row.label:<34}skipped: {row.skipped[:120]}")
            continue
        first = row.middle(lambda run: 1000 * run["first_batch_s"])
        line = f"{row.label:<34}{row.middle(rate):>9.1f}{row.middle(cpu_ms):>8.1f}{first:>10.0f}"
        lines.append(
            f"{line}{row.times(reference):>9.2f}{row.times(reference, 'cpu_seconds'):>8.2f} "
            f" {row.note}".rstrip()
        )
    return lines


def baseline(raws: list[Row]) -> Row:
    """The faster of the raw path's rows."""
    return max(
        (row for row in raws[:-1] if row.runs), key=lambda row: row.middle(rate), default=raws[0]
    )


def bars_of(rows: dict[str, Row], raws: list[Row]) -> list[dict[str, Any]]:
    """What a release must reach: each bar's text, what was found (None: not measured), whether that
    is enough, and a remark.
    """
    ours, plain, strong = rows[OURS], rows[PLAIN], rows[STRONG]
    peers = [rows[name] for name in PEERS if name in rows and not rows[name].skipped]
    nearest, slow = min(peers, key=ours.times, default=None), baseline(raws) if raws else None

    def bar(
        sign: str,
        limit: float,
        what: str,
        value: Callable[[], float],
        *needed: Row | None,
        remark: Callable[[], str] = str,
    ) -> dict[str, Any]:
        found = value() if all(row and row.runs and not row.skipped for row in needed) else None
        met = (
            found is not None
            and (found >= limit if sign == ">=" else found <= limit)
            and "WRONG" not in needed[0].note
        )
        return {
            "bar": f"{sign} {limit:g} {what}",
            "found": found,
            "met": met,
            "remark": "" if found is None else remark(),
        }

    return [
        bar(
            ">=",
            2.5,
            "x plain webdataset + DataLoader",
            lambda: ours.times(plain),
            ours,
            plain,
            strong,
            remark=lambda: f"{ours.times(strong):.2f} x with simplejpeg",
        ),
        bar("<=", 4.5, "CPU-ms a sample", lambda: ours.middle(cpu_ms), ours),
        bar(
            ">=",
            1,
            "x each peer that installed",
            lambda: ours.times(nearest),
            ours,
            nearest,
            remark=lambda: nearest.label,
        ),
        bar(
            ">=",
            15,
            "x the raw path",
            lambda: raws[-1].times(slow),
            raws[-1] if raws else None,
            slow,
        ),
        bar(
            "<=",
            0.1,
            "s to the first batch after a start",
            lambda: ours.middle(lambda run: run["first_batch_s"]),
            ours,
        ),
        bar(
            "<=",
            0.1,
            "s to the first batch after a resume",
            lambda: ours.middle(lambda run: run["resume_s"]),
            ours,
        ),
    ]


def verdict(bar: dict[str, Any]) -> str:
    word = "not measured" if bar["found"] is None else "met" if bar["met"] else "MISSED"
    found = "" if bar["found"] is None else f"{bar['found']:.3g}"
    return f"{word:<13}{bar['bar']:<40}{found:>7}  {bar['remark']}".rstrip()
