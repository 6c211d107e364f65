"""A report as one HTML file that needs nothing else: text, tables, drawings as SVG in the reader's
colours, pictures inside.

    Path("report.html").write_text(page("runs/mine", [("Curves", drawing(fig, "What they show."))]))

Light or dark, as the reader's system is; from 390 pixels up. No script, no font, no request.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

INK = "#010203"  # in drawings: stands for the reader's text colour
SERIES = (
    "#2a78c8",
    "#d1690e",
    "#2c9a57",
    "#b3418f",
    "#8a6d1d",
    "#5b5fc7",
)  # readable on white and on near-black
escape = html.escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c646d; --line: #d8dce0; --paper: #fdfdfc; --panel: #f3f4f5; --mark: #0b6bcb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa3ad; --line: #363b41; --paper: #15181b; --panel: #1f2327; --mark: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(.8rem, 3vw, 2.4rem) 4rem; max-width: 84rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0 .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere; } p, li { max-width: 75ch; } p { margin: .3rem 0 .7rem; } .soft { color: var(--soft); }
a { color: var(--mark); } nav { font-size: .9rem; margin: .6rem 0; } nav a { margin-right: 1rem; display: inline-block; }
.wide { overflow-x: auto; margin: .6rem 0; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; } thead th { color: var(--soft); font-weight: 600; }
td small { display: block; color: var(--soft); font-weight: 400; } td.best { font-weight: 700; color: var(--mark); } table.words td, table.words th { text-align: left; } table.words td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); } .grid.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
figure { margin: 0; background: var(--panel); border-radius: .5rem; padding: .6rem; } figure img, figure svg { display: block; width: 100%; height: auto; border-radius: .25rem; }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .35rem; overflow-wrap: anywhere; } .warn { border-left: .25rem solid #d1690e; padding: .2rem .8rem; background: var(--panel); }
"""


def page(title: str, sections: Sequence[tuple[str, str]], subtitle: str = "") -> str:
    """The whole file. sections  (title, content in HTML) each"""
    links = "".join(f'<a href="#s{i}">{escape(name)}</a>' for i, (name, _) in enumerate(sections))
    body = "".join(
        f'<h2 id="s{i}">{escape(name)}</h2>\n{content}\n'
        for i, (name, content) in enumerate(sections)
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        f' initial-scale=1"><title>{escape(title)}</title><style>{STYLE}</style>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{escape(title)}</h1>\n<p'
        f' class="soft">{escape(subtitle)}</p>\n<nav>{links}</nav>\n{body}</body></html>\n'
    )


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    best: set[tuple[int, int]] = frozenset(),
    words: bool = False,
) -> str:
    """Cells are text; "a\\nb" shows b small below a. best  (row, column) of cells to mark. words  text, not numbers"""
    lines = []
    for i, row in enumerate(rows):
        cells = []
        for j, value in enumerate(row):
            first, _, below = str(value).partition("\n")
            cells.append(
                f"<td{' class=best' if (i, j) in best else ''}>{escape(first)}{f'<small>{escape(below)}</small>' if below else ''}</td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<div"
        f' class="wide"><table{" class=words" if words else ""}><thead><tr>{"".join(f"<th>{escape(h)}</th>" for h in head)}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def grid(items: Iterable[str], small: bool = False, widest: str = "none") -> str:
    """Figures side by side, as many as there is room for. widest  how wide a figure may get, as in
    CSS
    """
    return (
        f'<div class="grid{" small" if small else ""}" style="max-width:'
        f' {widest}">{"".join(items)}</div>'
    )


def drawing(fig: Figure, caption: str) -> str:
    """A matplotlib figure as SVG, whatever is drawn in INK in the reader's text colour."""
    out = io.StringIO()
    for text in fig.findobj(Text):
        text.set_parse_math(False)  # a run may be called $x$
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        fig.savefig(
            out,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
        count=1,
    )
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def image_tag(image: np.ndarray, caption: str, width: int = 960) -> str:
    """(h, w, 3) uint8, as a JPEG of that width at most."""
    shown = Image.fromarray(image)
    if shown.width > width:
        shown = shown.resize(
            (width, round(shown.height * width / shown.width)), Image.Resampling.LANCZOS
        )
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=88)
    return (
        f'<figure><img src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"'
        f' width="{shown.width}" height="{shown.height}"'
        f' alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def axes(title: str, xlabel: str = "", ylabel: str = "", height: float = 2.9, rows: int = 1):
    """A figure of a grid cell's width, and its axes (with several rows: an array of them), in INK."""
    fig = Figure(figsize=(4.6, height), layout="constrained")
    found = fig.subplots(rows, 1, sharex=True)
    for ax in np.atleast_1d(found):
        ax.set_ylabel(ylabel, fontsize=9, color=INK)
        ax.tick_params(colors=INK, labelsize=8)
        ax.grid(color=INK, alpha=0.12, linewidth=0.6)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set(color=INK, alpha=0.4)
    np.atleast_1d(found)[0].set_title(title, fontsize=10, color=INK)
    np.atleast_1d(found)[-1].set_xlabel(xlabel, fontsize=9, color=INK)
    return fig, found


def legend(ax) -> None:
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend(fontsize=8, frameon=False, labelcolor=INK)
