"""Pictures and clips that occur more than once, byte for byte."""

from __future__ import annotations

import collections
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lambdanet.data.class_folders import printable

NAMED = 5  # examples that a text gives


class Copy(NamedTuple):
    """A picture, or a clip, of a split: its name, and its class ('' = it has none)."""

    split: str
    name: str
    label: str = ""


def digest(data: bytes) -> bytes:
    """Returns 16 bytes that stand for a file's content."""
    return hashlib.blake2b(data, digest_size=16).digest()


def groups(pictures: Iterable[tuple[bytes, Copy]]) -> list[list[Copy]]:
    """Returns the pictures of each content that more than one has.

    Args:
        pictures: (digest, picture) pairs.
    """
    found: dict[bytes, list[Copy]] = collections.defaultdict(list)
    for content, copy in pictures:
        found[content].append(copy)
    return [copies for copies in found.values() if len(copies) > 1]


def across(found: list[list[Copy]], one: str, other: str) -> list[tuple[Copy, Copy]]:
    """Returns every picture of the split `other` that `one` has, too, after the one there."""
    pairs = []
    for copies in found:
        first = next((copy for copy in copies if copy.split == one), None)
        if first:
            pairs += [(first, copy) for copy in copies if copy.split == other]
    return pairs


def conflicts(found: list[list[Copy]]) -> list[tuple[Copy, Copy]]:
    """Returns two pictures of different classes for every content that has such."""
    pairs = []
    for copies in found:
        twin = next((c for c in copies if c.label != copies[0].label), None)
        if twin:
            pairs.append((copies[0], twin))
    return pairs


def repeated(found: list[list[Copy]]) -> dict[str, int]:
    """Returns split -> pictures whose content an earlier one of the same split has."""
    counts: collections.Counter[str] = collections.Counter()
    for copies in found:
        for split, number in collections.Counter(c.split for c in copies).items():
            counts[split] += number - 1
    return {split: number for split, number in counts.items() if number}


def warnings(
    found: list[list[Copy]], splits: Iterable[str], what: str = "pictures"
) -> tuple[str, ...]:
    """Returns a text for every two splits with a content in common, for contents with two classes,
    and for every split that repeats itself.

    Args:
        found: from `groups`.
        splits: their names.
        what: the copies are.
    """
    texts = []
    for one, other in itertools.combinations(splits, 2):
        if pairs := across(found, one, other):
            useless = f"; a score on {what} of the training is none" * (one == "train")
            texts.append(
                f"{what} of {other} that are in {one}, too: {len(pairs)}{useless}: {_listed(pairs)}"
            )
    if pairs := conflicts(found):
        texts.append(
            f"{what} under two classes, of which one is wrong: {len(pairs)}: {_listed(pairs)}"
        )
    texts += [
        f"{what} of {split} that occur there more than once: {number} (kept)"
        for split, number in repeated(found).items()
    ]
    return tuple(texts)


def _listed(pairs: list[tuple[Copy, Copy]]) -> str:
    named = [" = ".join(f"{c.split}: {printable(c.name)}" for c in pair) for pair in pairs[:NAMED]]
    return "; ".join(named) + ("; ..." if len(pairs) > NAMED else "")


def warnings_of_files(
    splits: Mapping[str, Iterable[tuple[Copy, Sequence[Path]]]], what: str = "pictures"
) -> tuple[str, ...]:
    """Returns `warnings` about files; those of one size are read for it.

    Args:
        splits: split name -> (picture, its file) pairs, or (clip, its files in order).
        what: they are.
    """
    of_size: dict[tuple[int, ...], list[tuple[Copy, Sequence[Path]]]]
    of_size = collections.defaultdict(list)
    for copy, files in itertools.chain(*splits.values()):
        of_size[tuple(file.stat().st_size for file in files)].append((copy, files))
    contents = (
        (digest(b"".join(digest(file.read_bytes()) for file in files)), copy)
        for copies in of_size.values()
        if len(copies) > 1
        for copy, files in copies
    )
    return warnings(groups(contents), splits, what)
