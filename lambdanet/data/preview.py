"""What a set of images looks like before it is written: tables of classes, sizes and copies."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lambdanet.data import contact_sheet, duplicates, overview, picture_facts
from lambdanet.data.class_folders import printable
from lambdanet.data.picture_set import PictureSet

WIDTH = 120  # columns where there is no terminal
MOST_CLASSES = 40  # rows of the terminal's table; files have all


def show(found: PictureSet) -> None:
    """Prints the tables; of very many classes the largest and the smallest."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for table in tables(found, MOST_CLASSES):
        console.print(table)


def overview_of(found: PictureSet) -> overview.Overview:
    """Returns the contact sheet, and the tables with all classes and all that was said."""
    file = io.StringIO()
    console = Console(file=file, width=WIDTH, highlight=False)
    for table in tables(found, len(found.folder.class_names)):
        console.print(table)
    return overview.make(
        contact_sheet.draw(found.folder),
        file.getvalue().splitlines(),
        warnings=found.warnings(),
        notes=notes(found),
        copies=[" = ".join(f"{c.split}: {printable(c.name)}" for c in of) for of in found.copies],
        findings=found.listing.findings.lines(),
    )


def notes(found: PictureSet) -> tuple[str, ...]:
    """Returns what the user should know beside the tables."""
    return (*found.folder.notes, *picture_facts.notes(found.facts.values()))


def tables(found: PictureSet, most: int) -> list[Table]:
    """Returns tables of the classes, the sizes, and pictures that occur more than once.

    Args:
        found: the set.
        most: classes that the first table may have.
    """
    shown = [_classes(found, most)]
    if found.facts:
        shown.append(_sizes(found))
    if found.copies:
        shown.append(_copies(found))
    return shown


def _classes(found: PictureSet, most: int) -> Table:
    names, splits = found.folder.class_names, found.folder.splits
    counts = np.array(
        [
            np.bincount([label for _, label in rows], minlength=len(names))[: len(names)]
            for rows in splits.values()
        ]
    ).reshape(len(splits), len(names))
    totals = counts.sum(axis=0)
    order = np.argsort(-totals, kind="stable")
    rows = [
        (printable(names[i]), *counts[:, i], totals[i], f"{100 * totals[i] / totals.sum():.1f} %")
        for i in order
    ]
    rows += [
        (printable(name), *["-"] * (len(splits) + 1), "not read") for name in found.listing.unread
    ]
    if len(rows) > most:
        left = (f"... {len(rows) - most} more ...", *[""] * (len(splits) + 2))
        rows = [*rows[: most // 2], left, *rows[len(rows) - (most - most // 2) :]]
    whole = max(int(totals.sum()), 1)
    all_of_it = "100.0 %" if totals.sum() else "-"
    footer = [f"{len(names)} classes", *counts.sum(axis=1), totals.sum(), all_of_it]
    share = ["", *(f"{100 * count / whole:.1f} %" for count in counts.sum(axis=1)), "", ""]
    footer = [f"{a}\n{b}" for a, b in zip(footer, share, strict=True)]
    return _table(("class", *splits, "all", "share"), rows, footer=footer)


def _sizes(found: PictureSet) -> Table:
    of_area = sorted(found.facts.items(), key=lambda item: item[1].size[0] * item[1].size[1])
    rows = []
    for what, at in (("smallest", 0), ("median", len(of_area) // 2), ("largest", -1)):
        file, facts = of_area[at]
        rows.append((what, "{} x {}".format(*facts.size), printable(file)))
    sides = sorted(min(facts.size) for facts in found.facts.values())
    rows.append(("median of the short sides", sides[len(sides) // 2], ""))
    return _table(("size", "width x height", "image"), rows, left=(2,))


def _copies(found: PictureSet) -> Table:
    splits = list(found.folder.splits)
    rows = [
        (f"of {other}, in {one} too", len(pairs))
        for i, one in enumerate(splits)
        for other in splits[i + 1 :]
        if (pairs := duplicates.across(found.copies, one, other))
    ]
    rows += [(f"within {name}", n) for name, n in duplicates.repeated(found.copies).items()]
    if pairs := duplicates.conflicts(found.copies):
        rows.append(("under two classes", len(pairs)))
    return _table(("the same image, byte for byte", "times"), rows)


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    left: tuple[int, ...] = (),
    footer: Sequence[str] = (),
) -> Table:
    """Returns a table whose first column, and those of `left`, are aligned left."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=bool(footer))
    for number, name in enumerate(columns):
        table.add_column(
            Text(name),
            footer=Text(footer[number]) if footer else "",
            justify="left" if number == 0 or number in left else "right",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table
