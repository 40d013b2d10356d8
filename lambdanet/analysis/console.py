"""What eval.py prints: texts and tables, as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lambdanet.analysis import text as text_lib

console = text_lib.console(130)


def say(text: str) -> None:
    """Prints a text as it is."""
    console.print(text, markup=False, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table; long cells are folded, never cut."""
    say(title)
    console.print(text_lib.console_table(columns, rows))


def check_least(name: str, value: int, least: int) -> None:
    """Raises ValueError if an option of a mode is too small."""
    if value < least:
        raise ValueError(f"--{name}={value}; allowed: {least} or more")
