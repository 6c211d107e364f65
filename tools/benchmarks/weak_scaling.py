"""A model of one optimizer step on many ranks, each with as much work as one has alone."""

from __future__ import annotations

import time

import numpy as np

from depthdist.core.text_table import format_table

TRAINED = 442_368  # parameters of the recipe's LoRA
EXCHANGES = 2  # of a step: the losses with what was asked, and the gradients; each waits
STEP_S = 0.25  # of a rank with nobody to wait for; a GPU's at 756x1260 is of that order
GBIT, LATENCY_US = 100, 30  # of the network, and of one message


def sum_seconds(num_bytes: int) -> float:
    """Return the seconds that this machine takes to add gradients in float64, best of five."""
    values = np.ones(num_bytes // 8)
    total = np.zeros_like(values)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        total += values
        best = min(best, time.perf_counter() - start)
    return best


def exchange_seconds(ranks: int, num_bytes: int, add_s: float) -> float:
    """Return the seconds of a step's exchanges: ring all-reduces, each rank adds what comes.

    add_s  to add `num_bytes` once
    """
    if ranks == 1:
        return 0.0
    moved = 2 * (ranks - 1) / ranks * num_bytes
    messages = EXCHANGES * 2 * (ranks - 1)
    return moved / (GBIT * 1e9 / 8) + messages * LATENCY_US * 1e-6 + add_s * (ranks - 1) / ranks


def print_model(most: int) -> None:
    """Print the model for 1 rank up to `most` and beyond."""
    num_bytes = 8 * TRAINED  # float64
    add_s = sum_seconds(num_bytes)
    rows = []
    for ranks in sorted({1, 8, most, 8 * most}):
        exchange = exchange_seconds(ranks, num_bytes, add_s)
        share = STEP_S / (STEP_S + exchange)
        rows.append([ranks, f"{STEP_S:.3f}", f"{exchange:.4f}", f"{100 * share:.1f}"])
    print()
    print(format_table(["ranks", "own work s", "exchange s", "efficiency %"], rows))
    print(
        f"a model, not measured on a network: {num_bytes / 1e6:.1f} MB of float64 gradients and"
        f" {EXCHANGES} exchanges a step, rings at {GBIT} Gbit/s and {LATENCY_US} us a message;"
        f"\nadding them once takes {add_s * 1e3:.2f} ms here; {STEP_S} s of own work are assumed,"
        " and that all ranks take equally long"
    )
