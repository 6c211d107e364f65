"""Two runs on the same images: which is better, by how much, and how sure that is.

# the contents of two evaluation.json; what to call the runs
print(comparison(evaluation_a, evaluation_b, ["first", "other"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthdist.evaluation.image_details import all_metrics
from depthdist.evaluation.metrics.confidence import compare
from depthdist.evaluation.tables import format_value

COMPARED_METRICS = (
    "abs_rel",
    "delta1",
    "rmse_mm",
    "mae_mm",
    "silog_kitti",
    "edge_f1@4mm",
    "edge_f1@16mm",
    "normal_mean_deg",
    "chamfer_mm",
    "groove_mae_mm",
    "groove_found",
)
SIGNIFICANCE = 0.05


def compare_runs(a: dict[str, Any], b: dict[str, Any], names: Sequence[str]) -> str:
    """The table. ValueError where the two were not measured on the same images."""
    for what in ("data_sha256", "split"):
        if a[what] != b[what]:
            measured = ", ".join(
                f"{name} was measured on {content['split']} of {content['data']}"
                for name, content in zip(names, (a, b))
            )
            raise ValueError(f"{measured}: give both the same with --data and --split")
    (row_a, values_a), (row_b, values_b) = (_adapter(content) for content in (a, b))
    both = _same(values_a["keys"], values_b["keys"])
    metrics, lines = (
        all_metrics(),
        [
            f"A {names[0]}: {row_a}",
            f"B {names[1]}: {row_b}",
            f"{len(both)} images that both were measured on",
            "",
        ],
    )
    width = max(map(len, COMPARED_METRICS))
    lines.append(f"{'':{width}}{'A':>12}{'B':>12}{'A - B':>12}{'95 % interval':>24}{'p':>9}")
    for name in COMPARED_METRICS:
        if name not in values_a["values"] or name not in values_b["values"]:
            continue
        one, other = (
            [values["values"][name][pair[side]] for pair in both]
            for side, values in enumerate((values_a, values_b))
        )
        found = compare(one, other)
        if not found.images:
            continue
        shown = [
            format_value(name, sum(x for x in xs if x == x) / max(sum(x == x for x in xs), 1))
            for xs in (one, other)
        ]
        known = found.p == found.p
        better = "A" if (found.difference < 0) == (metrics[name].better == "lower") else "B"
        verdict = (
            "too few images"
            if not known
            else f"{better} is better"
            if found.p < SIGNIFICANCE
            else "no difference shown"
        )
        span = (
            f"{format_value(name, found.low)} .. {format_value(name, found.high)}" if known else "-"
        )
        lines.append(
            f"{name:{width}}{shown[0]:>12}{shown[1]:>12}{format_value(name, found.difference):>12}{span:>24}{f'{found.p:.4f}' if known else '-':>9}"
            f"  {verdict}"
        )
    lines.append(
        "\np: share of all swaps of A and B within images that differ as much (permutation test);"
        f" below {SIGNIFICANCE:g} is called a difference."
    )
    lines.append(
        "One run each: what another seed would change is not in it. Images of one scene are not"
        " independent."
    )
    return "\n".join(lines)


def _same(a: list[str], b: list[str]) -> list[tuple[int, int]]:
    """Positions of the same image in both.

    Names may come more than once, as in mixed datasets: then in their order.
    """
    places: dict[str, list[int]] = {}
    for i, key in enumerate(b):
        places.setdefault(key, []).append(i)
    return [(i, places[key].pop(0)) for i, key in enumerate(a) if places.get(key)]


def _adapter(content: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The run's own row."""
    row = next(
        row
        for row in content["images"]
        if row.startswith("adapter") and not row.endswith("-aligned")
    )
    return row, content["images"][row]
