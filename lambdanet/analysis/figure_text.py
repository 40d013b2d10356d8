"""Text in pictures, drawn literally and within the place it has.

Matplotlib takes a pair of `$` for a formula, and a wrong formula for an error; a line break, a
character that no font has or a long name spoils what is around it.
"""

from __future__ import annotations

import contextlib
import functools

import matplotlib
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text
from matplotlib.transforms import Affine2D

from lambdanet.drawing.names import escape, visible

# Families beside matplotlib's own that are taken if they are installed, for what DejaVu lacks.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Unifont",
)


class InsideText(Text):
    """Text that stays within its axes: it is moved as it is drawn, for only then its place in
    pixels is known; what is larger than the axes is cut at their border.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draws it where it is inside, its left end and its top rather than the others."""
        if self.axes is None:
            return super().draw(renderer)
        frame, own = self.axes.get_window_extent(renderer), self.get_window_extent(renderer)
        right = max(min(0.0, frame.x1 - own.x1), frame.x0 - own.x0)
        up = min(max(0.0, frame.y0 - own.y0), frame.y1 - own.y1)
        before = self.get_transform()
        self.set_transform(before + Affine2D().translate(right, up))
        super().draw(renderer)
        self.set_transform(before)


DPI = 110
"""Dots per inch of reports. Letters are fitted to whole dots, so that at 72 they are up to a tenth
narrower."""


def literal_text() -> contextlib.AbstractContextManager:
    """Returns the matplotlib settings that `figure_text` counts on: draw and save under it.

    No TeX, and behind the user's own font DejaVu and those of `FALLBACK_FONTS` that are installed.
    """
    settings = {
        "font.family": [*matplotlib.rcParams["font.family"], "DejaVu Sans", *_installed_fonts()],
        "text.usetex": False,
        "text.parse_math": True,
    }
    return matplotlib.rc_context(settings)


def figure_text(
    text: str, width: float | None = None, *, size: float = 10, weight: str = "normal"
) -> str:
    r"""Returns text for matplotlib that is drawn as it is.

    `$` is escaped (a pair of them would be a formula, and a wrong formula an exception), invisible
    characters and those that no installed font has are written as their escapes, and text that is
    too wide loses its middle, since names often differ in their last part only.

    Args:
        text: anything.
        width: most points (1/72 inch); None = any.
        size: of the font, in points, for the width.
        weight: of the font, for the width.

    Returns:
        The text, to be drawn with `parse_math` on (the default) and without TeX.
    """
    known = _glyphs()
    text = "".join(c if ord(c) in known else escape(c) for c in visible(text))
    if width is not None:
        text = _shorten(text, width, FontProperties(size=size, weight=weight))
    return text.replace("$", r"\$")


def text_width(text: str, *, size: float = 10, weight: str = "normal") -> float:
    """Returns how wide the text of `figure_text` is drawn, in points (1/72 inch): its widest line.

    Args:
        text: lines.
        size: of the font, in points.
        weight: of the font.
    """
    font = FontProperties(size=size, weight=weight)
    lines = text.replace(r"\$", "$").split("\n")
    return max(_points(line, font) for line in lines)


def has_glyphs(text: str) -> bool:
    """Whether the installed fonts have every visible character of the text."""
    return all(ord(c) in _glyphs() for c in visible(text))


def _shorten(text: str, width: float, font: FontProperties) -> str:
    def fits(candidate: str) -> bool:
        return _points(candidate, font) <= width

    most = max(int(8 * width / font.get_size_in_points()), 2)  # even 'i' is wider than an eighth
    if len(text) <= most and fits(text):
        return text
    for kept in range(min(most, len(text)) - 1, 1, -1):
        candidate = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        if fits(candidate):
            return candidate
    return text[:1] + "…"


def _points(line: str, font: FontProperties) -> float:
    return float(_renderer().get_text_width_height_descent(line, font, False)[0]) * 72 / DPI


@functools.cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


@functools.cache
def _installed_fonts() -> tuple[str, ...]:
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FALLBACK_FONTS if name in installed)


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points that DejaVu or an installed fallback has, in regular and in bold."""
    found: set[int] = set()
    for family in ("DejaVu Sans", *_installed_fonts()):
        faces = [
            get_font(fontManager.findfont(FontProperties(family=family, weight=weight)))
            for weight in ("normal", "bold")
        ]
        found |= set.intersection(*(set(face.get_charmap()) for face in faces))
    return frozenset(found)
