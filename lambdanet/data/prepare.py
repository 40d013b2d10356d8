"""Command line: prepares a folder of images for `data.source='image_folder'`.

    python -m lambdanet.data.prepare SRC DST [--val-fraction 0.1] [--test-fraction 0.0]

SRC holds one folder of images per class, or train/ (and validation/, test/) with such folders
inside. Afterwards it prints what was found and the options that train on it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Collection

from lambdanet.data import image_folder


def training_options(directory: str, splits: Collection[str]) -> str:
    """Returns the options of train.py, quoted for a shell, that read a prepared folder.

    Args:
        directory: of the prepared set.
        splits: that it has; without validation there is no best checkpoint either.
    """
    options = ["--config.data.source=image_folder", f"--config.data.data_dir={directory}"]
    if "validation" not in splits:
        options += ["--config.data.eval_split=", "--config.train.keep_best="]
    if "test" not in splits:
        options += ["--config.data.test_split="]
    return shlex.join(options)


def main(argv: list[str] | None = None) -> int:
    """Parses `argv` (default: the process's arguments), prepares the folder and returns the exit
    status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "source",
        help="folder of class folders, or of train/, validation/, test/ with class folders",
    )
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        help="share held out where SRC has no split folders",
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.0, help="likewise, for the split 'test'"
    )
    args = parser.parse_args(argv)
    try:
        folder = image_folder.prepare(
            args.source,
            args.destination,
            val_fraction=args.val_fraction,
            test_fraction=args.test_fraction,
        )
    except MemoryError:
        print("error: out of memory; nothing was written", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in folder.splits.items())
    print(f"{args.destination}: {len(folder.class_names)} classes, {sizes}")
    for note in folder.notes:
        print(f"note: {note}")
    print(f"train with {training_options(args.destination, folder.splits)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
