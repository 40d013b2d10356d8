"""Names in pictures: on one line, of letters that the font has, within the place they have.

Names of classes and files come from data: line breaks, letters that the font lacks and names of any
length occur in them.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from PIL import ImageFont

JOINERS = "\u200c\u200d"  # invisible, but part of how some scripts are written
FAMILY = "DejaVu Sans"
"""Comes with matplotlib, and has Latin, Greek, Cyrillic, Hebrew and Arabic letters."""


def visible(text: Any) -> str:
    r"""Returns text on one line: what is invisible (line breaks, control characters, halves of
    surrogate pairs from file names that are not UTF-8) is written as its escape, `\n`; text that
    is empty or blank in quotes.
    """
    text = str(text)
    if not text.strip():
        text = repr(text)
    return "".join(escape(c) if _invisible(c) else c for c in text)


def _invisible(character: str) -> bool:
    category = unicodedata.category(character)
    return (category[0] == "C" and character not in JOINERS) or category in ("Zl", "Zp")


def escape(text: str) -> str:
    r"""Returns the code points of text, as `\u4e2d`."""
    return text.encode("unicode_escape").decode()


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns `FAMILY` for Pillow, its letters `size` pixels high."""
    from matplotlib.font_manager import findfont  # slow to import, and not every program draws

    return ImageFont.truetype(findfont(FAMILY), size)


@functools.cache
def characters() -> frozenset[int]:
    """Returns the code points that `FAMILY` has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FAMILY)).get_charmap())


def drawable(name: Any, width: float, size: int) -> str:
    r"""Returns a name as `font` can draw it: what it lacks as its escape ('\u732b'), and of what is
    too wide the middle left out, since names often differ in their last part only.

    Args:
        name: anything.
        width: most pixels; two letters, or what they are written as, may take more.
        size: of the font.
    """
    letters = font(size)
    whole = "".join(c if ord(c) in characters() else escape(c) for c in visible(name))
    if letters.getlength(whole) <= width:
        return whole
    most = min(len(whole) - 1, int(4 * width / size))  # even 'i' is wider than a quarter
    for kept in range(most, 1, -1):
        short = f"{whole[: (kept + 1) // 2]}…{whole[len(whole) - kept // 2 :]}"
        if letters.getlength(short) <= width:
            return short
    return f"{whole[:1]}…"
