"""Reports to read in a browser, each one file that needs nothing else.

    # curves, table with intervals, ranges, grooves, images, cuts
    depthdist report run runs/mine [runs/other ...]
    # what is in a folder of captures, or in shards: what was rejected, why, and what looks wrong
    depthdist report data RAW

Written to RUN/report.html, and beside the data to DATA-report.html, or to --out FILE.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from depthdist.core.command_line import parse
from depthdist.core.imports import importing
from depthdist.core.settings import positional, range_problems
from depthdist.core.words import run_word
from depthdist.shards.settings import FileSettings


@dataclass(frozen=True)
class RunReport:
    """Report of runs."""

    runs: list[Path] = positional(())
    "Folders of runs that were evaluated; the first decides which images are shown."
    out: Path | None = None
    "The file to write. Default: report.html in the first run's folder."

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        return [] if self.runs else ["RUNS is missing: folders of runs"]


@dataclass(frozen=True)
class DataReport(FileSettings):
    """Report of data."""

    data: Path | None = positional(None)
    "A folder of captures, or of shards that depthdist shard wrote."
    out: Path | None = None
    "The file to write. Default: beside the folder, named after it: DATA-report.html."
    images: int = 24
    "Captures that are shown, evenly spread."
    workers: int = 0
    "Processes that read captures. 0: one a core."

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        found = [] if self.data else ["DATA is missing: a folder of captures or of shards"]
        found += range_problems(
            self,
            ("images", self.images >= 0, ">= 0"),
            ("workers", self.workers >= 0, ">= 0"),
        )
        return found + FileSettings.problems(self)


def main(argv: list[str] | None = None) -> None:
    """Write the report that the command line asks for."""
    reports = {"run": write_run_report, "data": write_data_report}
    run_word(reports, sys.argv[1:] if argv is None else argv, "report", (__doc__ or "").strip())


def write_run_report(argv: list[str]) -> None:
    """Write the report of one or more runs."""
    (settings,) = parse(
        "Write the report of one run, or of several side by side.", RunReport, argv=argv, word="run"
    )
    out = settings.out or settings.runs[0] / "report.html"
    check_writable(out, source=settings.runs[0])

    with importing():
        from depthdist.reports.run_report import build_run_report

    write_page(out, build_run_report(settings.runs))


def write_data_report(argv: list[str]) -> None:
    """Write the report of a folder of captures or shards."""
    (settings,) = parse(
        "Write the report of a folder of captures or shards.", DataReport, argv=argv, word="data"
    )
    assert settings.data is not None, "problems() has said so"
    place = settings.data.resolve()
    out = settings.out or place.with_name(f"{place.name}-report.html")
    check_writable(out, source=settings.data)

    with importing():
        from depthdist.reports.data_report import build_data_report

    page = build_data_report(
        settings.data, settings.images, settings.workers, settings.read_options
    )
    write_page(out, page)


def check_writable(out: Path, source: Path) -> None:
    """Raise ValueError before the work if `source` is no folder or `out` cannot be written."""
    if not source.is_dir():
        found = "is a file" if source.exists() else "no such folder"
        raise ValueError(f"{source}: {found}; expected a folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        existed = out.exists()
        with open(out, "a", encoding="utf-8"):
            pass
        if not existed:
            out.unlink()
    except OSError as err:
        raise ValueError(
            f"{out}: cannot be written ({err.strerror}); --out takes another file"
        ) from err


def write_page(out: Path, content: str) -> None:
    """Write a page and print where it is."""
    out.write_text(content, "utf-8", errors="replace")
    print(f"written to {out} ({len(content) / 2**20:.1f} MiB): open it in a browser")
