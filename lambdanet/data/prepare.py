"""Command line: prepares folders of images for training.

    python -m lambdanet.data.prepare SRC DST [--split 0.8,0.1,0.1] [--seed 0] [--group REGEX]
        [--depth 0] [--on-error skip] [--preview]
    python -m lambdanet.data.prepare segmentation IMAGES MASKS DST [--classes names.txt]
        [--ignore 255] [--reduce-zero-label] [--colours palette.csv] [--on-error skip] [--preview]
    python -m lambdanet.data.prepare coco IMAGES ANNOTATIONS.json DST
        [--split NAME=ANNOTATIONS.json[,IMAGES]] [--on-error skip] [--preview]
    python -m lambdanet.data.prepare voc ROOT DST [--classes names.txt] [--on-error skip]
        [--preview]
    python -m lambdanet.data.prepare clips ROOT DST [--fps 12] [--on-error skip]
    python -m lambdanet.data.prepare frames ROOT DST --masks MASKS [--colours palette.csv]
        [--on-error skip]

SRC holds one folder of images per class, or train/ (and validation/, test/) with such folders
inside, or is a table (.csv) of files and labels; see `prepare_classes`. (A folder of a name such as
'segmentation' is given as './segmentation'.)

MASKS holds a label map for every picture of IMAGES, under the same name up to the ending; both may
have folders train/ (and validation/, test/). The prepared set is read with `data.source='tfds'`, as
are those of objects: of files in COCO's format, whose file names are relative to IMAGES, and of a
folder like those of Pascal VOC; of clips, one class folder of video files or of folders of frames
each; and of sequences of frames with masks, as in DAVIS.

Afterwards it prints what was found and, in the last line, the command that trains on it. Sets of
pictures get a contact sheet and the tables; with --preview both are written beside DST, and nothing
else is. How much is held out where nothing says it, `--split TRAIN,VALIDATION,TEST` tells all of
them.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence

from lambdanet.data import (
    box_folder,
    box_sets,
    class_histogram,
    coco_files,
    image_folder,
    mask_folders,
    overview,
    prepare_classes,
    prepare_video,
    preparing,
    segmentation_folder,
    splitting,
    voc_folders,
)
from lambdanet.data.findings import counted

SHARES = re.compile(r"[-+\d.,eE\s]+")
"""Forms of --split that are numbers, and no NAME=ANNOTATIONS.json."""
PATHS = ("source", "root", "images", "masks", "annotations", "destination", "classes", "colours")
"""Arguments that are files and folders."""
MOST_OBJECTS, MOST_MASK_BYTES = 100, 65536  # defaults of the config's section detection


def main(argv: list[str] | None = None) -> int:
    """Parses `argv` (default: the process's arguments), prepares the folder and returns the exit
    status.
    """
    argv = sys.argv[1:] if argv is None else argv
    kinds = {
        "segmentation": (_parse_segmentation, _prepare_segmentation),
        "coco": (_parse_coco, _prepare_coco),
        "voc": (_parse_voc, _prepare_voc),
        "clips": (prepare_video.parse_clips, prepare_video.prepare_clips),
        "frames": (prepare_video.parse_frames, prepare_video.prepare_frames),
    }
    if argv[:1] and argv[0] in kinds:
        parse, prepare = kinds[argv[0]]
        return _guarded(prepare, parse(argv[1:]))
    if problem := _unknown_kind(argv, tuple(kinds)):
        print(f"error: {problem}", file=sys.stderr)
        return 2  # as argparse does
    return _guarded(prepare_classes.prepare, prepare_classes.parse(argv))


def _unknown_kind(argv: Sequence[str], kinds: tuple[str, ...]) -> str:
    """Returns what is wrong where the first argument is meant as the kind of a set and is none: it
    is not there, and is like a kind or has two more paths behind it; else ''.
    """
    first = argv[0] if argv else "-"
    if first.startswith("-") or os.path.exists(os.path.expanduser(first)):
        return ""
    close, paths = difflib.get_close_matches(first.lower(), kinds, n=1), argv[1:3]
    if not close and (len(paths) < 2 or any(path.startswith("-") for path in paths)):
        return ""
    nearest = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"{first!r} is no folder, no table and no kind of set.{nearest} Allowed: "
        f"{', '.join(kinds)}, each with its own paths; without one, SRC DST"
    )


def _guarded(prepare: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    for name in PATHS:  # shells leave the ~ of --masks=~/x alone
        if hasattr(args, name):
            setattr(args, name, os.path.expanduser(getattr(args, name)))
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


def _parse_segmentation(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare segmentation",
        description="prepares a folder of pictures and one of their masks",
    )
    parser.add_argument("images", help="folder of pictures, or of train/, validation/, test/")
    parser.add_argument("masks", help="folder of masks: the same names up to the ending")
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
    preparing.add_coding(parser)
    parser.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="0 counts nowhere, and class c is stored as c + 1, as in ADE20K",
    )
    preparing.add_on_error(parser, "pictures and masks")
    preparing.add_split(parser, "there are no split folders; of several folders whole ones")
    preparing.add_preview(parser)
    return parser.parse_args(argv)


def _prepare_segmentation(args: argparse.Namespace) -> None:
    found = image_folder.scanned(
        (args.images, args.masks),
        args.destination,
        lambda on_file: mask_folders.find(
            args.images,
            args.masks,
            classes=args.classes,
            colours=args.colours,
            ignore=args.ignore,
            reduce_zero_label=args.reduce_zero_label,
            **preparing.fractions(args.split),
            on_file=on_file,
        ),
    )
    print("\n".join(class_histogram.table(found.counts, found.coding.names)))
    preparing.warn(found.warnings)
    if args.preview:
        preparing.preview(
            args.destination,
            segmentation_folder.overview_of(found),
            lambda: mask_folders.resolved(found, args.on_error).notes,
        )
        return
    notes = mask_folders.resolved(found, args.on_error).notes
    segmentation_folder.write(found, args.destination)
    notes = (*notes, overview.note(args.destination))
    classes = len(found.coding.names)
    preparing.say(args.destination, classes, found.splits, notes, "configs/own_masks.py")


def _parse_coco(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare coco",
        description="prepares pictures with boxes, and perhaps masks, of files in COCO's format",
    )
    parser.add_argument("images", help="folder that the file names are relative to")
    parser.add_argument("annotations", help="file of the training split, or of all pictures")
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=ANNOTATIONS.json[,IMAGES]",
        help="a further split, such as validation; may be given several times; or once the shares "
        "of training, validation and test, such as 0.8,0.1,0.1; of several folders whole ones; "
        "default 0.9,0.1",
    )
    preparing.add_on_error(parser, "objects and pictures")
    preparing.add_preview(parser)
    return parser.parse_args(argv)


def _parse_voc(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare voc",
        description="prepares pictures with boxes of a folder like those of Pascal VOC",
    )
    parser.add_argument("root", help="folder of JPEGImages, Annotations and ImageSets/Main")
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
    parser.add_argument(
        "--classes", default="", metavar="FILE", help="one class name per line, in order"
    )
    preparing.add_on_error(parser, "objects and pictures")
    preparing.add_preview(parser)
    preparing.add_split(parser, "there are no lists in ImageSets/Main")
    return parser.parse_args(argv)


def _prepare_coco(args: argparse.Namespace) -> None:
    shares, further = None, args.split
    if len(further) == 1 and SHARES.fullmatch(further[0]):
        shares, further = splitting.parse_shares(further[0]), []
    parts = coco_files.parts(args.images, args.annotations, further)
    _prepare_boxes(
        args,
        sorted({str(part.images) for part in parts.values()}),
        lambda on_file: coco_files.find(parts, on_file=on_file, **preparing.fractions(shares)),
    )


def _prepare_voc(args: argparse.Namespace) -> None:
    _prepare_boxes(
        args,
        [args.root],
        lambda on_file: voc_folders.find(
            args.root, classes=args.classes, on_file=on_file, **preparing.fractions(args.split)
        ),
    )


def _prepare_boxes(
    args: argparse.Namespace,
    folders: Sequence[str],
    find: Callable[[Callable[[], object]], box_sets.BoxSet],
) -> None:
    found = image_folder.scanned(folders, args.destination, find)
    print("\n".join(box_sets.table(found.splits, found.classes)))
    preparing.warn(found.warnings)
    if args.preview:
        preparing.preview(
            args.destination,
            box_folder.overview_of(found),
            lambda: _box_notes(box_sets.resolved(found, args.on_error)),
        )
        return
    notes = _box_notes(box_sets.resolved(found, args.on_error))
    box_folder.write(found, args.destination)
    recipe = "configs/own_objects.py" + ":small_mask_rcnn" * found.masks
    options = []
    if found.most_objects > MOST_OBJECTS:
        options.append(f"--config.detection.max_objects={found.most_objects}")
    if found.most_mask_bytes > MOST_MASK_BYTES:
        options.append(f"--config.detection.mask_bytes={found.most_mask_bytes}")
    notes = (*notes, overview.note(args.destination))
    preparing.say(args.destination, len(found.classes), found.splits, notes, recipe, options)


def _box_notes(found: box_sets.BoxSet) -> tuple[str, ...]:
    most = f"at most {counted(found.most_objects, 'objects in a picture')}"
    return (f"{most}; {'with' if found.masks else 'without'} masks", *found.notes)


if __name__ == "__main__":
    sys.exit(main())
