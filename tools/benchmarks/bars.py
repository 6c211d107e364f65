"""Bars: what a release must reach, and whether a run did."""

from __future__ import annotations

from typing import Any


def format_bar(bar: dict[str, Any]) -> str:
    """Return the line of a bar: a verdict, what was asked, what was found and a remark.

    bar     the text of what is asked
    found   the measured value, None where it was not measured
    met     bool
    remark  may be absent
    """
    if bar["found"] is None:
        verdict, found = "not measured", ""
    else:
        verdict, found = "met" if bar["met"] else "MISSED", f"{bar['found']:.3g}"
    return f"{verdict:<13}{bar['bar']:<43}{found:>7}  {bar.get('remark', '')}".rstrip()


def print_check(met: bool, text: str) -> None:
    """Print whether something that a benchmark demands was met."""
    print(f"{'met' if met else 'MISSED':<8}{text}")
