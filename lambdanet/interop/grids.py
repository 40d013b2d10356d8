"""Which map or window a table of positions stands for.

Such tables are lists: 64 rows are a map of 8x8, of 4x16 or of 16x4. So a file's tables and a
model's are compared by (height, width), never by their rows alone. A module with such tables says
which and for what size in its method `table_grids`, {path below it: Grid}. Files of ours say it in
their metadata; of others it has to be known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx

from lambdanet.interop.reading import WeightsFileError, brief

Size = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """What the rows of a table stand for.

    Attributes:
        kind: 'map': one row per position. 'window': one row per offset between two positions of a
            window, (2h - 1)(2w - 1).
        size: height and width.
        extra: rows before these (1 for a class token).
    """

    kind: str
    size: Size
    extra: int = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        sides = self.size if self.kind == "map" else [2 * side - 1 for side in self.size]
        return math.prod(sides) + self.extra

    def __str__(self) -> str:
        return f"a {self.kind} of {'x'.join(map(str, self.size))}"


def grids_of(model: nnx.Module) -> dict[str, Grid]:
    """Returns path -> grid of every table of positions in a model; abstract will do."""
    return {
        "/".join([*map(str, at), name]): grid
        for at, module in nnx.iter_modules(model)
        if hasattr(module, "table_grids")
        for name, grid in module.table_grids().items()
    }


@dataclass(frozen=True)
class Known:
    """What is known of the sizes of a file's tables.

    Attributes:
        sizes: path -> (height, width), from the file's metadata.
        image_size: (height, width) of the images that the file was made for, from its metadata.
        supposed: path -> grid of the model that the file was made with, by the user's word.
    """

    sizes: Mapping[str, Size] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    supposed: Mapping[str, Grid] = field(default_factory=dict)

    def grid(self, path: str, rows: int, wanted: Grid) -> Grid | None:
        """Returns the grid of a table in the file, None where it is not known.

        In this order: as the metadata says; the shape nearest to the images'; as the user says,
        where that has as many rows; the model's own if it is square and has as many rows, since
        nearly all published networks are for square images.

        Args:
            path: of the table.
            rows: that it has in the file.
            wanted: the model's.

        Raises:
            ValueError: the metadata says a size with another number of rows.
        """
        if path in self.sizes:
            found = Grid(wanted.kind, self.sizes[path], wanted.extra)
            if found.rows != rows or len(found.size) != len(wanted.size):
                raise ValueError(f"it has {rows} rows, its file says {found}")
            return found
        if wanted.kind == "map" and self.image_size and rows > wanted.extra:
            return Grid("map", _shape_of(rows - wanted.extra, self.image_size), wanted.extra)
        for grid in (self.supposed.get(path), wanted if len(set(wanted.size)) == 1 else None):
            if grid and grid.rows == rows:
                return grid
        return None

    def problem(self, path: str, rows: int, wanted: Grid) -> str:
        """Returns why a table of the file is not as the model wants it, '' if it is; raises as
        `grid`.
        """
        found = self.grid(path, rows, wanted)
        if found is None:
            supposed = self.supposed.get(path)
            told = f"; {supposed}, as supposed, has {supposed.rows}" if supposed else ""
            return (
                f"its {rows} rows do not say of which height and width{told}; the model has "
                f"{wanted} (the import program: --source-option)"
            )
        if found == wanted:
            return ""
        return f"it is for {found}, the model has {wanted} (the import program: --resize-tables)"


def checker(
    known: Known, grids: Mapping[str, Grid]
) -> Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray]:
    """Returns the function for `names.convert` that refuses tables of another size."""

    def check(path: str, array: np.ndarray, _shape: tuple[int, ...]) -> np.ndarray:
        if path in grids and (problem := known.problem(path, rows_of(array), grids[path])):
            raise ValueError(problem)
        return array

    return check


def rows_of(array: np.ndarray) -> int:
    """Returns the rows of a table: its last axis but one, of a vector its length."""
    return array.shape[max(array.ndim - 2, 0)] if array.ndim else 0


def to_metadata(grids: Mapping[str, Grid]) -> str:
    """Returns the sizes of a model's tables as text for a file's metadata."""
    return json.dumps({path: grid.size for path, grid in grids.items()}, sort_keys=True)


def from_metadata(stored: Mapping[str, Any], model: Mapping[str, Any]) -> Known:
    """Returns what the metadata of a file of ours say.

    Args:
        stored: what `to_metadata` wrote, parsed; {} in older files.
        model: name and options of the model that the file was made with.

    Raises:
        WeightsFileError: sizes that are none.
    """
    for path, size in stored.items():
        if not _is_size(size):
            raise WeightsFileError(
                f"the file's metadata 'grids' has {brief(repr(size))} for {brief(path)}; allowed: "
                "a list of positive integers"
            )
    image_size = model.get("image_size")
    known = _is_size(image_size) and len(image_size) == 2
    sizes = {path: tuple(size) for path, size in stored.items()}
    return Known(sizes, tuple(image_size) if known else None)


def _is_size(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 3:
        return False
    return all(type(side) is int and 0 < side < 2**31 for side in value)


def _shape_of(count: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (rows, columns) with `count` positions whose shape is nearest to the images'.

    This finds the map of any stride, if both axes are rounded the same way: with a x b positions
    of stride s, height / width < (a + 1) / b (rounded down; up: a / (b - 1)), which is not nearer
    to any a' x b' of as many positions and a' > a than to a x b.
    """
    wanted = math.log(image_size[0] / image_size[1])
    sides = [n for n in range(1, math.isqrt(count) + 1) if count % n == 0]
    pairs = [pair for n in sides for pair in ((n, count // n), (count // n, n))]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - wanted))
