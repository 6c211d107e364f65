"""A report as one HTML file that needs no other file: records for its content, templates for HTML.

    curves = Section("Curves", [Paragraph("What they show."), Grid([svg_figure(fig, "Loss")])])
    Path("report.html").write_text(render_page("runs/mine", [curves]), encoding="utf-8")

The page follows the reader's light or dark color scheme and works from a width of 390 pixels.
It contains no script and no font, and requests nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    macro: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Paragraph:
    """One paragraph: plain, in the secondary color, or marked as a warning."""

    text: str
    kind: Literal["", "soft", "warn"] = ""
    macro: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Preformatted:
    """Text in a fixed-width font whose line breaks and spaces are kept."""

    text: str
    macro: ClassVar[str] = "preformatted"


@dataclass(frozen=True)
class Cell:
    """A table cell with a small note below its text; `best` highlights it."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table of numbers, or of words (left-aligned, lines may wrap)."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: bool = False
    macro: ClassVar[str] = "table"


@dataclass(frozen=True)
class Drawing:
    """A line drawing that uses the reader's text color.

    svg  an SVG element's text after "<svg"
    """

    svg: str
    caption: str
    macro: ClassVar[str] = "drawing"


@dataclass(frozen=True)
class Photo:
    """A JPEG image: its bytes in Base64, and its size in pixels."""

    base64: str
    width: int
    height: int
    caption: str
    macro: ClassVar[str] = "photo"


@dataclass(frozen=True)
class Grid:
    """Figures side by side, as many as the window has room for; `max_width` is a CSS length."""

    figures: Sequence[Drawing | Photo]
    max_width: str = "none"
    macro: ClassVar[str] = "grid"


Block = Heading | Paragraph | Preformatted | Table | Grid


@dataclass(frozen=True)
class Section:
    """A part of the page with a title that the navigation links to."""

    title: str
    blocks: Sequence[Block]


def render_page(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """Return the HTML of the whole page."""
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("page.html")
    return template.render(title=title, subtitle=subtitle, sections=sections)
