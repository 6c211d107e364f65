"""A report's HTML: what each record becomes, and that no text of a user becomes markup."""

from pathlib import Path

import numpy as np
import pytest
from helpers.html_pages import read

from depthdist.reports.drawings import INK, colorize, jpeg_figure, make_axes, svg_figure
from depthdist.reports.html_page import (
    Cell,
    Grid,
    Heading,
    Paragraph,
    Preformatted,
    Section,
    Table,
    render_page,
)

HOSTILE_TEXT = '<b> & "quotes" $x$ {{ 7 * 7 }} \'é'


def render(*blocks):
    return render_page("title", [Section("section", blocks)])


def figure(caption, title="title"):
    fig, axes = make_axes(title, "x", "y")
    axes.plot([0, 1], [0, 1], color=INK)
    return svg_figure(fig, caption)


@pytest.mark.parametrize(
    "block",
    [
        Heading(HOSTILE_TEXT),
        Paragraph(HOSTILE_TEXT),
        Paragraph(HOSTILE_TEXT, "warn"),
        Preformatted(HOSTILE_TEXT),
        Table([HOSTILE_TEXT], [["cell"]]),
        Table(["head"], [[HOSTILE_TEXT]], words=True),
        Table(["head"], [[Cell(HOSTILE_TEXT, best=True)]]),
        Table(["head"], [[Cell("cell", note=HOSTILE_TEXT)]]),
        Grid([figure(HOSTILE_TEXT)]),
        Grid([figure("caption", title=HOSTILE_TEXT)]),
        Grid([jpeg_figure(np.zeros((4, 6, 3), np.uint8), HOSTILE_TEXT)]),
    ],
    ids=lambda block: type(block).__name__,
)
def test_any_text_is_shown_as_it_is(block, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render(block), "utf-8")
    assert HOSTILE_TEXT in read(page)
    assert "<b>" not in page.read_text()


def test_titles_are_shown_as_they_are(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render_page(HOSTILE_TEXT, [Section(HOSTILE_TEXT, [])], HOSTILE_TEXT), "utf-8")
    assert read(page).count(HOSTILE_TEXT) == 5, "title, heading, subtitle, link, section"


def test_a_cells_note_stands_below_and_only_the_best_is_marked():
    page = render(Table(["", "m"], [["a", Cell("1.0", "0.9..1.1", best=True)], ["b", Cell("2")]]))
    assert '<td class="best">1.0<small>0.9..1.1</small></td>' in page
    assert "<td>2</td>" in page


def test_sections_are_linked_in_their_order():
    page = render_page("title", [Section("first", []), Section("second", [])])
    assert '<a href="#s0">first</a><a href="#s1">second</a>' in page
    assert page.index('<h2 id="s0">first') < page.index('<h2 id="s1">second')


def test_a_drawing_takes_the_readers_color_and_the_pages_width():
    drawing = figure("caption")
    tag = drawing.svg.partition(">")[0]
    assert INK not in drawing.svg and "currentColor" in drawing.svg
    assert "viewBox" in tag and "width=" not in tag and "height=" not in tag


def test_the_same_figure_is_the_same_text():
    assert figure("caption") == figure("caption")


@pytest.mark.parametrize(("width", "shown"), [(600, 600), (1920, 960)])
def test_images_are_made_smaller_never_larger(width, shown):
    photo = jpeg_figure(np.zeros((width // 2, width, 3), np.uint8), "caption")
    assert (photo.width, photo.height) == (shown, shown // 2)


def test_maps_have_the_colormaps_ends_and_their_own_color_for_nan():
    from matplotlib import colormaps

    colors = colormaps["gray"].with_extremes(bad="red")
    shown = colorize(np.array([[5.0, 15.0, np.nan, 99.0]]), 5.0, 15.0, colors)
    assert shown.tolist() == [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [255, 255, 255]]]


def test_the_templates_are_part_of_the_package():
    """An installed copy has what setup.cfg names."""
    from configparser import ConfigParser

    import depthdist

    root = Path(depthdist.__file__).parent
    config = ConfigParser()
    config.read(root.parent / "setup.cfg")
    packaged = {
        path
        for pattern in config["options.package_data"]["depthdist"].split()
        for path in root.glob(pattern)
    }
    assert packaged >= set((root / "reports/templates").iterdir())


def test_a_logarithmic_axis_has_numbers_and_no_formulas():
    fig, axes = make_axes("loss", "step", "")
    axes.plot([1, 2], [0.02, 300.0], color=INK)
    axes.set_yscale("log")
    svg = svg_figure(fig, "loss").svg
    assert ">100<" in svg and ">1<" in svg and "mathdefault" not in svg
