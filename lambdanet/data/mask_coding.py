"""How the masks of a folder say which class a pixel has: by class numbers, or by colours."""

from __future__ import annotations

import collections
import csv
import dataclasses
import os
import unicodedata
from pathlib import Path

import numpy as np

from lambdanet.data import label_maps
from lambdanet.data.class_folders import UNPRINTED

IGNORED_NAME = "ignore"
"""Rows of this name in a palette are colours that count nowhere; there may be several."""


@dataclasses.dataclass(frozen=True)
class Coding:
    """What the values of the masks mean.

    Attributes:
        names: of the classes, in the order of their numbers; () where nobody has said.
        ignore: the value that counts nowhere.
        reduce_zero_label: 0 counts nowhere either, and class c is stored as c + 1.
        colours: colour -> class or IGNORE, the masks are colour pictures; None: they are index
            pictures.
    """

    names: tuple[str, ...] = ()
    ignore: int = label_maps.IGNORE
    reduce_zero_label: bool = False
    colours: dict[tuple[int, int, int], int] | None = None

    def read(self, value: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
        """Returns the label map of a mask, uint8 [h, w]: classes, or IGNORE.

        Args:
            value: the file.
            size: (width, height) that it must have; None: any.

        Raises:
            ValueError: another size; a label or colour that means no class, with its place; no
                index picture.
            OSError: damaged.
        """
        stored = (
            label_maps.read_indices(value)
            if self.colours is None
            else label_maps.read_colours(value)
        )
        label_maps.check_size(stored, size)
        if self.colours is not None:
            return self._by_colour(stored)
        labels = label_maps.translate(
            stored,
            len(self.names) or label_maps.MAX_CLASSES,
            ignore=self.ignore,
            reduce_zero_label=self.reduce_zero_label,
        )
        return labels.astype(np.uint8)

    def _by_colour(self, pixels: np.ndarray) -> np.ndarray:
        codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        colours = np.array(list(self.colours), np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        order = np.argsort(colours)
        at = order[np.searchsorted(colours, codes, sorter=order).clip(max=len(colours) - 1)]
        wrong = colours[at] != codes
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            others = f", and {wrong.sum() - 1} such pixels more" if wrong.sum() > 1 else ""
            colour = tuple(pixels[row, column].tolist())
            raise ValueError(
                f"colour {colour} at row {row}, column {column}{others} is not in the palette; "
                f"colours on edges are no class either: give a row '{IGNORED_NAME}' or masks "
                "without smooth edges"
            )
        return np.array(list(self.colours.values()), np.uint8)[at]


def read_names(path: str | os.PathLike) -> tuple[tuple[str, ...], list[str]]:
    """Reads a text file with one class name per line, in the order of the numbers.

    Returns:
        The names, and what is wrong with them: doubled, empty, unprintable, too many, none.

    Raises:
        OSError: cannot be read.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except ValueError as error:
        return (), [f"{file.name}: is no UTF-8 text ({error})"]
    names = [line.strip() for line in lines]
    return tuple(names), _name_problems(file.name, dict(enumerate(names, 1)))


def read_palette(path: str | os.PathLike) -> tuple[Coding, list[str]]:
    """Reads a CSV file of rows 'name,red,green,blue', one per class in the order of the numbers; a
    first row without numbers is a heading. Rows of the name 'ignore' take no number.

    Returns:
        The coding, and what is wrong with the file: colours or names that are doubled, rows of
        another form, and what `read_names` finds.

    Raises:
        OSError: cannot be read.
    """
    file = Path(path)
    try:
        with open(file, encoding="utf-8-sig", newline="") as content:
            rows = [(n, row) for n, row in enumerate(csv.reader(content), 1) if any(row)]
    except (ValueError, csv.Error) as error:
        return Coding(), [f"{file.name}: is no CSV file ({error})"]
    if rows and not any(cell.strip().isdigit() for cell in rows[0][1]):
        rows = rows[1:]
    colours: dict[tuple[int, int, int], int] = {}
    names: dict[int, str] = {}
    problems = []
    for line, row in rows:
        cells = [cell.strip() for cell in row]
        numbers = [int(cell) for cell in cells[1:] if cell.isdecimal() and int(cell) < 256]
        if len(cells) != 4 or len(numbers) != 3:
            problems.append(
                f"{file.name}: line {line} is {','.join(row)[:60]!r}; it must read "
                "'name,red,green,blue', with colours from 0 to 255"
            )
            continue
        ignored = cells[0].lower() == IGNORED_NAME
        if tuple(numbers) in colours:
            problems.append(f"{file.name}: line {line} has colour {tuple(numbers)} once more")
        colours[tuple(numbers)] = label_maps.IGNORE if ignored else len(names)
        if not ignored:
            names[line] = cells[0]
    problems += _name_problems(file.name, names)
    if problems:
        return Coding(), problems
    return Coding(tuple(names.values()), colours=colours), []


def _name_problems(file: str, names: dict[int, str]) -> list[str]:
    """Returns what is wrong with class names, given by the lines that they stand on."""
    problems = [] if names else [f"{file}: no class names"]
    if len(names) > label_maps.MAX_CLASSES:
        problems.append(f"{file}: {len(names)} classes; allowed: up to {label_maps.MAX_CLASSES}")
    lines = collections.defaultdict(list)
    for line, name in names.items():
        lines[unicodedata.normalize("NFC", name)].append(line)
        if not name or any(unicodedata.category(c) in UNPRINTED for c in name):
            problems.append(f"{file}: line {line}: a class name must have printable characters")
    problems += [
        f"{file}: class {name!r} stands on lines {', '.join(map(str, found))}; names must differ"
        for name, found in lines.items()
        if name and len(found) > 1
    ]
    return problems
