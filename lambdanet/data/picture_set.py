"""Images with one class each, out of folders or a table: found, looked at, numbered and divided."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from rich import progress

from lambdanet.data import (
    class_search,
    class_sets,
    duplicates,
    label_table,
    picture_facts,
    splitting,
)
from lambdanet.data.class_folders import printable

IMAGES = "images left out"


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """What was found.

    Attributes:
        listing: what is wrong, and how the source was read.
        folder: the classes and splits.
        facts: file -> what it is like.
        copies: the pictures of every content that more than one has.
    """

    listing: class_sets.Listing
    folder: class_sets.Folder
    facts: dict[str, picture_facts.Facts]
    copies: list[list[duplicates.Copy]]

    def warnings(self) -> tuple[str, ...]:
        """Returns what may spoil a training, or what is measured of it."""
        copies = duplicates.warnings(self.copies, self.folder.splits)
        return (*self.folder.warnings, *copies)


def find(
    source: str,
    bars: progress.Progress,
    *,
    images: str = "",
    columns: Sequence[str] = (),
    encoding: str = "",
    depth: int = 0,
    division: splitting.Division | None = None,
) -> PictureSet:
    """Finds the images of a folder or table, and decodes every one.

    Args:
        source: a folder, see `class_search.list_folder`, or a table, see `label_table.list_table`.
        bars: show how far it is.
        images, columns, encoding: of a table.
        depth: of a folder.
        division: where nothing says which split an image is of.

    Raises:
        ValueError: `source` is neither, an option of the other one, a table without its columns.
        OSError: the source cannot be read.
    """
    of_table = {"--images": images, "--columns": columns, "--encoding": encoding}
    listed = bars.add_task("listing", total=None)
    on_file = functools.partial(bars.advance, listed)
    if Path(source).is_file() and Path(source).suffix.lower() in label_table.ENDINGS:
        if depth:
            raise ValueError(f"--depth is for folders, and {source} is a table")
        listing = label_table.list_table(
            source, images=images, columns=columns, encoding=encoding, on_file=on_file
        )
    else:
        if given := [name for name, value in of_table.items() if value]:
            raise ValueError(f"{', '.join(given)}: for tables (.csv, .tsv), and {source} is none")
        search = functools.partial(class_search.Search, depth=depth)
        listing = class_search.list_folder(source, on_file=on_file, search=search)
    bars.update(listed, total=bars.tasks[listed].completed)

    files = [file for rows in listing.splits.values() for file, _ in rows]
    checking = bars.add_task("decoding", total=len(files))
    found = picture_facts.examine(listing.root, files, functools.partial(bars.advance, checking))
    for file, facts in found.items():
        if isinstance(facts, str):
            listing.findings.mend(IMAGES, f"{printable(file)}: {facts}")
    facts = {file: fact for file, fact in found.items() if not isinstance(fact, str)}
    listed_classes = {label for rows in listing.splits.values() for _, label in rows}
    listing.splits = {
        split: [row for row in rows if row[0] in facts] for split, rows in listing.splits.items()
    }
    left = {label for rows in listing.splits.values() for _, label in rows}
    listing.unread = sorted({*listing.unread, *listed_classes} - left)
    folder = class_sets.settle(listing, division)
    copies = duplicates.groups(
        (facts[file].digest, duplicates.Copy(split, file, folder.class_names[label]))
        for split, rows in folder.splits.items()
        for file, label in rows
    )
    return PictureSet(listing, folder, facts, copies)
