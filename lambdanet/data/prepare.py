"""Command line: prepares folders of images for training.

    python -m lambdanet.data.prepare SRC DST [--val-fraction 0.1] [--test-fraction 0.0]
    python -m lambdanet.data.prepare segmentation IMAGES MASKS DST [--classes names.txt]
        [--ignore 255] [--reduce-zero-label] [--colours palette.csv]

SRC holds one folder of images per class, or train/ (and validation/, test/) with such folders
inside; it is read with `data.source='image_folder'`. (A folder of the name 'segmentation' is given
as './segmentation'.)

MASKS holds a label map for every picture of IMAGES, under the same name up to the ending; both may
have folders train/ (and validation/, test/). The prepared set is read with `data.source='tfds'`.

Afterwards it prints what was found and the options that train on it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Collection

from lambdanet.data import class_histogram, image_folder, label_maps, segmentation_folder


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


def main(argv: list[str] | None = None) -> int:
    """Parses `argv` (default: the process's arguments), prepares the folder and returns the exit
    status.
    """
    argv = sys.argv[1:] if argv is None else argv
    of_masks = argv[:1] == ["segmentation"]
    parse = _parse_segmentation if of_masks else _parse_classes
    prepare = _prepare_segmentation if of_masks else _prepare_classes
    return _guarded(prepare, parse(argv[1:] if of_masks else argv))


def _guarded(prepare: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    try:
        prepare(args)
    except MemoryError:
        print("error: out of memory; nothing was written", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _parse_classes(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare",
        description="prepares a folder of images for data.source='image_folder'",
        epilog="pictures with masks: python -m lambdanet.data.prepare segmentation --help",
    )
    parser.add_argument(
        "source",
        help="folder of class folders, or of train/, validation/, test/ with class folders",
    )
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
    _add_fractions(parser, "SRC has no split folders")
    return parser.parse_args(argv)


def _add_fractions(parser: argparse.ArgumentParser, where: str) -> None:
    parser.add_argument(
        "--val-fraction", type=float, default=0.1, help=f"share held out where {where}"
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.0, help="likewise, for the split 'test'"
    )


def _prepare_classes(args: argparse.Namespace) -> None:
    folder = image_folder.prepare(
        args.source,
        args.destination,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
    )
    _say(args.destination, len(folder.class_names), folder.splits, folder.notes, "image_folder")


def _parse_segmentation(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare segmentation",
        description="prepares a folder of pictures and one of their masks",
    )
    parser.add_argument("images", help="folder of pictures, or of train/, validation/, test/")
    parser.add_argument("masks", help="folder of masks: the same names up to the ending")
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
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
        "--reduce-zero-label",
        action="store_true",
        help="0 counts nowhere, and class c is stored as c + 1, as in ADE20K",
    )
    parser.add_argument(
        "--colours",
        default="",
        metavar="FILE",
        help="the masks are colour-coded: CSV rows name,red,green,blue, one per class in order; "
        "the colours of rows named 'ignore' count nowhere",
    )
    _add_fractions(parser, "there are no split folders; of several folders whole ones")
    return parser.parse_args(argv)


def _prepare_segmentation(args: argparse.Namespace) -> None:
    folders = segmentation_folder.prepare(
        args.images,
        args.masks,
        args.destination,
        classes=args.classes,
        colours=args.colours,
        ignore=args.ignore,
        reduce_zero_label=args.reduce_zero_label,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
    )
    print("\n".join(class_histogram.table(folders.counts, folders.coding.names)))
    _say(args.destination, len(folders.coding.names), folders.splits, folders.notes, "tfds")


def _say(
    destination: str, classes: int, splits: dict[str, list], notes: tuple[str, ...], source: str
) -> None:
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
    print(f"{destination}: {classes} classes, {sizes}")
    for note in notes:
        print(f"note: {note}")
    recipe = "--config=configs/own_masks.py " if source == "tfds" else ""
    print(f"train with {recipe}{training_options(destination, splits, source)}")


if __name__ == "__main__":
    sys.exit(main())
