"""Contact sheets of pictures that show several classes each: which are shown of a class, and how
large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from lambdanet.data import sheet_layout
from lambdanet.data.sheet_layout import chosen
from lambdanet.drawing import box_drawing

SIDE = 240  # most pixels of a picture
COLUMNS = 4  # pictures beside each other, of one class or of several
OF_A_CLASS = (8, 4, 2, 1)
"""Pictures of a class: the first number of which all classes together have no more than
`MOST_PICTURES`."""
MOST_PICTURES = 160
LETTERS, WIDEST = 11, 120  # pixels of a name in a picture: of its letters, and of the whole


class Place(NamedTuple):
    """Where pictures show a class: a split, the positions of these pictures in it, in order, and
    how much of the class each shows.
    """

    split: str
    rows: np.ndarray
    amounts: np.ndarray


def largest(places: Sequence[Place]) -> Place | None:
    """Returns the place with the most pictures, the first of equal ones; None without pictures."""
    best = max(places, key=lambda place: len(place.rows), default=None)
    return best if best is not None and len(best.rows) else None


def pick(places: Mapping[int, Place], count: int) -> dict[int, list[int]]:
    """Chooses pictures of every class: spread evenly over the half that shows most of it, and as
    far as possible none that another class has got.

    Args:
        places: class -> where it is.
        count: most pictures of a class.

    Returns:
        Class -> positions in its split, in order: a pure function of the arguments.
    """
    taken: set[tuple[str, int]] = set()
    picked = {}
    for label in sorted(places, key=lambda label: len(places[label].rows)):  # the rarest first
        split, rows, amounts = places[label]
        ranked = [int(rows[i]) for i in np.argsort(-amounts, kind="stable")]
        half = ranked[: max(count, (len(ranked) + 1) // 2)]
        free = [row for row in half if (split, row) not in taken]
        if len(free) < count:
            others = [row for row in ranked if row not in free]
            others.sort(key=lambda row: (split, row) in taken)
            free += others[: count - len(free)]
        picked[label] = chosen(sorted(free), count)
        taken.update((split, row) for row in picked[label])
    return picked


def draw(
    names: Sequence[str],
    *,
    place_of: Callable[[int], Place | None],
    lines_of: Callable[[int], list[str]],
    colour_of: Callable[[int], tuple[int, int, int]],
    picture_of: Callable[[str, int], Image.Image],
    below: Sequence[tuple[str, tuple[int, int, int] | None]] = (),
) -> Image.Image:
    """Draws the sheet: for every class its colour, its name, what is said of it, and pictures.

    Up to `MOST_PICTURES` pictures are drawn, whatever the number of classes: of many classes fewer
    pictures each, and of more than `MOST_PICTURES` classes evenly chosen ones, which the last line
    says.

    Args:
        names: of the classes.
        place_of: class -> where pictures show it; None = nowhere.
        lines_of: class -> what is said of it.
        colour_of: class -> its colour in the pictures.
        picture_of: (split, position) -> the drawn picture, of at most `SIDE` pixels a side.
        below: last lines; see `sheet_layout.arrange`.
    """
    shown = chosen(range(len(names)), MOST_PICTURES)
    most = next(number for number in OF_A_CLASS if number * len(shown) <= MOST_PICTURES)
    places = {label: place for label in shown if (place := place_of(label)) is not None}
    picked = pick(places, most)
    drawn: dict[tuple[str, int], Image.Image] = {}
    rows = []
    for label in shown:
        keys = [(places[label].split, row) for row in picked.get(label, ())]
        for key in keys:
            if key not in drawn:
                drawn[key] = picture_of(*key)
        lines = lines_of(label) if keys else ["in no picture"]
        pictures = [drawn[key] for key in keys]
        rows.append(sheet_layout.Row(names[label], lines, pictures, colour_of(label)))
    below = [*below, *sheet_layout.more_classes(len(names) - len(shown))]
    columns = min(most, COLUMNS)
    beside = COLUMNS // columns
    return sheet_layout.arrange(rows, side=SIDE, columns=columns, beside=beside, below=below)


def name_size(name: str) -> tuple[int, int]:
    """Returns the (width, height) of a name that `write_names` writes."""
    return box_drawing.label_size(name, LETTERS, WIDEST)


def write_names(
    drawn: Image.Image,
    boxes: np.ndarray,
    colours: Sequence[tuple[int, int, int]],
    names: Sequence[str],
) -> None:
    """Writes names of classes into a picture of a sheet, the first ones first: those for which no
    room is left are left out, and the colours say what they are.

    Args:
        drawn: the picture.
        boxes: what the names stand at, [n, 4]; see `box_drawing.write_labels`.
        colours: of the classes.
        names: of the classes.
    """
    box_drawing.write_labels(drawn, boxes, colours, names, size=LETTERS, widest=WIDEST, apart=True)
