"""What the command lines of `prepare` share: arguments, and what is printed at the end."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from pathlib import Path

from lambdanet.data import findings, label_maps, overview, splitting


def training_command(
    directory: str, splits: Collection[str], recipe: str, options: Sequence[str] = ()
) -> str:
    """Returns the command, quoted for a shell, that trains on a prepared set.

    Args:
        directory: of the prepared set.
        splits: that it has; without validation there is no best checkpoint either.
        recipe: value of --config.
        options: of train.py, in which these data differ from what the recipe expects.
    """
    command = ["python", "train.py", f"--config={recipe}"]
    command += [f"--workdir=runs/{Path(directory).resolve().name}"]
    command += [f"--config.data.data_dir={directory}"]
    if "validation" not in splits:
        command += ["--config.data.eval_split=", "--config.train.keep_best="]
    if "test" not in splits:
        command += ["--config.data.test_split="]
    return shlex.join([*command, *options])


def add_coding(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what the values of masks mean."""
    parser.add_argument(
        "--classes", default="", metavar="FILE", help="one class name per line, in order"
    )
    parser.add_argument(
        "--ignore",
        type=int,
        default=label_maps.IGNORE,
        metavar="N",
        help="value of pixels that count nowhere; default 255",
    )
    parser.add_argument(
        "--colours",
        default="",
        metavar="FILE",
        help="the masks are colour-coded: CSV rows name,red,green,blue, one per class in order; "
        "the colours of rows named 'ignore' count nowhere",
    )


def add_split(parser: argparse.ArgumentParser, where: str, *, by_name: bool = False) -> None:
    """Adds the arguments that say how much is held out, and where.

    Args:
        parser: which gets them.
        where: there are no splits, for the help.
        by_name: also --seed and --group, for `division`.
    """
    parser.add_argument(
        "--split",
        type=_shares,
        default=None,
        metavar="TRAIN,VALIDATION,TEST",
        help=f"shares where {where}, such as 0.8,0.1,0.1; 1 = all for training; default 0.9,0.1",
    )
    if by_name:
        parser.add_argument(
            "--seed", type=int, metavar="N", help="another number, another division; default 0"
        )
        parser.add_argument(
            "--group",
            metavar="REGEX",
            help="what it matches in a name (its groups, if it has some) is never divided: of "
            "'cat/anna_03.jpg' the '/(.*)_' finds anna",
        )


def _shares(text: str) -> tuple[float, float, float]:
    try:
        return splitting.parse_shares(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def fractions(shares: tuple[float, float, float] | None) -> dict[str, float]:
    """Returns the arguments val_fraction and test_fraction of shares; {} if none are given."""
    return {} if shares is None else dict(val_fraction=shares[1], test_fraction=shares[2])


def division(args: argparse.Namespace) -> splitting.Division | None:
    """Returns what the arguments of `add_split` say; None if none of them is given."""
    given = {"shares": args.split, "seed": args.seed, "group": args.group}
    given = {name: value for name, value in given.items() if value is not None}
    return splitting.Division(**given) if given else None


def add_on_error(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the argument that leaves out what is wrong.

    Args:
        parser: which gets it.
        what: can be left out, for the help.
    """
    parser.add_argument(
        "--on-error",
        choices=findings.ON_ERROR,
        default="raise",
        help=f"skip: {what} with mistakes are left out, and counted",
    )


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that shows a set and prepares none."""
    parser.add_argument(
        "--preview",
        action="store_true",
        help="print the tables, write SET.preview.png and SET.preview.txt, and nothing else",
    )


def preview(
    destination: str, seen: overview.Overview, resolve: Callable[[], Sequence[str]]
) -> None:
    """Shows a set of which nothing is prepared: writes its contact sheet and the tables beside its
    place, and prints its notes.

    Args:
        destination: where the set would go.
        seen: what is written.
        resolve: returns the notes; called last, raises ValueError with what is wrong with the set.

    Raises:
        ValueError: see `resolve`.
        OSError: a file cannot be written.
    """
    overview.write_preview(seen, destination)
    for note in resolve():
        print(f"note: {note}")


def warn(texts: Sequence[str]) -> None:
    """Prints what may spoil a training, or what is measured of it."""
    for text in texts:
        print(f"warning: {text}")


def say(
    destination: str,
    classes: int,
    splits: Mapping[str, Sized],
    notes: Sequence[str],
    recipe: str,
    options: Sequence[str] = (),
) -> None:
    """Prints what was prepared, and how to train on it.

    Args:
        destination: the prepared directory.
        classes: how many.
        splits: split -> its records.
        notes: a line each.
        recipe, options: as in `training_command`.
    """
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
    print(f"{destination}: {findings.counted(classes, 'classes')}, {sizes}")
    for note in notes:
        print(f"note: {note}")
    print(f"train with: {training_command(destination, splits, recipe, options)}")
