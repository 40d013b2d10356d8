"""Which records are for training, validation and test where nobody has said so."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Division:
    """How records are divided.

    Attributes:
        shares: of `SPLITS`, together 1.
        seed: which of the many such divisions.
        group: a regular expression that is searched in the names: what its groups match (without
            groups, what it matches) is the record's group, and a group is never divided. Names that
            do not match are groups of their own. '' = every record is.
    """

    shares: tuple[float, float, float] = (0.9, 0.1, 0.0)
    seed: int = 0
    group: str = ""


def parse_shares(text: str) -> tuple[float, float, float]:
    """Returns the shares of a text such as '0.8,0.1,0.1' (training, validation, test), '0.9,0.1' or
    '1'.

    Raises:
        ValueError: not one to three numbers that are >= 0, the first > 0, together 1.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or not all(0 <= share <= 1 for share in shares):
        shares = []
    if not shares or not shares[0] or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"{text!r} must be the shares of training, validation and test, together 1, such as "
            "0.8,0.1,0.1 or 0.9,0.1; 1 = all for training"
        )
    return tuple([*shares, 0.0, 0.0][:3])


def place(key: str, seed: int) -> float:
    """Returns a number in [0, 1), a pure function of both arguments: BLAKE2b of them, which is
    uniform over the keys and the same on every system.
    """
    text = f"{seed}/{unicodedata.normalize('NFC', key)}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def group_of(name: str, group: str) -> str:
    """Returns the key of a record's group; see `Division`.

    Raises:
        ValueError: `group` is no regular expression.
    """
    if not group:
        return name
    try:
        found = re.search(group, name)
    except re.error as error:
        raise ValueError(f"--group {group!r} is no regular expression: {error}") from error
    if found is None:
        return name
    parts = [part or "" for part in found.groups()] or [found[0]]
    return f"={'/'.join(parts)}"


def divide(names: Sequence[str], labels: Sequence[str], division: Division) -> dict[str, list[int]]:
    """Divides records by their names alone, so that a further record moves no other.

    A record's `place` says where it belongs, so that every class is divided by the shares up to
    chance. Only what chance must not do is put right: a class without a record in training gets one
    there; and one whose share of validation or test is a record or more, and that has none there,
    gets one, if training keeps one. (In such classes a further record may take that one's place.)

    Args:
        names: with the folder of the class, say; each once.
        labels: class of each record.
        division: how.

    Returns:
        Split -> positions, in order; splits without records are left out.

    Raises:
        ValueError: `division.group` is no regular expression, matches no name, or puts all records
            into one group.
    """
    members: dict[str, list[int]] = collections.defaultdict(list)
    for position, name in enumerate(names):
        members[group_of(name, division.group)].append(position)
    if division.group and names:
        if not any(key.startswith("=") for key in members):
            raise ValueError(f"--group {division.group!r} matches no name, such as {names[0]!r}")
        if len(members) == 1:
            raise ValueError(
                f"--group {division.group!r} makes one group of all names: {next(iter(members))!r}"
            )
    places = {key: place(key, division.seed) for key in members}
    held_out = division.shares[1:]
    of_key = {
        key: "validation" if at < held_out[0] else "test" if at < sum(held_out) else "train"
        for key, at in places.items()
    }
    _put_right(of_key, places, {k: {labels[p] for p in rows} for k, rows in members.items()},
               collections.Counter(labels), division)  # fmt: skip
    rows = {name: [] for name in SPLITS}
    for key, positions in members.items():
        rows[of_key[key]] += positions
    return {name: sorted(positions) for name, positions in rows.items() if positions}


def _put_right(
    of_key: dict[str, str],
    places: dict[str, float],
    classes: dict[str, set[str]],
    counts: collections.Counter[str],
    division: Division,
) -> None:
    """Moves groups in `of_key` (group -> split) where a class lacks a split; see `divide`."""
    keys: dict[str, list[str]] = collections.defaultdict(list)
    for key in sorted(of_key, key=places.__getitem__):
        for label in classes[key]:
            keys[label].append(key)
    for label in sorted(keys):
        if not any(of_key[key] == "train" for key in keys[label]):
            of_key[keys[label][-1]] = "train"
    trained = collections.Counter(
        label for key, split in of_key.items() if split == "train" for label in classes[key]
    )
    for split, share in zip(SPLITS[1:], division.shares[1:], strict=True):
        for label in sorted(keys):
            if share * counts[label] < 1 or any(of_key[key] == split for key in keys[label]):
                continue
            for key in keys[label]:
                if of_key[key] == "train" and all(trained[other] > 1 for other in classes[key]):
                    of_key[key] = split
                    trained.subtract(classes[key])
                    break


def spare(names: Sequence[str], labels: Sequence[str], division: Division) -> tuple[int, int]:
    """Returns how many groups there are (records, where nothing groups them), and how many of them
    the classes can spare for other splits whatever the seed, as each keeps one in training.
    """
    classes: dict[str, set[str]] = collections.defaultdict(set)
    for name, label in zip(names, labels, strict=True):
        classes[group_of(name, division.group)].add(label)
    kept, trained = 0, set()
    for of_group in sorted(classes.values(), key=len, reverse=True):
        kept += not of_group <= trained
        trained |= of_group
    return len(classes), len(classes) - kept


def notes(names: Sequence[str], division: Division) -> tuple[str, ...]:
    """Returns a note on the groups, if names are grouped."""
    if not division.group:
        return ()
    sizes = collections.Counter(group_of(name, division.group) for name in names)
    grouped = {key: size for key, size in sizes.items() if key.startswith("=")}
    alone = len(sizes) - len(grouped)
    text = (
        f"--group: {len(grouped)} groups of {sum(grouped.values())} records, the largest of "
        f"{max(grouped.values(), default=0)}"
    )
    return (text + (f"; {alone} match no group and stand for themselves" if alone else ""),)
