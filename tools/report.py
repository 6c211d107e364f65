"""Reports to read in a browser, each one file that needs nothing else.

    # curves, table with intervals, ranges, grooves, images, cuts
    python tools/report.py run runs/mine [runs/other ...]
    # what is in a folder of captures, or in shards: what was rejected, why, and what looks wrong
    python tools/report.py data RAW

Written to RUN/report.html, and beside the data to DATA-report.html, or to --out FILE.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from depthdist.core.command import run_command
from depthdist.core.command_line import parse
from depthdist.core.settings import did_you_mean, positional


@dataclass(frozen=True)
class RunReport:
    """Report of runs"""

    runs: list[Path] = positional(())
    "Folders of runs that were evaluated; the first decides which images are shown."
    out: Path | None = None
    "The file to write. Default: report.html in the first run's folder."

    def problems(self) -> list[str]:
        return [] if self.runs else ["RUNS is missing: folders of runs"]


@dataclass(frozen=True)
class DataReport:
    """Report of data"""

    data: Path | None = positional(None)
    "A folder of captures, or of shards that tools/shard.py wrote."
    out: Path | None = None
    "The file to write. Default: beside the folder, named after it: DATA-report.html."
    images: int = 24
    "Captures that are shown, evenly spread."
    workers: int = 0
    "Processes that read captures. 0: one a core."

    def problems(self) -> list[str]:
        found = [] if self.data else ["DATA is missing: a folder of captures or of shards"]
        return found + [
            f"--{name} is {getattr(self, name)}: expected >= 0"
            for name in ("images", "workers")
            if getattr(self, name) < 0
        ]


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in ("run", "data"):
        if argv and argv[0] in ("-h", "--help"):
            print(__doc__.strip())
            return
        raise ValueError(
            f"{f'{argv[0]!r} has no report' if argv else 'what to report on is missing'}; expected"
            f" `run` or `data`{did_you_mean(argv[0], ['run', 'data']) if argv else ''}"
        )
    if argv[0] == "run":
        (settings,) = parse(
            "Write the report of one run, or of several side by side.", RunReport, argv=argv[1:]
        )
        from depthdist.reports.run_report import run_report

        out = writable(settings.out or settings.runs[0] / "report.html", settings.runs[0])
        content = run_report(list(settings.runs))
    else:
        (settings,) = parse(
            "Write the report of a folder of captures or shards.", DataReport, argv=argv[1:]
        )
        from depthdist.reports.data_report import data_report

        place = settings.data.resolve()
        out = writable(settings.out or place.with_name(f"{place.name}-report.html"), settings.data)
        content = data_report(settings.data, settings.images, settings.workers)
    out.write_text(content, "utf-8", errors="replace")
    print(f"written to {out} ({len(content) / 2**20:.1f} MiB): open it in a browser")


def writable(out: Path, source: Path) -> Path:
    """`out`, once it is known that it can be written: before the work, not after it."""
    if not source.is_dir():
        raise ValueError(
            f"{source}: {'is a file' if source.exists() else 'no such folder'}; expected a folder"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        there = out.exists()
        open(out, "a").close()
        if not there:
            out.unlink()
    except OSError as err:
        raise ValueError(
            f"{out}: cannot be written ({err.strerror}); --out takes another file"
        ) from err
    return out


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
