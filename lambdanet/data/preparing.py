"""What the command lines of `prepare` share: arguments, and what is printed at the end."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection, Mapping, Sized

from lambdanet.data import label_maps


def training_options(directory: str, splits: Collection[str], source: str = "image_folder") -> str:
    """Returns the options of train.py, quoted for a shell, that read a prepared folder.

    Args:
        directory: of the prepared set.
        splits: that it has; without validation there is no best checkpoint either.
        source: value of data.source.
    """
    options = [f"--config.data.source={source}", f"--config.data.data_dir={directory}"]
    if "validation" not in splits:
        options += ["--config.data.eval_split=", "--config.train.keep_best="]
    if "test" not in splits:
        options += ["--config.data.test_split="]
    return shlex.join(options)


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


def add_fractions(parser: argparse.ArgumentParser, where: str) -> None:
    """Adds the arguments that say how much is held out, and where."""
    parser.add_argument(
        "--val-fraction", type=float, default=0.1, help=f"share held out where {where}"
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.0, help="likewise, for the split 'test'"
    )


def say(
    destination: str,
    classes: int,
    splits: Mapping[str, Sized],
    notes: tuple[str, ...],
    source: str,
    recipe: str = "",
) -> None:
    """Prints what was prepared, and how to train on it.

    Args:
        destination: the prepared directory.
        classes: how many.
        splits: split -> its records.
        notes: a line each.
        source: value of data.source.
        recipe: options of train.py that come first.
    """
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
    print(f"{destination}: {classes} classes, {sizes}")
    for note in notes:
        print(f"note: {note}")
    recipe = f"{recipe} " if recipe else ""
    print(f"train with {recipe}{training_options(destination, splits, source)}")
