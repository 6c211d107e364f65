"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return the lines of a table: the first column aligned left, the others right.

    A row may have fewer cells than the header. Its cells beyond the header are remarks: they follow
    the columns and do not widen them.
    """
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths)]
        padded[0] = row[0].ljust(widths[0])
        lines.append("  ".join([*padded, *row[len(header) :]]).rstrip())
    return "\n".join(lines)
