"""Validation and test splits of pictures where nobody has said which are which: whole folders if
there are several, else single pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from lambdanet.data import class_folders, splitting

Rows = dict[str, list[int]]
"""Split -> positions in the list of files, in order."""
MAX_NAMED = 10  # folders that a note names
NEAR = 0.5  # of a share, that whole folders must come to; more than twice as much they never are


def why_useless(val_fraction: float | None, test_fraction: float | None, splits: str) -> list[str]:
    """Returns what is wrong with shares where something else says which pictures are which: that
    they are given; [] if they are not.

    Args:
        val_fraction, test_fraction: None = not given.
        splits: what says it.
    """
    if val_fraction is None and test_fraction is None:
        return []
    return [f"--split divides what is not divided; here {splits}: leave it out"]


def check_shares(val_fraction: float | None, test_fraction: float | None) -> tuple[float, float]:
    """Returns the shares, those of `splitting.Division` where none is given (None).

    Raises:
        ValueError: shares that leave nothing to train on, or that are none.
    """
    if val_fraction is None and test_fraction is None:
        return splitting.Division.shares[1:]
    val_fraction, test_fraction = val_fraction or 0.0, test_fraction or 0.0
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must be >= 0, together "
            "< 1"
        )
    return val_fraction, test_fraction


def hold_out(
    files: Sequence[str],
    val_fraction: float | None,
    test_fraction: float | None,
    *,
    divide_folders: bool = True,
) -> tuple[Rows, tuple[str, ...]]:
    """Takes validation and test splits from pictures.

    Of several folders whole ones are taken, as near to the shares as they come, since pictures in a
    folder of their own (the frames of a video, the slices of a patient) are alike; a further
    picture may move a folder then. Where no whole folder comes near a share, and where there is but
    one folder, pictures are divided by their names alone, see `splitting.divide`: a further picture
    moves no other.

    Args:
        files: with their folders, each once.
        val_fraction, test_fraction: shares of all pictures, see `check_shares`.
        divide_folders: False takes whole folders or nothing: their pictures are one record.

    Returns:
        Positions of 'train', 'validation' and 'test', a pure function of the arguments; a split
        without pictures is left out, training never is. And notes: on the folders that were taken,
        on folders that had to be divided, and on each split that was asked for and has no picture.

    Raises:
        ValueError: see `check_shares`.
    """
    val_fraction, test_fraction = check_shares(val_fraction, test_fraction)
    shares = {"validation": val_fraction, "test": test_fraction}
    folders = [str(PurePath(file).parent) for file in files]
    count, notes = len(set(folders)), ()
    rows = _whole_folders(folders, shares) if count > 1 else {"train": list(range(len(files)))}
    missed = [n for n, s in shares.items() if len(rows.get(n, ())) < NEAR * s * len(files)]
    if divide_folders and (count == 1 or any(shares[name] * len(files) >= 1 for name in missed)):
        if count > 1:
            notes = (_divided(missed, shares, len(files), count),)
        division = splitting.Division((1 - val_fraction - test_fraction, *shares.values()))
        rows = splitting.divide(files, [""] * len(files), division)
    elif count > 1:
        notes = tuple(
            f"{name} is made of whole folders: {_listed({folders[row] for row in of_split})}"
            for name, of_split in rows.items()
            if name != "train"
        )
    empty = [name for name, share in shares.items() if share and name not in rows and files]
    reasons = (f"no split {n!r}: {_why_none(shares[n], len(files), count, divide_folders)}"
               for n in empty)  # fmt: skip
    return rows, (*notes, *reasons)


def _why_none(share: float, pictures: int, folders: int, divide_folders: bool) -> str:
    if folders == 1 and not divide_folders:
        return "there is but one folder, and its pictures stay together"
    of_all = f"{100 * share:g} % of {pictures} picture{'s' * (pictures != 1)}"
    few = divide_folders or share * pictures < 1
    reason = "is less than one" if few else f"is nearer to none than to any of {folders} folders"
    return f"{of_all} {reason}; --split with a larger share makes one"


def _whole_folders(folders: Sequence[str], shares: dict[str, float]) -> Rows:
    """Returns splits of whole folders: in a fixed order each is taken that brings a split nearer to
    its share.
    """
    members: dict[str, list[int]] = {}
    for position, folder in enumerate(folders):
        members.setdefault(folder, []).append(position)
    # RandomState: its stream is frozen for good
    order = [list(members)[i] for i in np.random.RandomState(0).permutation(len(members))]
    rows: Rows = {"train": [], "validation": [], "test": []}
    for name, share in shares.items():
        wanted = share * len(folders)
        for folder in list(order):
            more = len(rows[name]) + len(members[folder])
            if len(order) > 1 and abs(more - wanted) < abs(len(rows[name]) - wanted):
                rows[name] += members[folder]
                order.remove(folder)
    rows["train"] = [position for folder in order for position in members[folder]]
    return {name: sorted(of_split) for name, of_split in rows.items() if of_split}


def _divided(missed: Sequence[str], shares: dict[str, float], pictures: int, folders: int) -> str:
    asked = " and ".join(f"{name} ({100 * shares[name]:g} %)" for name in missed)
    return (
        f"of {pictures} pictures in {folders} folders no whole folders come near {asked}: single "
        "pictures are held out, of folders that are in train, too; where pictures of a folder are "
        "alike (frames of a video), a score on them flatters: say which pictures are which, or "
        "give --split larger shares"
    )


def _listed(folders: set[str]) -> str:
    names = sorted(map(class_folders.printable, folders))
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
