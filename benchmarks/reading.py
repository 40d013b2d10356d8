"""The hand-written part of a document that a command writes anew."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end of the reading -->"
NOT_WRITTEN = "(not written yet)"


def begin(command: str) -> str:
    """Returns the mark before the part; `command` writes the rest."""
    return f"<!-- reading: written by hand, kept by `{command}` -->"


def read(document: Path, command: str) -> str:
    """Returns the hand-written part of an existing document; ValueError if its marks are broken."""
    if not document.is_file():
        return NOT_WRITTEN
    text, first = document.read_text(), begin(command)
    if text.count(first) != 1 or text.count(END) != 1 or text.index(first) > text.index(END):
        raise ValueError(
            f"{document}: the hand-written part must stand once between {first!r} and {END!r}"
        )
    return text[text.index(first) + len(first) : text.index(END)].strip()
