"""The report of a dataset: what is in it, what was rejected and why, and what may be wrong.

depthdist report data RAW        # captures, before sharding
depthdist report data DIR        # shards
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from depthdist.captures.near_duplicates import FINGERPRINT, NearDuplicate, find_near_duplicates
from depthdist.captures.read_options import NO_OPTIONS, ReadOptions
from depthdist.geometry.depth_range import DepthRange
from depthdist.reports.capture_checks import fault_blocks
from depthdist.reports.capture_reading import Rejection, find_captures, read_captures
from depthdist.reports.capture_summary import BIN_MM, NUM_BINS, CaptureSummary
from depthdist.reports.drawings import INK, SERIES, jpeg_figure, make_axes, svg_figure
from depthdist.reports.html_page import (
    Block,
    Drawing,
    Grid,
    Paragraph,
    Section,
    Table,
    render_page,
)
from depthdist.shards.image_hashes import describe_shared_of
from depthdist.shards.index import read_index

MAX_REJECTIONS = 200  # rows of a table
MAX_ROWS = 100
PERCENTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
MANTISSA_BITS = {"FP16": 10, "BF16": 7}
SMALLEST_NORMAL = 2.0**-14  # of FP16

Captures = Sequence[CaptureSummary]


def build_data_report(
    folder: Path, num_images: int, workers: int, options: ReadOptions = NO_OPTIONS
) -> str:
    """Return the page's HTML.

    num_images  captures that are shown
    workers     processes that read captures; 0: one per core
    options     how captures that are not sharded are read
    raises ValueError: no capture can be read
    """
    source = find_captures(folder, options)
    captures, unreadable = read_captures(source.jobs, workers)
    rejections = source.rejections + unreadable
    if not captures:
        if not rejections:
            raise ValueError(f"{folder}: no captures")
        first = rejections[0]
        raise ValueError(
            f"{folder}: none of {len(source.jobs)} captures can be read; the first: {first.path}:"
            f" {first.reason}"
        )
    near_mm = min(capture.near_mm for capture in captures)
    depth_range = DepthRange(near_mm, max(capture.far_mm for capture in captures))
    notes = [Paragraph(note) for note in source.notes]
    sections = [
        Section("Overview", [overview_table(captures, len(rejections), depth_range), *notes]),
        Section("What looks wrong", fault_blocks(captures)),
        Section("Rejected", rejection_blocks(rejections)),
        Section("Depth", depth_blocks(captures, depth_range)),
        Section("Holes and exposure", [Grid(_exposure_figures(captures))]),
        Section("Sessions and duplicates", session_blocks(captures, shared_images_of(folder))),
        Section("Captures", thumbnail_blocks(captures, num_images)),
    ]
    place = folder.resolve()
    subtitle = f"{place}, {source.kind}, {len(captures)} captures"
    return render_page(f"Data: {place.name}", sections, subtitle)


# ------------------------------------------------------------------------------- overview, rejected


def overview_table(captures: Captures, num_rejected: int, depth_range: DepthRange) -> Table:
    """Return what all captures are together."""
    num_pixels = sum(capture.size[0] * capture.size[1] for capture in captures)
    num_valid = sum(capture.num_valid for capture in captures)
    lowest = min(capture.valid_share for capture in captures)
    highest = max(capture.valid_share for capture in captures)
    mean, std = _mean_and_std(captures)
    sizes = Counter(capture.size for capture in captures).most_common(3)
    num_sessions = len({capture.session for capture in captures})
    num_labeled = sum(capture.num_grooves > 0 for capture in captures)
    rows = [
        ["captures", _count_by_split(captures)],
        ["rejected files", f"{num_rejected}"],
        ["size", ", ".join(f"{count} of {height}x{width}" for (height, width), count in sizes)],
        [
            "measured",
            f"{num_valid / num_pixels:.1%} of the pixels; per capture {lowest:.1%} .."
            f" {highest:.1%}",
        ],
        [
            "depth",
            f"{depth_range.near_mm:.2f} .. {depth_range.far_mm:.2f} mm, mean {mean:.0f}, std"
            f" {std:.0f}",
        ],
        ["a constant's RMSE", f"about {std:.0f} mm: what every model must beat"],
        ["sessions", f"{num_sessions}"],
        ["groove labels", f"{num_labeled} captures"],
    ]
    return Table(["", ""], rows, words=True)


def _mean_and_std(captures: Captures) -> tuple[float, float]:
    """Return mean and standard deviation of all valid pixels' depth, mm."""
    num_valid = sum(capture.num_valid for capture in captures)
    mean = sum(capture.num_valid * capture.mean_mm for capture in captures) / num_valid
    squares = sum(
        capture.num_valid * (capture.std_mm**2 + (capture.mean_mm - mean) ** 2)
        for capture in captures
    )
    return mean, math.sqrt(squares / num_valid)


def _count_by_split(captures: Captures) -> str:
    """Return the number of captures, and of those in each split."""
    splits = Counter(capture.split for capture in captures)
    if set(splits) == {""}:
        return f"{len(captures)}"
    return f"{len(captures)} ({', '.join(f'{count} {split}' for split, count in splits.items())})"


def rejection_blocks(rejections: Sequence[Rejection]) -> list[Block]:
    """Return which files were rejected, and why."""
    if not rejections:
        return [Paragraph("No file was rejected.")]
    blocks: list[Block] = [
        Paragraph(f"{len(rejections)} files that no sample is made of."),
        Table(["file", "why"], rejections[:MAX_REJECTIONS], words=True),
    ]
    num_more = len(rejections) - MAX_REJECTIONS
    return [*blocks, Paragraph(f"and {num_more} more")] if num_more > 0 else blocks


# -------------------------------------------------------------------------------------------- depth


def depth_blocks(captures: Captures, depth_range: DepthRange) -> list[Block]:
    """Return the distribution of depth in mm and normalized, and the resolution of the latter."""
    histogram = np.sum([capture.histogram for capture in captures], axis=0)
    drawing = _histogram_figure(histogram)
    if depth_range.near_mm == depth_range.far_mm:
        warning = Paragraph(
            f"Every pixel has one and the same depth, {depth_range.near_mm:.2f} mm: there is"
            " nothing to normalise.",
            "warn",
        )
        return [Grid([drawing]), warning]
    return [
        Grid([drawing, _normalized_histogram_figure(histogram, depth_range)]),
        Paragraph(
            "What one unit in the last place of normalised depth is worth there; the last layers"
            " and the loss are FP32 for that reason."
        ),
        _resolution_table(histogram, depth_range),
    ]


def _bin_centers_mm() -> np.ndarray:
    return (np.arange(NUM_BINS) + 0.5) * BIN_MM


def _histogram_figure(histogram: np.ndarray) -> Drawing:
    used = np.flatnonzero(histogram)
    part = slice(used[0], used[-1] + 1)
    shares = histogram[part] / histogram.sum()
    fig, axes = make_axes("Depth", "mm", "share of measured pixels")
    axes.fill_between(_bin_centers_mm()[part], shares, color=SERIES[0], alpha=0.8, linewidth=0)
    beyond = "; the last one holds all that is farther" if histogram[-1] else ""
    return svg_figure(fig, f"All captures together, bins of {BIN_MM:g} mm{beyond}.")


def _normalized_histogram_figure(histogram: np.ndarray, depth_range: DepthRange) -> Drawing:
    low, high = 1 / depth_range.far_mm, 1 / depth_range.near_mm
    normalized = np.clip((1 / _bin_centers_mm() - low) / (high - low), 0, 1)
    order = np.argsort(normalized)
    cumulative = np.cumsum(histogram[order]) / histogram.sum()
    first, last = (
        float(normalized[order][np.searchsorted(cumulative, share)]) for share in (0.01, 0.99)
    )
    counts, edges = np.histogram(normalized, 100, (0, 1), weights=histogram / histogram.sum())
    fig, axes = make_axes(
        "On the normalised scale", "d: 0 is farthest, 1 nearest", "share of measured pixels"
    )
    axes.fill_between((edges[1:] + edges[:-1]) / 2, counts, color=SERIES[1], alpha=0.8, linewidth=0)
    return svg_figure(
        fig,
        f"98 % of the pixels lie between {first:.3f} and {last:.3f}: {last - first:.0%} of the"
        " scale.",
    )


def _resolution_table(histogram: np.ndarray, depth_range: DepthRange) -> Table:
    """Return how many mm a unit in the last place of normalized depth is, over all depths."""
    low, high = 1 / depth_range.far_mm, 1 / depth_range.near_mm
    cumulative = np.cumsum(histogram) / histogram.sum()
    rows = []
    for share in PERCENTILES:
        depth_mm = float(_bin_centers_mm()[np.searchsorted(cumulative, share)])
        value = (1 / depth_mm - low) / (high - low)
        exponent = math.floor(math.log2(max(value, SMALLEST_NORMAL)))
        fp16, bf16 = (
            depth_mm**2 * (high - low) * 2.0 ** (exponent - bits) for bits in MANTISSA_BITS.values()
        )
        rows.append(
            [f"{share:.0%}", f"{depth_mm:.0f}", f"{value:.4f}", f"{fp16:.3f}", f"{bf16:.2f}"]
        )
    precisions = [f"mm per ulp in {precision}" for precision in MANTISSA_BITS]
    return Table(["percentile of depth", "mm", "d", *precisions], rows)


# ------------------------------------------------------------------------------- holes and exposure


def _exposure_figures(captures: Captures) -> list[Drawing]:
    """Return where depth was measured, and exposure and measured share of each capture."""
    return [
        _valid_map_figure(captures),
        _figure_by_session(
            captures,
            [capture.mean_grey for capture in captures],
            ("Exposure", "mean grey, 0..255"),
            "Mean grey of each picture, a colour a session.",
        ),
        _figure_by_session(
            captures,
            [capture.valid_share for capture in captures],
            ("Measured pixels", "share of the pixels"),
            "Measured share of each capture, a colour a session.",
        ),
    ]


def _valid_map_figure(captures: Captures) -> Drawing:
    fig, axes = make_axes(
        "Where there is depth", "column, share of the width", "row, share of the height"
    )
    shares = np.mean([capture.valid_map for capture in captures], axis=0)
    drawn = axes.imshow(shares, extent=(0, 1, 1, 0), aspect="auto", vmin=0, vmax=1, cmap="viridis")
    bar = fig.colorbar(drawn, ax=axes)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.set_label("share of captures", color=INK, fontsize=9)
    axes.grid(visible=False)
    return svg_figure(fig, "Share of captures in which a pixel was measured.")


def _figure_by_session(
    captures: Captures, values: Sequence[float], labels: tuple[str, str], caption: str
) -> Drawing:
    """Plot one value for each capture; `labels` are the title and that of the y axis."""
    title, ylabel = labels
    fig, axes = make_axes(title, "capture, in order of name", ylabel)
    for i, session in enumerate(_sessions(captures)):
        members = [k for k, capture in enumerate(captures) if capture.session == session]
        axes.plot(members, [values[k] for k in members], ".", color=SERIES[i % len(SERIES)])
    return svg_figure(fig, caption)


def _sessions(captures: Captures) -> list[int]:
    return sorted({capture.session for capture in captures})


# -------------------------------------------------------------------------- sessions and duplicates


def shared_images_of(folder: Path) -> list[str]:
    """Return a line for each two splits of shards that have the same images; [] of captures."""
    if not (folder / "index.json").exists():
        return []
    return describe_shared_of(read_index(folder))


def session_blocks(captures: Captures, shared: Sequence[str] = ()) -> list[Block]:
    """Return the sessions and their splits, and which captures are near-duplicates.

    shared  what is said of images that are in two splits
    """
    prints = np.array([capture.fingerprint for capture in captures], FINGERPRINT)
    rows = [_duplicate_row(captures, found) for found in find_near_duplicates(prints)]
    num_across = sum(" and " in splits for *_, splits in rows)
    across = f", {num_across} of them across the split: validation scores are optimistic."
    blocks: list[Block] = [
        Paragraph(
            "A session's captures show one scene; a split between them gives optimistic scores"
            " (depthdist shard --split session)."
        ),
        _session_table(captures),
        Paragraph(
            f"{len(rows)} of {len(captures)} captures resemble an earlier one"
            f"{across if num_across else '.'}"
        ),
        *(Paragraph(f"{line}.", "warn") for line in shared),
    ]
    if rows:
        header = ["capture", "resembles", "similarity", "split"]
        blocks.append(Table(header, rows[:MAX_ROWS], words=True))
    return blocks


def _session_table(captures: Captures) -> Table:
    rows = []
    for session in _sessions(captures)[:MAX_ROWS]:
        members = [capture for capture in captures if capture.session == session]
        splits = Counter(capture.split for capture in members if capture.split)
        counts = ", ".join(f"{count} {split}" for split, count in splits.items())
        first, last = members[0].name, members[-1].name
        rows.append([f"{session}", f"{len(members)}", counts or "-", first, last])
    return Table(["session", "captures", "split", "first", "last"], rows, words=True)


def _duplicate_row(captures: Captures, found: NearDuplicate) -> list[str]:
    a, b = captures[found.a], captures[found.b]
    similarity = "the same picture" if found.exact else f"{found.similarity:.3f}"
    splits = dict.fromkeys(split for split in (a.split, b.split) if split)
    return [a.name, b.name, similarity, " and ".join(splits) or "-"]


# ----------------------------------------------------------------------------------------- captures


def thumbnail_blocks(captures: Captures, num_images: int) -> list[Block]:
    """Return RGB and depth of `num_images` captures, evenly spread over all."""
    num_shown = min(num_images, len(captures))
    last = len(captures) - 1
    positions = sorted({round(k * last / max(num_images - 1, 1)) for k in range(num_shown)})
    return [
        Paragraph(
            f"{len(positions)} of {len(captures)}, evenly spread; depth from its own 1st (red) to"
            " 99th percentile (blue), grey where nothing was measured."
        ),
        Grid([jpeg_figure(*_thumbnail(captures[i])) for i in positions]),
    ]


def _thumbnail(capture: CaptureSummary) -> tuple[np.ndarray, str]:
    """Return RGB beside depth, (h, 2 w, 3) uint8, and its caption."""
    from PIL import Image

    height, width, _ = capture.rgb_thumbnail.shape
    depth = Image.fromarray(capture.depth_thumbnail)
    depth = depth.resize((width, height), Image.Resampling.NEAREST)
    caption = (
        f"{capture.name}: {capture.near_mm:.0f} .. {capture.far_mm:.0f} mm,"
        f" {capture.valid_share:.0%} measured, grey {capture.mean_grey:.0f}"
    )
    if capture.split:
        caption += f", {capture.split}"
    return np.hstack([capture.rgb_thumbnail, np.asarray(depth)]), caption
