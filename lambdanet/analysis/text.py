"""Text as people see it, shown literally: in Markdown and on the console (in pictures:
`lambdanet.analysis.figure_text`).

Names of classes, files and layers come from data. `US$`, `a_b`, `<none>`, `x|y` or a line break
must appear as what they are, never as markup.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lambdanet.drawing.names import visible

MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$^!]|:(?=\S))")  # ':' begins an address or a smiley


def markdown_text(value: Any) -> str:
    """Returns a value as Markdown that is read as it is: in a line, a heading or a table's cell."""
    return MARKDOWN.sub(r"\\\1", visible(str(value)))


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] | None = None
) -> list[str]:
    """Returns the lines of a Markdown table.

    Args:
        head: the columns' names.
        rows: cells, which are Markdown: what is data goes through `markdown_text` first.
        left: numbers of the columns that are aligned left, the others being aligned right; None =
            no column says how it is aligned.
    """
    rule = ["---" if left is None or i in left else "---:" for i in range(len(head))]
    return [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|"] + [
        f"| {' | '.join(row)} |" for row in rows
    ]


def console(width: int) -> Console:
    """Returns a console for tables: as wide as the terminal, or `width` columns in a pipe."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def console_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Collection[int] = (),
    footer: Sequence[str] = (),
) -> Table:
    """Returns a rich table whose cells are shown literally and whole: what is too wide is folded.

    Args:
        columns: their names.
        rows: cells; anything but text is shown by `str`.
        right: numbers of the columns that are aligned right.
        footer: a last line, such as sums.
    """
    table = Table(show_footer=bool(footer), box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(
            Text(name),
            footer=Text(footer[number]) if footer else "",
            justify="right" if number in right else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(visible(cell) if str(cell) else "") for cell in row))
    return table
