"""What a prepared set shows of itself, a contact sheet and its tables as text: within the set, or
beside its place as a preview.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lambdanet import atomic

SHEET, SUMMARY = "contact_sheet.png", "summary.txt"


@dataclasses.dataclass(frozen=True)
class Overview:
    """A contact sheet, and the tables with everything that was said."""

    sheet: Image.Image
    text: str


def make(
    sheet: Image.Image,
    tables: Sequence[str],
    *,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    copies: Sequence[str] = (),
    findings: Sequence[str] = (),
) -> Overview:
    """Returns the overview of a set.

    Args:
        sheet: its contact sheet.
        tables: their lines.
        warnings, notes: a line each.
        copies: names of one content, a line each.
        findings: what is wrong, a line each.
    """
    lines = [*tables]
    lines += [f"warning: {text}" for text in warnings]
    lines += [f"note: {text}" for text in notes]
    lines += [f"the same: {text}" for text in copies]
    lines += findings
    return Overview(sheet, "".join(f"{line.rstrip()}\n" for line in lines))


def write(overview: Overview, directory: Path) -> None:
    """Writes both files into the directory of a set.

    Raises:
        OSError: a file cannot be written.
    """
    _write(overview, directory / SHEET, directory / SUMMARY)


def write_preview(overview: Overview, destination: str) -> None:
    """Writes both files beside the place of a set, and says so.

    Args:
        overview: of the set.
        destination: where the set would go.

    Raises:
        OSError: a file cannot be written.
    """
    beside = destination.rstrip("/") + ".preview"
    Path(beside).parent.mkdir(parents=True, exist_ok=True)  # as a prepared set makes it
    _write(overview, Path(f"{beside}.png"), Path(f"{beside}.txt"))
    print(f"{beside}.png, {beside}.txt: written, and nothing else")


def _write(overview: Overview, sheet: Path, text: Path) -> None:
    file = io.BytesIO()
    overview.sheet.save(file, "PNG")
    atomic.write_file(sheet, file.getvalue())
    atomic.write_file(text, overview.text)


def note(destination: str) -> str:
    """Returns a note on both files of a prepared set."""
    return f"{destination}/{SHEET} shows images of every class, {SUMMARY} beside it has all tables"
