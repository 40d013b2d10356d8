"""The command line of `prepare` for images with one class each.

    python -m lambdanet.data.prepare PHOTOS SET [--split 0.8,0.1,0.1] [--seed 0] [--group REGEX]
        [--depth 0] [--on-error skip] [--preview]
    python -m lambdanet.data.prepare LABELS.csv SET [--images FOLDER] [--columns FILE,LABEL[,SPLIT]]

Every image is decoded, and tables of the classes, the sizes and the images that occur more than
once are printed before anything is written. SET gets them too, as summary.txt, and a contact sheet,
contact_sheet.png; with --preview both are written beside SET, and nothing else is.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Sequence

from lambdanet.data import (
    class_sets,
    image_folder,
    overview,
    picture_facts,
    picture_set,
    preparing,
    preview,
)

RECIPE = "configs/photos.py:cpu"
TUNING = "configs/finetune.py:resnet18"
FEW = 10_000  # images in train up to which fine-tuning is suggested
SMALL = 48  # pixels: images whose short sides are mostly below are not enlarged to the recipe's 64
SMALL_SIZE = (32, 32)
BATCH = 32  # of the recipe
UNEVEN = 3.0  # images of the largest class for one of the smallest, from where on it is said


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare",
        description="prepares images with one class each for data.source='image_folder'",
        epilog="pictures with masks: python -m lambdanet.data.prepare segmentation --help; with "
        "boxes: python -m lambdanet.data.prepare coco --help, ... voc --help; videos: ... clips "
        "--help, ... frames --help",
    )
    parser.add_argument(
        "source",
        help="folder of class folders, or of train/, validation/, test/ with class folders; or a "
        "table (.csv, .tsv) whose first line names columns file and label, perhaps split",
    )
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
    preparing.add_split(parser, "SRC has no splits", by_name=True)
    parser.add_argument(
        "--depth",
        type=int,
        default=0,
        metavar="N",
        help="folders below SRC or a split that make a class, whatever is nested deeper belongs to "
        "it; default 0: all of them, as in animals/cat",
    )
    parser.add_argument(
        "--images", default="", metavar="DIR", help="table: the files are relative to it"
    )
    parser.add_argument(
        "--columns", default="", metavar="FILE,LABEL[,SPLIT]", help="table: names of the columns"
    )
    parser.add_argument("--encoding", default="", metavar="NAME", help="table: default UTF-8")
    preparing.add_on_error(parser, "images, rows and folders")
    preparing.add_preview(parser)
    args = parser.parse_args(argv)
    args.columns = tuple(name.strip() for name in args.columns.split(",") if name.strip())
    if args.depth < 0:
        parser.error(f"--depth {args.depth}; allowed: 0 or more")
    if args.columns and not 2 <= len(args.columns) <= 3:
        parser.error(f"--columns must be FILE,LABEL or FILE,LABEL,SPLIT, not {args.columns}")
    return args


def prepare(args: argparse.Namespace) -> None:
    """Runs the command."""
    sources = [args.source, *([args.images] if args.images else [])]
    image_folder.check_destination(sources, args.destination)
    with image_folder.progress_bars() as bars:
        found = picture_set.find(
            args.source,
            bars,
            images=args.images,
            columns=args.columns,
            encoding=args.encoding,
            depth=args.depth,
            division=preparing.division(args),
        )
    preview.show(found)
    preparing.warn(found.warnings())
    if args.preview:
        overview.write_preview(preview.overview_of(found), args.destination)
    folder = class_sets.resolved(found.listing, found.folder, args.on_error)
    notes = [*folder.notes, *picture_facts.notes(found.facts.values())]
    if args.preview:
        for text in notes:
            print(f"note: {text}")
        return
    image_folder.write(found, args.destination)
    options, more = differences(found)
    preparing.say(
        args.destination,
        len(folder.class_names),
        folder.splits,
        [*notes, overview.note(args.destination), *more],
        RECIPE,
        options,
    )


def differences(found: picture_set.PictureSet) -> tuple[list[str], Sequence[str]]:
    """Returns the options of train.py in which these images differ from what `RECIPE` expects
    (photographs in colour, larger than it takes them, and more than a few), and notes.
    """
    facts, splits = found.facts.values(), found.folder.splits
    options, notes = [], []
    if all(fact.grey for fact in facts):
        options += ["--config.data.channels=1", "--config.data.mean=(0.5,)"]
        options += ["--config.data.std=(0.25,)"]
    sides = sorted(min(fact.size) for fact in facts)
    if sides[len(sides) // 2] <= SMALL:
        options.append(f"--config.data.image_size={SMALL_SIZE}")
    trained = len(splits["train"])
    if trained < 2 * BATCH:
        batch = max(2, 1 << (max(trained // 2, 1).bit_length() - 1))
        options.append(f"--config.train.batch_size={batch}")
    notes.append(
        "the recipe mirrors images: where that makes another class of one (letters, signs), add "
        "--config.data.flip=0"
    )
    counts = collections.Counter(label for _, label in splits["train"]).values()
    if max(counts) >= UNEVEN * min(counts):
        notes.append(
            f"uneven classes, {min(counts)} to {max(counts)} images in train; --config."
            "classification.class_weights=balanced makes the small ones count more"
        )
    notes.append("configs/photos.py:small_gpu and :big are for GPUs")
    if trained <= FEW:
        own = [o.partition("=")[0] for o in options if o.startswith("--config.data.")]
        notes.append(
            f"with few images public weights are worth a try: the command with --config={TUNING}"
            + (f" and without {', '.join(own)}" if own else "")
            + ", docs/fine-tuning.md"
        )
    return options, notes
