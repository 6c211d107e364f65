"""What may be wrong with a capture: one check for each kind of fault that a data report lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from depthdist.captures.edge_agreement import describe_dataset
from depthdist.captures.flying_pixels import FLYING_MM, FLYING_SHARE
from depthdist.captures.units import unit_remark
from depthdist.reports.capture_summary import CaptureSummary
from depthdist.reports.html_page import Block, Paragraph, Table

MAX_NAMED = 5  # captures named of those that have the same fault
PLATEAU_SHARE = 0.02  # share of pixels with the same depth from which on it may be a ghost plane
USUAL_GREY = 118.0

# Each gets a capture, and the median share of valid pixels over all captures.
Condition = Callable[[CaptureSummary, float], bool]
Severity = Callable[[CaptureSummary, float], float]
Description = Callable[[CaptureSummary, float], str]


class Check(NamedTuple):
    """One kind of fault: whether a capture has it, how badly, and the sentence that says so."""

    is_suspect: Condition
    severity: Severity
    describe: Description


CHECKS = (
    Check(
        lambda s, _: s.flying_share > 0.005,
        lambda s, _: s.flying_share,
        lambda s, _: (
            f"{s.flying_share:.2%} of the measured pixels stand alone in space (flying pixels)"
        ),
    ),
    Check(
        lambda s, _: s.plateau_share > PLATEAU_SHARE,
        lambda s, _: s.plateau_share,
        lambda s, _: (
            f"{s.plateau_share:.1%} of the measured pixels have the very same depth,"
            f" {s.plateau_mm:.2f} mm (a ghost plane, or filled holes)"
        ),
    ),
    Check(
        lambda s, _: s.bright_share > 0.05,
        lambda s, _: s.bright_share,
        lambda s, _: f"{s.bright_share:.1%} of the picture is saturated",
    ),
    Check(
        lambda s, _: s.dark_share > 0.5,
        lambda s, _: s.dark_share,
        lambda s, _: f"{s.dark_share:.1%} of the picture is black",
    ),
    Check(
        lambda s, _: s.mean_grey < 15 or s.mean_grey > 220,
        lambda s, _: abs(s.mean_grey - USUAL_GREY),
        lambda s, _: f"mean grey is {s.mean_grey:.0f} of 255",
    ),
    Check(
        lambda s, usual: s.valid_share < 0.5 * usual,
        lambda s, _: -s.valid_share,
        lambda s, usual: (
            f"only {s.valid_share:.1%} of the pixels are measured; usual is {usual:.1%}"
        ),
    ),
    Check(
        lambda s, _: s.residual_px > 2,
        lambda s, _: s.residual_px,
        lambda s, _: f"X and Y fit no pinhole camera: off by up to {s.residual_px:.1f} pixels",
    ),
    Check(
        lambda s, _: bool(s.remarks),
        lambda s, _: len(s.remarks),
        lambda s, _: "; ".join(s.remarks),
    ),
    Check(
        lambda s, _: s.far_mm > 10 * s.mean_mm,
        lambda s, _: s.far_mm / s.mean_mm,
        lambda s, _: f"depth goes to {s.far_mm:.0f} mm, the mean is {s.mean_mm:.0f}",
    ),
)


class Finding(NamedTuple):
    """A fault of a capture."""

    severity: float
    capture: str
    text: str


def find_faults(captures: Sequence[CaptureSummary]) -> list[list[Finding]]:
    """Return the findings of each check that found any, the worst first.

    The checks are in the order of the first capture that each found.
    """
    usual = float(np.median([capture.valid_share for capture in captures]))
    findings: dict[Check, list[Finding]] = {}
    for capture in captures:
        for check in CHECKS:
            if check.is_suspect(capture, usual):
                severity = check.severity(capture, usual)
                text = check.describe(capture, usual)
                findings.setdefault(check, []).append(Finding(severity, capture.name, text))
    return [sorted(found, reverse=True) for found in findings.values()]


def fault_blocks(captures: Sequence[CaptureSummary]) -> list[Block]:
    """Return a table of captures that may be faulty; of many with one fault, the worst."""
    explanation = Paragraph(
        f"Looked for: pixels alone in space ({FLYING_MM:g} mm and {FLYING_SHARE:.0%} of the depth"
        f" off all neighbours), one depth shared by more than {PLATEAU_SHARE:.0%} of a capture,"
        " saturated and black pictures, few measured pixels, X and Y that fit no pinhole, points"
        " that are no camera's view, images whose edges do not lie where those of the depth are,"
        " depths far beyond the rest. Metres instead of millimetres and flipped signs are rejected,"
        " see below."
    )
    together = (
        unit_remark(float(np.median([capture.mean_mm for capture in captures]))),
        describe_dataset([capture.edges for capture in captures]),
    )
    rows = [["all captures", text] for text in together if text]
    for found in find_faults(captures):
        rows += [[finding.capture, finding.text] for finding in found[:MAX_NAMED]]
        num_more = len(found) - MAX_NAMED
        if num_more > 0:
            rows.append([f"and {num_more} more of {len(captures)}", f"down to: {found[-1].text}"])
    if rows:
        return [explanation, Table(["capture", "what"], rows, words=True)]
    most_flying = max(capture.flying_share for capture in captures)
    return [
        explanation,
        Paragraph(
            f"Nothing was found in {len(captures)} captures. Most flying pixels in one:"
            f" {most_flying:.3%}."
        ),
    ]
