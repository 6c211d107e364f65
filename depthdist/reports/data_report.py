"""A dataset's report: what is in a folder of captures, or in shards, what was rejected and why, and
what looks wrong.

python tools/report.py data RAW        # captures, before sharding
python tools/report.py data DIR        # shards
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from depthdist.captures.layouts import find_pairs
from depthdist.captures.near_duplicates import FINGERPRINT, find_near_duplicates, fingerprint
from depthdist.captures.readers import read_pair
from depthdist.captures.sessions import number_sessions
from depthdist.core.environment import exit_with_parent
from depthdist.core.errors import BadFile, printable_path
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.evaluation.figures import NEAR_TO_FAR
from depthdist.geometry.depth_range import DepthRange
from depthdist.reports import html_page as html
from depthdist.reports.html_page import (
    INK,
    SERIES,
    axes,
    drawing,
    grid,
    image_tag,
    paragraph,
    table,
)
from depthdist.shards.decoding import decode_label

if TYPE_CHECKING:
    from depthdist.data.loader import Loader

BIN_MM, BINS = 10.0, 1000  # of the histogram: up to 10 m, the last bin has all beyond
GRID = (30, 48)  # of the map of holes
THUMB = 240  # pixels wide
FLYING_MM, FLYING_SHARE = (
    20.0,
    0.02,
)  # a pixel stands alone where no neighbour is nearer than both of these (mm, share of its depth)
PLATEAU = 0.02  # share of one single depth value from which on it looks like a ghost plane
WORST = 5  # captures named of those that have the same thing wrong
BRIGHT, DARK = 250, 5  # grey levels that say nothing any more


@dataclass(frozen=True)
class Seen:
    """What one capture comes to.

    `thumbs` are RGB and depth; `histogram` (BINS,) and `holes` GRID count and share valid pixels.
    """

    name: str
    split: str
    session: int
    size: tuple[int, int]
    valid: float
    near_mm: float
    far_mm: float
    mean_mm: float
    std_mm: float
    luminance: float
    bright: float
    dark: float
    flying: float
    plateau: float
    plateau_mm: float
    grooves: int
    residual_px: float
    histogram: np.ndarray
    holes: np.ndarray
    print_: np.ndarray
    thumbs: tuple[np.ndarray, np.ndarray]


def data_report(folder: Path, most: int, workers: int) -> str:
    """The page's HTML. ValueError where there is nothing to report on."""
    jobs, rejects, kind = (shard_jobs if (folder / "index.json").exists() else raw_jobs)(folder)
    found: list[Seen] = []
    with ProcessPoolExecutor(
        workers or len(os.sched_getaffinity(0)),
        multiprocessing.get_context("spawn"),
        exit_with_parent,
    ) as pool:
        for one in tqdm(
            pool.map(_look, jobs),
            "looking",
            total=len(jobs),
            unit="capture",
            leave=False,
            disable=not sys.stderr.isatty(),
        ):
            if isinstance(one, Seen):
                found.append(one)
            else:
                rejects.append(one)
    if not found:
        raise ValueError(
            f"{folder}: none of {len(jobs)} captures can be read; the first: {rejects[0][0]}:"
            f" {rejects[0][1]}"
            if rejects
            else f"{folder}: no captures"
        )
    z = np.sum([s.histogram for s in found], axis=0)
    bounds = DepthRange(min(s.near_mm for s in found), max(s.far_mm for s in found))
    sections = [
        ("Overview", overview(found, rejects, bounds)),
        ("What looks wrong", suspects(found)),
        ("Rejected", rejected(rejects)),
        ("Depth", depths(found, z, bounds)),
        ("Holes and exposure", holes(found)),
        ("Sessions and duplicates", duplicates(found)),
        ("Captures", thumbnails(found, most)),
    ]
    return html.page(
        f"Data: {folder.resolve().name}",
        sections,
        f"{folder.resolve()}, {kind}, {len(found)} captures",
    )


# ------------------------------------------------------------------------------------------ reading


def raw_jobs(folder: Path) -> tuple[list[tuple], list[tuple[str, str]], str]:
    """What to read of a folder of captures, and what was rejected already."""
    pairs, rejects = find_pairs(folder)
    numbers = number_sessions([pair.stem for pair in pairs])
    return (
        [("raw", pair, number) for pair, number in zip(pairs, numbers)],
        [(printable_path(r.path), r.reason) for r in rejects],
        "raw captures",
    )


def shard_jobs(folder: Path) -> tuple[list[tuple], list[tuple[str, str]], str]:
    """The same of shards; what was rejected is in their rejects.jsonl."""
    dataset = open_dataset(DataSettings(data=(str(folder),)))
    path = folder / "rejects.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rejects = [
        (
            line.get("path") or f"{line.get('shard')}: {line.get('key')}",
            line.get("reason") or line.get("why") or "?",
        )
        for line in lines
    ]
    jobs = [
        ("shard", str(folder), split, number)
        for split in dataset.parts[0].raw["splits"]
        for number in range(dataset.count(split))
    ]
    return jobs, rejects, "shards"


def _look(job: tuple) -> Seen | tuple[str, str]:
    """What a capture comes to, or (path, why it cannot be read)."""
    if job[0] == "raw":
        _, pair, session = job
        try:
            rgb, xyz = read_pair(pair)
        except BadFile as err:
            return printable_path(err.path), err.reason
        from depthdist.geometry.camera import fit_intrinsics

        return look(
            pair.stem,
            "",
            session,
            np.asarray(rgb),
            xyz[..., 2],
            1 if pair.grooves else 0,
            fit_intrinsics(xyz),
        )
    loader = _loader(job[1])
    dataset = loader.dataset
    try:
        batch = loader.samples(job[2], [job[3]]).to("cpu")
    except ValueError as err:  # Damaged
        return f"{job[2]} sample {job[3]}", str(err)
    if not batch.mask.any():
        return batch.keys[0], "no valid pixel"
    meta, (_, ref) = dataset.meta(job[2], job[3]), dataset.find(job[2], job[3])
    z = np.where(batch.mask[0].numpy(), batch.depth_mm[0].numpy(), np.nan)
    count = len(np.unique(decode_label(meta["grooves"]))) - 1 if "grooves" in meta else 0
    return look(
        batch.keys[0], job[2], ref.session, batch.rgb[0].numpy(), z, count, meta.get("intrinsics")
    )


@cache
def _loader(folder: str) -> Loader:
    """Open the dataset in `folder`, once per worker process."""
    import torch

    from depthdist.data.loader import Loader

    torch.set_num_threads(1)
    settings = DataSettings(data=(folder,), threads=1)
    return Loader(open_dataset(settings), settings)


def look(
    name: str,
    split: str,
    session: int,
    rgb: np.ndarray,
    z: np.ndarray,
    grooves: int,
    intrinsics: dict[str, Any] | None,
) -> Seen:
    """Rgb (h, w, 3) uint8; z (H, W) float32 mm, NaN, inf or 0 where nothing was measured."""
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(z) & (z > 0)
    known = z[valid].astype(np.float64)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    values, counts = np.unique(np.round(known, 2), return_counts=True)
    most = int(np.argmax(counts))
    return Seen(
        name,
        split,
        session,
        z.shape,
        float(valid.mean()),
        float(known.min()),
        float(known.max()),
        float(known.mean()),
        float(known.std()),
        float(grey.mean()),
        float((grey >= BRIGHT).mean()),
        float((grey <= DARK).mean()),
        flying_share(z, valid),
        float(counts[most] / known.size),
        float(values[most]),
        grooves,
        float(intrinsics["max_residual_px"]) if intrinsics else math.nan,
        np.bincount(np.minimum((known / BIN_MM).astype(int), BINS - 1), minlength=BINS),
        _cells(valid),
        fingerprint(rgb),
        (_small(rgb), _small_depth(z, valid)),
    )


def flying_share(z: np.ndarray, valid: np.ndarray) -> float:
    """Share of measured pixels that stand alone in space: none of their 8 neighbours is near them
    in depth.

    Structured light makes them at silhouettes, between the surface in front and the one behind.
    """
    filled = np.where(valid, z, np.inf).astype(np.float32)
    nearest = np.full(z.shape, np.inf, np.float32)
    padded = np.pad(filled, 1, constant_values=np.inf)
    with np.errstate(invalid="ignore"):
        for dy in range(3):
            for dx in range(3):
                if (dy, dx) != (1, 1):
                    off = np.abs(padded[dy : dy + z.shape[0], dx : dx + z.shape[1]] - filled)
                    nearest = np.fmin(nearest, off)
        alone = (
            valid
            & (nearest > np.maximum(FLYING_MM, FLYING_SHARE * filled))
            & (ndimage.uniform_filter(valid.astype(np.float32), 3) > 2.5 / 9)
        )
    return float(np.count_nonzero(alone) / max(np.count_nonzero(valid), 1))


def _cells(valid: np.ndarray) -> np.ndarray:
    """Share of valid pixels in each cell of GRID."""
    return (
        np.asarray(
            Image.fromarray((valid * 255).astype(np.uint8)).resize(
                GRID[::-1], Image.Resampling.BOX
            ),
            np.float64,
        )
        / 255
    )


def _small(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(
        Image.fromarray(rgb).resize(
            (THUMB, round(THUMB * rgb.shape[0] / rgb.shape[1])), Image.Resampling.BOX
        )
    )


def _small_depth(z: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 in colours over the capture's own 1st to 99th percentile, grey where nothing
    was measured.
    """
    stride = max(1, z.shape[1] // THUMB)
    part, known = z[::stride, ::stride], valid[::stride, ::stride]
    low, high = np.percentile(z[valid], (1, 99))
    shown = np.ma.masked_array((np.where(known, part, low) - low) / max(high - low, 1.0), ~known)
    return (NEAR_TO_FAR(shown)[..., :3] * 255).astype(np.uint8)


# ----------------------------------------------------------------------------------------- sections


def overview(found: list[Seen], rejects: list[tuple[str, str]], bounds: DepthRange) -> str:
    pixels = sum(s.size[0] * s.size[1] for s in found)
    valid = sum(s.valid * s.size[0] * s.size[1] for s in found)
    sizes = ", ".join(
        f"{count} of {height}x{width}"
        for (height, width), count in Counter(s.size for s in found).most_common(3)
    )
    counts = [s.valid * s.size[0] * s.size[1] for s in found]
    mean = sum(n * s.mean_mm for n, s in zip(counts, found)) / valid
    std = math.sqrt(
        sum(n * (s.std_mm**2 + (s.mean_mm - mean) ** 2) for n, s in zip(counts, found)) / valid
    )
    splits = Counter(s.split for s in found)
    rows = [
        [
            "captures",
            f"{len(found)}"
            + (
                f" ({', '.join(f'{n} {split}' for split, n in splits.items())})"
                if len(splits) > 1 or "" not in splits
                else ""
            ),
        ],
        ["rejected files", f"{len(rejects)}"],
        ["size", sizes],
        [
            "measured",
            (
                f"{valid / pixels:.1%} of the pixels; per capture {min(s.valid for s in found):.1%}"
                f" .. {max(s.valid for s in found):.1%}"
            ),
        ],
        [
            "depth",
            f"{bounds.near_mm:.2f} .. {bounds.far_mm:.2f} mm, mean {mean:.0f}, std {std:.0f}",
        ],
        ["a constant's RMSE", f"about {std:.0f} mm: what every model must beat"],
        ["sessions", f"{len({s.session for s in found})}"],
        ["groove labels", f"{sum(s.grooves > 0 for s in found)} captures"],
    ]
    return table(["", ""], rows, words=True)


def suspects(found: list[Seen]) -> str:
    """Captures with something odd, each named with the number that says so.

    Of what many have, the worst.
    """
    usual = np.median([s.valid for s in found])
    lines: dict[str, list[tuple[float, str, str]]] = {}  # by kind: how bad, capture, words
    for s in found:
        for kind, odd, bad, words in (
            (
                "flying",
                s.flying > 0.005,
                s.flying,
                f"{s.flying:.2%} of the measured pixels stand alone in space (flying pixels)",
            ),
            (
                "plateau",
                s.plateau > PLATEAU,
                s.plateau,
                (
                    f"{s.plateau:.1%} of the measured pixels have the very same depth,"
                    f" {s.plateau_mm:.2f} mm (a ghost plane, or filled holes)"
                ),
            ),
            ("bright", s.bright > 0.05, s.bright, f"{s.bright:.1%} of the picture is saturated"),
            ("dark", s.dark > 0.5, s.dark, f"{s.dark:.1%} of the picture is black"),
            (
                "grey",
                s.luminance < 15 or s.luminance > 220,
                abs(s.luminance - 118),
                f"mean grey is {s.luminance:.0f} of 255",
            ),
            (
                "few",
                s.valid < 0.5 * usual,
                -s.valid,
                f"only {s.valid:.1%} of the pixels are measured; usual is {usual:.1%}",
            ),
            (
                "camera",
                s.residual_px > 2,
                s.residual_px,
                f"X and Y fit no pinhole camera: off by up to {s.residual_px:.1f} pixels",
            ),
            (
                "far",
                s.far_mm > 10 * s.mean_mm,
                s.far_mm / s.mean_mm,
                f"depth goes to {s.far_mm:.0f} mm, the mean is {s.mean_mm:.0f}",
            ),
        ):
            if odd:
                lines.setdefault(kind, []).append((bad, s.name, words))
    rows = []
    for kind in lines.values():
        kind.sort(reverse=True)
        rows += [[name, words] for _, name, words in kind[:WORST]]
        if len(kind) > WORST:
            rows.append(
                [f"and {len(kind) - WORST} more of {len(found)}", f"down to: {kind[-1][2]}"]
            )
    words = paragraph(
        f"Looked for: pixels alone in space ({FLYING_MM:g} mm and {FLYING_SHARE:.0%} of the depth"
        f" off all neighbours), one depth shared by more than {PLATEAU:.0%} of a capture, saturated"
        " and black pictures, few measured pixels, X and Y that fit no pinhole, depths far beyond"
        " the rest. Metres instead of millimetres and flipped signs are rejected, see below."
    )
    if not rows:
        return words + paragraph(
            f"Nothing was found in {len(found)} captures. Most flying pixels in one:"
            f" {max(s.flying for s in found):.3%}."
        )
    return words + table(["capture", "what"], rows, words=True)


def rejected(rejects: list[tuple[str, str]]) -> str:
    if not rejects:
        return paragraph("No file was rejected.")
    return (
        paragraph(f"{len(rejects)} files that no sample is made of.")
        + table(["file", "why"], [[path, reason] for path, reason in rejects[:200]], words=True)
        + (paragraph(f"and {len(rejects) - 200} more") if len(rejects) > 200 else "")
    )


def depths(found: list[Seen], z: np.ndarray, bounds: DepthRange) -> str:
    """Histogram in mm and on the normalised scale, and what a unit in the last place of each
    precision is worth.
    """
    middle, total = (np.arange(BINS) + 0.5) * BIN_MM, z.sum()
    used = np.flatnonzero(z)
    fig, ax = axes("Depth", "mm", "share of measured pixels")
    ax.fill_between(
        middle[used[0] : used[-1] + 1],
        z[used[0] : used[-1] + 1] / total,
        color=SERIES[0],
        alpha=0.8,
        linewidth=0,
    )
    figures = [
        drawing(
            fig,
            f"All captures together, bins of {BIN_MM:g}"
            f" mm{'; the last one holds all that is farther' if z[-1] else ''}.",
        )
    ]
    if bounds.near_mm == bounds.far_mm:
        return grid(figures) + paragraph(
            f"Every pixel has one and the same depth, {bounds.near_mm:.2f} mm: there is nothing to"
            " normalise.",
            "warn",
        )
    low, high = 1 / bounds.far_mm, 1 / bounds.near_mm
    d = np.clip((1 / middle - low) / (high - low), 0, 1)
    order = np.argsort(d)
    share = np.cumsum(z[order]) / total
    fig, ax = axes(
        "On the normalised scale", "d: 0 is farthest, 1 nearest", "share of measured pixels"
    )
    counts, edges = np.histogram(d, 100, (0, 1), weights=z / total)
    ax.fill_between((edges[1:] + edges[:-1]) / 2, counts, color=SERIES[1], alpha=0.8, linewidth=0)
    inner = [float(d[order][np.searchsorted(share, q)]) for q in (0.01, 0.99)]
    figures.append(
        drawing(
            fig,
            f"98 % of the pixels lie between {inner[0]:.3f} and {inner[1]:.3f}:"
            f" {inner[1] - inner[0]:.0%} of the scale.",
        )
    )
    cumulative, rows = np.cumsum(z) / total, []
    for q in (0.01, 0.25, 0.5, 0.75, 0.99):
        at = float(middle[np.searchsorted(cumulative, q)])
        value = (1 / at - low) / (high - low)
        ulp = [2.0 ** (math.floor(math.log2(max(value, 2**-14))) - bits) for bits in (10, 7)]
        mm = [at**2 * (high - low) * u for u in ulp]
        rows.append([f"{q:.0%}", f"{at:.0f}", f"{value:.4f}", f"{mm[0]:.3f}", f"{mm[1]:.2f}"])
    words = paragraph(
        "What one unit in the last place of normalised depth is worth there; the last layers and"
        " the loss are FP32 for that reason."
    )
    return (
        grid(figures)
        + words
        + table(
            ["percentile of depth", "mm", "d", "mm per ulp in FP16", "mm per ulp in BF16"], rows
        )
    )


def holes(found: list[Seen]) -> str:
    fig, ax = axes("Where there is depth", "column, share of the width", "row, share of the height")
    drawn = ax.imshow(
        np.mean([s.holes for s in found], axis=0),
        extent=(0, 1, 1, 0),
        aspect="auto",
        vmin=0,
        vmax=1,
        cmap="viridis",
    )
    bar = fig.colorbar(drawn, ax=ax)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.set_label("share of captures", color=INK, fontsize=9)
    ax.grid(visible=False)
    figures = [drawing(fig, "Share of captures in which a pixel was measured.")]
    fig, ax = axes("Exposure", "capture, in order of name", "mean grey, 0..255")
    numbers = sorted({s.session for s in found})
    for number in numbers:
        points = [(i, s.luminance) for i, s in enumerate(found) if s.session == number]
        ax.plot(*zip(*points), ".", color=SERIES[numbers.index(number) % len(SERIES)])
    figures.append(drawing(fig, "Mean grey of each picture, a colour a session."))
    fig, ax = axes("Measured pixels", "capture, in order of name", "share of the pixels")
    for number in numbers:
        points = [(i, s.valid) for i, s in enumerate(found) if s.session == number]
        ax.plot(*zip(*points), ".", color=SERIES[numbers.index(number) % len(SERIES)])
    figures.append(drawing(fig, "Measured share of each capture, a colour a session."))
    return grid(figures)


def duplicates(found: list[Seen]) -> str:
    rows = []
    for number in sorted({s.session for s in found}):
        ours = [s for s in found if s.session == number]
        splits = Counter(s.split for s in ours if s.split)
        rows.append(
            [
                f"{number}",
                f"{len(ours)}",
                ", ".join(f"{n} {split}" for split, n in splits.items()) or "-",
                ours[0].name,
                ours[-1].name,
            ]
        )
    prints = np.array([s.print_ for s in found], FINGERPRINT)
    twins = find_near_duplicates(prints)
    lines = [
        [
            found[t.a].name,
            found[t.b].name,
            "the same picture" if t.exact else f"{t.similarity:.3f}",
            " and ".join(dict.fromkeys(s for s in (found[t.a].split, found[t.b].split) if s))
            or "-",
        ]
        for t in twins
    ]
    across = sum(" and " in line[3] for line in lines)
    words = f"{len(twins)} of {len(found)} captures resemble an earlier one" + (
        f", {across} of them across the split: validation scores flatter." if across else "."
    )
    return (
        paragraph(
            "A session's captures show one scene; a split between them flatters (tools/shard.py"
            " --split session)."
        )
        + table(["session", "captures", "split", "first", "last"], rows[:100], words=True)
        + paragraph(words)
        + (
            table(["capture", "resembles", "similarity", "split"], lines[:100], words=True)
            if lines
            else ""
        )
    )


def thumbnails(found: list[Seen], most: int) -> str:
    chosen = [
        found[i]
        for i in sorted(
            {round(k * (len(found) - 1) / max(most - 1, 1)) for k in range(min(most, len(found)))}
        )
    ]
    items = []
    for s in chosen:
        rgb, depth = s.thumbs
        depth = np.asarray(
            Image.fromarray(depth).resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.NEAREST)
        )
        items.append(
            image_tag(
                np.hstack([rgb, depth]),
                f"{s.name}: {s.near_mm:.0f} .. {s.far_mm:.0f} mm, {s.valid:.0%} measured, grey"
                f" {s.luminance:.0f}{f', {s.split}' if s.split else ''}",
            )
        )
    return paragraph(
        f"{len(chosen)} of {len(found)}, evenly spread; depth from its own 1st (red) to 99th"
        " percentile (blue), grey where nothing was measured."
    ) + grid(items)
