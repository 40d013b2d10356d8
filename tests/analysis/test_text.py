"""Names that look like markup are shown as what they are: in pictures, Markdown, on the console."""

import io

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from lambdanet.analysis import figure_text, text
from lambdanet.analysis.figure_text import has_glyphs, literal_text
from lambdanet.drawing import names

NAMES = ["US$", "$5_$10", "$a$", r"\$", r"a\$b$", "a_b^c", "<none>", "{x}", "100 %"]


def drawn(name, **options):
    figure = Figure(figsize=(2, 0.3), dpi=50)
    figure.text(0, 0.3, name, **options)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize("name", NAMES)
def test_pictures_take_nothing_for_a_formula(name):
    with literal_text():
        picture = drawn(figure_text.figure_text(name))
    np.testing.assert_array_equal(picture, drawn(name, parse_math=False))
    assert (picture < 255).any()


@pytest.mark.parametrize(
    "name, shown",
    [
        ("two\nlines\t", r"two\nlines\t"),
        ("", "''"),
        ("  ", "'  '"),
        ("\udcff.png", r"\udcff.png"),  # a file name that is not UTF-8
        ("a\u202eb\x00", r"a\u202eb\x00"),  # would turn the direction of what follows
        ("é ß Ж π 100 % ✓", "é ß Ж π 100 % ✓"),
    ],
)
def test_what_cannot_be_seen_is_escaped(name, shown):
    assert names.visible(name) == shown
    assert figure_text.figure_text(name) == shown


def test_a_character_without_a_font_is_its_code_point():
    assert figure_text.figure_text("中a") == r"\u4e2da" and not has_glyphs("中a")
    assert has_glyphs("Ж two\nlines")


def test_an_installed_font_is_used_for_what_the_usual_one_lacks(tmp_path, monkeypatch, recwarn):
    """A font with one character, under the name of one of the fallbacks."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for start, *points in ([(0, 0), (0, 800), (800, 800), (800, 0)],):
        pen.moveTo(start)
        for point in points:
            pen.lineTo(point)
        pen.closePath()
    glyph = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "middle"])
    builder.setupCharacterMap({0x4E2D: "middle"})
    builder.setupGlyf({".notdef": glyph, "middle": glyph})
    builder.setupHorizontalMetrics({".notdef": (900, 0), "middle": (900, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": figure_text.FALLBACK_FONTS[0], "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "font.ttf")
    fonts = font_manager.fontManager
    monkeypatch.setattr(fonts, "ttflist", list(fonts.ttflist))
    fonts.addfont(tmp_path / "font.ttf")
    caches = (figure_text._installed_fonts, figure_text._glyphs)
    for cache in caches:
        cache.cache_clear()
    try:
        assert figure_text.figure_text("中a文") == r"中a\u6587"
        with literal_text():
            figure = Figure()
            figure.suptitle(figure_text.figure_text("中a"))
            figure.savefig(io.BytesIO(), format="png")
        assert not [str(w.message) for w in recwarn]
    finally:
        for cache in caches:
            cache.cache_clear()


def test_long_names_lose_their_middle_to_fit():
    with literal_text():
        for name in ("i" * 10_000, "W" * 300, "class_with_a_long_prefix_001", "$" * 100):
            short = figure_text.figure_text(name, 80, size=9, weight="bold").replace(r"\$", "$")
            kept = short.split("…")
            assert len(kept) == 2 and name.startswith(kept[0]) and name.endswith(kept[1])
            assert len(short) > 5
    assert figure_text.figure_text("short", 80) == "short"
    assert figure_text.figure_text("class_with_a_long_prefix_001", 80).endswith("_001")


@pytest.mark.parametrize("name", [*NAMES, "a|b", "`x`", "*b*", "[a](b)", "# h", "&lt;", ":cat:"])
def test_markdown_is_escaped(name):
    assert "\\" not in text.markdown_text("Tinca tinca (100 %), 1.5-2.0: fish")
    escaped = text.markdown_text(name)
    # Every special character is behind a backslash of its own, and nothing else is.
    plain, i = "", 0
    while i < len(escaped):
        if escaped[i] == "\\":
            i += 1
        else:
            assert escaped[i] not in "\\`*_{}[]<>#|~&$^!" and escaped[i : i + 2] != ":c"
        plain, i = plain + escaped[i], i + 1
    assert plain == name


def test_tables_in_markdown():
    lines = text.markdown_table(("a", "b"), [("1", r"x\|y")], left=(0,))
    assert lines == ["| a | b |", "|---|---:|", r"| 1 | x\|y |"]
    assert text.markdown_table(("a", "b"), [])[1] == "|---|---|"


@pytest.mark.parametrize("width", [30, 200])
def test_console_tables_lose_nothing_and_take_nothing_for_markup(width):
    path = "/a/long/path/" * 10 + "[bold]picture[/].png"
    table = text.console_table(
        ("file", "[red]n"), [(path, 12), ("two\nlines", "")], right=(1,), footer=("total", "13")
    )
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    narrow = stream.getvalue().replace(" ", "").replace("\n", "").replace("12", "")
    assert path.replace(" ", "") in narrow
    assert r"two\nlines" in stream.getvalue() and "[red]n" in stream.getvalue()
