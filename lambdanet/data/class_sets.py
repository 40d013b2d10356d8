"""Records with one class each: numbered, divided, and what is wrong with all of them together."""

from __future__ import annotations

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from lambdanet.data import splitting
from lambdanet.data.class_folders import UNPRINTED, printable
from lambdanet.data.findings import Findings

MOST_NAMED = 5  # folders that a text gives


@dataclasses.dataclass(frozen=True)
class Folder:
    """Records with their classes.

    Attributes:
        root: what their names are relative to.
        class_names: in the order of their numbers, sorted.
        splits: split name -> (name relative to `root`, class index) pairs.
        notes: what the user should know: what was passed over, names that are easily confused.
        warnings: what may spoil a training, or what is measured of it.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass
class Listing:
    """What stands in a folder or a table, before it is divided.

    Attributes:
        root: what the names of records are relative to.
        layout: how it was read, for messages.
        splits: split name -> (name, class) pairs; '' is the split of what is to be divided.
        findings: what is wrong.
        notes: what the user should know.
        holds: what the records are.
        unread: classes of which no record can be used, or whose folder cannot be read as it is.
    """

    root: Path
    layout: str
    splits: dict[str, list[tuple[str, str]]]
    findings: Findings
    notes: tuple[str, ...] = ()
    holds: str = "images"
    unread: Sequence[str] = ()


def settle(listing: Listing, division: splitting.Division | None) -> Folder:
    """Numbers the classes and divides what is to be divided; what is wrong goes to the findings.

    Args:
        listing: of records that can be used.
        division: how; None = 90 % for training, where nothing else says it.
    """
    findings, holds, splits = listing.findings, listing.holds, listing.splits
    notes, warnings = listing.notes, ()
    if "" in splits:
        warnings = _like_splits({label for _, label in splits[""]})
        whole, division = splits[""], division or splitting.Division()
        splits, more = _divided(whole, division, findings, holds)
        notes = (*notes, *more)
    else:
        if division is not None:
            findings.stop(
                f"--split, --seed and --group divide what is not divided; here {listing.layout}"
            )
        missing = [name for name in splitting.SPLITS if name not in splits]
        notes = (*notes, *(f"no split {name!r} in {listing.root}" for name in missing))
    names = sorted({label for _, label in splits.get("train", ())})
    _check_names(names, findings, holds)
    numbers = {name: number for number, name in enumerate(names)}
    alike = {_alike(name): name for name in names}
    for split, rows in splits.items():
        foreign = collections.Counter(label for _, label in rows if label not in numbers)
        for label, count in sorted(foreign.items()):
            text = f"{split}: class {label!r} ({count} {holds}) does not occur in train"
            if twin := alike.get(_alike(label)):
                findings.stop(f"{text}, and there is {twin!r}: rename one of them")
            else:
                findings.mend("classes left out", text)
    numbered = {
        split: [(file, numbers[label]) for file, label in rows if label in numbers]
        for split, rows in splits.items()
    }
    for split, rows in numbered.items():
        if not rows and "" not in listing.splits:
            of_train = " of classes that train has" if splits[split] else ""
            findings.stop(f"split {split!r} has no {holds}{of_train}")
    return Folder(listing.root, tuple(names), numbered, (*_confusable(names), *notes), warnings)


def _divided(
    rows: list[tuple[str, str]], division: splitting.Division, findings: Findings, holds: str
) -> tuple[dict[str, list[tuple[str, str]]], tuple[str, ...]]:
    """Returns split -> rows, and notes."""
    names, labels = [file for file, _ in rows], [label for _, label in rows]
    try:
        parts = splitting.divide(names, labels, division)
    except ValueError as error:
        findings.stop(str(error))
        return {"train": rows}, ()
    notes = splitting.notes(names, division)
    count, spare = splitting.spare(names, labels, division)
    units = "groups" if division.group else holds
    wanted = sum(share > 0 for share in division.shares[1:])
    for split, share in zip(splitting.SPLITS, division.shares, strict=True):
        if share and split not in parts and rows:
            text = f"{share:g} of {count} {units} is none; another --seed may give some"
            if spare < wanted:
                text = (
                    f"each class keeps one of its {units} in training, which leaves "
                    f"{spare or 'none'}; more {units} are needed"
                )
            notes = (*notes, f"no split {split!r}: {text}")
    return {split: [rows[i] for i in positions] for split, positions in parts.items()}, notes


def _check_names(names: Sequence[str], findings: Findings, holds: str) -> None:
    """Reports classes that cannot be stored or told apart."""
    forms: dict[str, str] = {}
    for name in names:
        twin = forms.setdefault(unicodedata.normalize("NFC", name), name)
        if twin != name:
            text = f"looks like {twin!r}, in another Unicode form; merge them"
            findings.stop(f"{printable(name)}/: {text}")
        stripped = [part.strip() for part in name.split("/")]
        if name.split("/") != stripped or any(unicodedata.category(c) in UNPRINTED for c in name):
            text = "UTF-8, without control characters, line breaks and outer spaces"
            findings.stop(f"{printable(name)}/: a class name must be {text}; rename it")
    if len(names) == 1:
        findings.stop(
            f"there is but one class, {names[0]!r}: nothing can be told from it; {holds} of the "
            "others belong beside it, in a folder of their own for each class"
        )
    elif not names:
        findings.stop(f"no {holds} of classes to train on")


def _alike(name: str) -> str:
    """Returns what names have in common that differ in case, or in their Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _like_splits(class_names: Iterable[str]) -> tuple[str, ...]:
    """Warns of folders above classes that hold the same ones, as splits of an unknown name do, be
    it in folders that stand around all of them.
    """
    parts = [name.split("/") for name in class_names]
    around = os.path.commonprefix(parts) if len(parts) > 1 else []
    below = collections.defaultdict(set)
    for name in parts:
        top, *rest = name[len(around) :] or [""]
        below[top].add("/".join(rest))
    most = max(below.values(), key=len, default=set())
    same = sorted(top for top, names in below.items() if names <= most and names != {""})
    if len(same) < 2:
        return ()
    named = [f"{printable('/'.join([*around, top]))}/" for top in same[:MOST_NAMED]]
    folders = ", ".join([*named, "..."] if len(same) > MOST_NAMED else named)
    text = f"{folders} hold the same classes; if these are splits, rename them train/ and "
    more = f", and prepare {printable('/'.join(around))}/ in place of the folder around it"
    return (f"{text}validation/{more * bool(around)}",)


def _confusable(class_names: Iterable[str]) -> tuple[str, ...]:
    """Notes the classes whose names differ only in upper and lower case."""
    alike = collections.defaultdict(list)
    for name in class_names:
        alike[_alike(name)].append(name)
    return tuple(
        f"classes whose names differ only in case: {', '.join(map(printable, names))}; if they are "
        "one, give them one name"
        for names in alike.values()
        if len(names) > 1
    )


def resolved(listing: Listing, folder: Folder, on_error: str) -> Folder:
    """Returns what is to be written, with all notes.

    Args:
        listing: with its findings.
        folder: what `settle` made of it.
        on_error: 'raise', or 'skip': what is wrong with single records is left out, and counted.

    Raises:
        ValueError: lists what is wrong.
    """
    left_out = listing.findings.resolve(f"{listing.root} (read as {listing.layout})", on_error)
    return dataclasses.replace(folder, notes=(*folder.notes, *left_out))
