"""What a metric is: its name, unit, direction and definition."""

from __future__ import annotations

from typing import NamedTuple

BINS_MM = (250.0, 750.0, 1500.0, 2500.0, 3910.0)


class Metric(NamedTuple):
    """What a number is: `unit` is "" for a ratio, `better` is "lower" or "higher"."""

    name: str
    unit: str
    better: str
    definition: str


TREAD_LIMIT_MM = 1.6  # legal tread depth of passenger cars in the EU (directive 89/459/EEC)
