"""Pictures with boxes, out of any format, as they are before anything is written.

What reads a format (`coco_files`, `voc_folders`) collects the pictures; here is what both have in
common: splits, the histogram of the classes, and what is wrong with all of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lambdanet.data import class_histogram, duplicates, holding_out
from lambdanet.data.class_folders import printable
from lambdanet.data.findings import Findings
from lambdanet.data.objects import Objects


@dataclasses.dataclass(frozen=True)
class BoxedPicture:
    """A picture and its objects.

    Attributes:
        file: the picture.
        name: how the set calls it.
        id: its number, of the origin if that has numbers.
        size: its (width, height), upright.
        found: the objects; classes are numbers of `BoxSet.classes`.
    """

    file: Path
    name: str
    id: int
    size: tuple[int, int]
    found: Objects


@dataclasses.dataclass(frozen=True)
class BoxSet:
    """What was found.

    Attributes:
        classes: their names, in the order of their numbers.
        categories: what the origin says of each class, its own number ('id') among it; () if it has
            no numbers.
        splits: split name -> pictures.
        notes: what the user should know.
        findings: what is wrong.
        where: the files, for messages.
    """

    classes: tuple[str, ...]
    categories: tuple[dict, ...]
    splits: dict[str, list[BoxedPicture]]
    notes: tuple[str, ...] = ()
    findings: Findings = dataclasses.field(default_factory=Findings)
    where: str = ""

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """What may spoil a training, or what is measured of it."""
        return duplicates.warnings_of_files(
            {
                name: [(duplicates.Copy(name, p.name), [p.file]) for p in pictures]
                for name, pictures in self.splits.items()
            }
        )

    @property
    def masks(self) -> bool:
        """Whether the objects have masks."""
        pictures = [p for of_split in self.splits.values() for p in of_split]
        return any(picture.found.masks is not None for picture in pictures)

    @property
    def most_objects(self) -> int:
        """Objects of the picture that has most."""
        return max(len(p.found) for pictures in self.splits.values() for p in pictures)

    @property
    def most_mask_bytes(self) -> int:
        """What detection.mask_bytes must be at least."""
        every = [p.found.masks or () for pictures in self.splits.values() for p in pictures]
        return max(sum(map(len, masks)) + max(len(masks) - 1, 0) for masks in every)


def resolved(found: BoxSet, on_error: str) -> BoxSet:
    """Returns what is to be written, with all notes.

    Args:
        found: with its findings.
        on_error: 'raise', or 'skip': objects and pictures with mistakes are left out, and counted
            in the notes.

    Raises:
        ValueError: lists the mistakes.
    """
    left_out = found.findings.resolve(found.where, on_error)
    return dataclasses.replace(found, notes=(*found.notes, *left_out))


def hold_out(
    pictures: list[BoxedPicture],
    val_fraction: float | None,
    test_fraction: float | None,
    findings: Findings,
) -> tuple[dict[str, list[BoxedPicture]], tuple[str, ...]]:
    """Takes validation and test splits from pictures, see `holding_out.hold_out`, and reports those
    without an object; returns them with notes.

    Raises:
        ValueError: fractions that are none.
    """
    names = [picture.name for picture in pictures]
    rows, notes = holding_out.hold_out(names, val_fraction, test_fraction)
    splits = {name: [pictures[i] for i in of_split] for name, of_split in rows.items()}
    if empty := [name for name in splits if not has_objects(splits[name])]:
        sizes = ", ".join(f"{name} {len(of_split)}" for name, of_split in splits.items())
        shares = holding_out.check_shares(val_fraction, test_fraction)
        findings.stop(
            f"split {', '.join(map(repr, empty))} has no objects, or crowds alone, when the "
            f"pictures are divided ({sizes}): change the shares of --split (here {shares[0]:g} "
            f"for validation and {shares[1]:g} for test) or say which pictures are which"
        )
    return splits, notes


def has_objects(pictures: list[BoxedPicture]) -> bool:
    """Whether there is an object that is no crowd."""
    return any((~picture.found.crowd).any() for picture in pictures)


def check_splits(splits: Mapping[str, list[BoxedPicture]], findings: Findings) -> None:
    """Reports splits without pictures, and those without objects."""
    for name, pictures in splits.items():
        if not pictures:
            findings.stop(f"split {name!r} has no pictures")
        elif not has_objects(pictures):
            what = "learnt of" if name == "train" else "measured on"
            findings.stop(
                f"split {name!r} has no objects, or crowds alone: nothing can be {what} it"
            )
    if "train" not in splits:
        findings.stop(f"there is no split 'train', but {', '.join(splits) or 'none at all'}")


def notes_on(splits: Mapping[str, list[BoxedPicture]], classes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns notes on pictures without objects or with crowds alone, and on classes that never
    occur.
    """
    notes, counts = [], {}
    for name, pictures in splits.items():
        empty = sum(not len(p.found) for p in pictures)
        crowds = sum(bool(len(p.found)) and bool(p.found.crowd.all()) for p in pictures)
        if empty:
            notes.append(f"pictures without objects in {name}: {empty} (kept)")
        if crowds:
            notes.append(f"pictures of crowds alone in {name}: {crowds} (kept)")
        counts[name] = objects_of_classes(pictures, len(classes))[0]
    pixels = {n: class_histogram.Count(np.append(c, 0), c) for n, c in counts.items()}
    return (*notes, *class_histogram.absent(pixels, classes))


def objects_of_classes(
    pictures: Iterable[BoxedPicture], classes: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns objects and pictures of each class, int [k], and the number of crowds."""
    counts = [np.zeros(classes, np.int64)]
    crowds = 0
    for picture in pictures:
        found = picture.found.classes[~picture.found.crowd]
        counts.append(np.bincount(found, minlength=classes))
        crowds += int(picture.found.crowd.sum())
    return np.sum(counts, axis=0), np.sum(np.array(counts) > 0, axis=0), crowds


def table(splits: Mapping[str, list[BoxedPicture]], classes: tuple[str, ...]) -> list[str]:
    """Returns lines: objects, and pictures with them, of every class and split."""
    labels = [f"{number:3}  {printable(name)}" for number, name in enumerate(classes)]
    labels += ["     (crowds, no class counts them)"]
    width = max(map(len, labels)) + 2
    counts = [objects_of_classes(pictures, len(classes)) for pictures in splits.values()]
    lines = ["     class".ljust(width) + "".join(f"{split:>20}" for split in splits)]
    for row, label in enumerate(labels[:-1]):
        cells = [f"{objects[row]:11} {pictures[row]:8}" for objects, pictures, _ in counts]
        lines.append(label.ljust(width) + "".join(cells))
    lines.append(labels[-1].ljust(width) + "".join(f"{c:11} {'':8}" for *_, c in counts).rstrip())
    return [*lines, "(number of objects, number of pictures)"]
