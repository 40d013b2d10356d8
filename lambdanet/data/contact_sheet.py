"""A picture of a set of images: some of every class, whole, beside its name and counts."""

from __future__ import annotations

from PIL import Image

from lambdanet.data import class_sets, decode, sheet_layout
from lambdanet.data.sheet_layout import chosen

SIDE, COLUMNS = 96, 8
MOST_CLASSES = 40


def draw(folder: class_sets.Folder) -> Image.Image:
    """Draws the sheet: a row per class with its name, its counts in the splits, and images that are
    spread evenly over those of its largest split.

    Of more than `MOST_CLASSES` classes, evenly chosen ones are shown, and the last line says so.

    Args:
        folder: whose images can be read.
    """
    shown = chosen(range(len(folder.class_names)), MOST_CLASSES)
    of_class: dict[int, dict[str, list[str]]] = {label: {} for label in shown}
    for split, rows in folder.splits.items():
        for file, label in rows:
            if label in of_class:
                of_class[label].setdefault(split, []).append(file)
    rows = []
    for label, splits in of_class.items():
        files = chosen(max(splits.values(), key=len, default=[]), COLUMNS)
        pictures = [thumbnail((folder.root / file).read_bytes()) for file in files]
        lines = [f"{split} {len(files)}" for split, files in splits.items()]
        rows.append(sheet_layout.Row(folder.class_names[label], lines, pictures))
    below = sheet_layout.more_classes(len(folder.class_names) - len(shown))
    return sheet_layout.arrange(rows, side=SIDE, columns=COLUMNS, least=SIDE, below=below)


def thumbnail(data: bytes) -> Image.Image:
    """Returns the whole picture of a file, upright, its longer side `SIDE` pixels."""
    picture = decode.open_image(data)
    return sheet_layout.resized(picture, sheet_layout.fitted(picture.size, SIDE))
