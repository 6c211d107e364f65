"""What a metric is, and the defaults that the command's settings share with the metrics.

Each module of this package registers its metrics in a table of its own, by name:
PIXEL_METRICS, EDGE_METRICS, SURFACE_METRICS, GROOVE_METRICS.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

BINS_MM = (250.0, 750.0, 1500.0, 2500.0, 3910.0)  # ends of the depth ranges scored separately
TREAD_LIMIT_MM = 1.6  # legal tread depth of passenger cars in the EU (directive 89/459/EEC)


class Metric(NamedTuple):
    """One metric of an image.

    unit    "" for a ratio
    better  "lower", "higher", or "zero" for a signed error
    """

    name: str
    unit: str
    better: str
    definition: str


def metrics_by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """Return a table of metrics, in their order."""
    return {metric.name: metric for metric in metrics}
