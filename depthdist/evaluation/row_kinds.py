"""What each row of an evaluation's tables shows.

    kinds = row_kinds(json.loads((run / "evaluation.json").read_text(encoding="utf-8")))
    # {"constant 1542 mm": RowKind.CONSTANT, ..., "adapter, epoch 3": RowKind.ADAPTER}

evaluation.json holds the kinds beside the rows, so that nobody has to parse a row's label.
"""

from __future__ import annotations

from enum import Enum
from typing import Any


class RowKind(Enum):
    """Whose predictions a row scores, and how; the value stands in evaluation.json."""

    CONSTANT = "constant"  # the same depth everywhere
    UNTRAINED = "untrained"  # the model before training
    UNTRAINED_ALIGNED = "untrained-aligned"  # aligned to each image's ground truth
    ADAPTER = "adapter"  # the run's own result
    ADAPTER_ALIGNED = "adapter-aligned"
    ADAPTER_REFINED = "adapter-refined"  # --flip, --refine: more computation, the same weights

    @property
    def is_aligned(self) -> bool:
        """Return whether ground truth was used: such a row is never compared with the others."""
        return self in (RowKind.UNTRAINED_ALIGNED, RowKind.ADAPTER_ALIGNED)

    @property
    def is_adapter(self) -> bool:
        """Return whether the run's own weights made the predictions."""
        return self in (RowKind.ADAPTER, RowKind.ADAPTER_ALIGNED, RowKind.ADAPTER_REFINED)


def row_kinds(evaluation: dict[str, Any]) -> dict[str, RowKind]:
    """Return the kind of each row of an evaluation.json, in the order of its rows."""
    stored = evaluation.get("kinds", {})
    return {
        row: RowKind(stored[row]) if row in stored else infer_row_kind(row)
        for row in evaluation["rows"]
    }


def adapter_row(evaluation: dict[str, Any]) -> str:
    """Return the label of the run's own row, and raise KeyError if there is none."""
    for row, kind in row_kinds(evaluation).items():
        if kind is RowKind.ADAPTER:
            return row
    raise KeyError("the evaluation has no row of the run's adapter")


def infer_row_kind(label: str) -> RowKind:
    """Return the kind that a label stands for, of files written before they held the kinds."""
    if label.startswith("constant"):
        return RowKind.CONSTANT
    is_aligned = label.endswith("-aligned")
    if not label.startswith(("adapter", "best adapter")):
        return RowKind.UNTRAINED_ALIGNED if is_aligned else RowKind.UNTRAINED
    if is_aligned:
        return RowKind.ADAPTER_ALIGNED
    is_refined = label.endswith((", flip", ", guided", ", tiles", " + detail"))
    return RowKind.ADAPTER_REFINED if is_refined else RowKind.ADAPTER
