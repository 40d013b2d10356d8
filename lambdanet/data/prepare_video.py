"""The command lines of `prepare clips` and `prepare frames`; see `prepare`."""

from __future__ import annotations

import argparse

from lambdanet.data import class_histogram, clip_folders, preparing, sequence_folders


def parse_clips(argv: list[str]) -> argparse.Namespace:
    """Parses the arguments of `prepare clips`."""
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare clips",
        description="prepares clips with one class each",
    )
    parser.add_argument(
        "source",
        metavar="ROOT",
        help="folder of class folders, or of train/, validation/, test/ with class folders, in "
        "which video files and folders of frames stand",
    )
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
    parser.add_argument(
        "--fps",
        type=float,
        default=0.0,
        metavar="N",
        help="frames per second to take of video files, at even times; default: every frame",
    )
    preparing.add_on_error(parser, "clips")
    preparing.add_split(parser, "ROOT has no split folders", by_name=True)
    return parser.parse_args(argv)


def prepare_clips(args: argparse.Namespace) -> None:
    """Runs `prepare clips`."""
    folder = clip_folders.prepare(
        args.source,
        args.destination,
        fps=args.fps,
        division=preparing.division(args),
        on_error=args.on_error,
    )
    preparing.warn(folder.warnings)
    classes = len(folder.class_names)
    preparing.say(args.destination, classes, folder.splits, folder.notes, "configs/own_clips.py")


def parse_frames(argv: list[str]) -> argparse.Namespace:
    """Parses the arguments of `prepare frames`."""
    parser = argparse.ArgumentParser(
        prog="python -m lambdanet.data.prepare frames",
        description="prepares sequences of frames with a mask for every frame, laid out as DAVIS",
    )
    parser.add_argument(
        "source", metavar="ROOT", help="folder of sequences, each a folder of numbered frames"
    )
    parser.add_argument("destination", help="new directory for the prepared set (data.data_dir)")
    parser.add_argument(
        "--masks",
        required=True,
        metavar="DIR",
        help="folder of masks: the same names up to the ending",
    )
    preparing.add_coding(parser)
    preparing.add_on_error(parser, "sequences")
    preparing.add_split(parser, "there are no split folders, in whole sequences")
    return parser.parse_args(argv)


def prepare_frames(args: argparse.Namespace) -> None:
    """Runs `prepare frames`."""
    found = sequence_folders.prepare(
        args.source,
        args.destination,
        masks=args.masks,
        classes=args.classes,
        colours=args.colours,
        ignore=args.ignore,
        on_error=args.on_error,
        **preparing.fractions(args.split),
    )
    preparing.warn(found.folders.warnings)
    coding = found.folders.coding
    print("\n".join(class_histogram.table(found.folders.counts, coding.names)))
    frames = {name: sum(map(len, of.values())) for name, of in found.splits.items()}
    counted = ", ".join(f"{name} {count}" for name, count in frames.items())
    notes = (f"sequences are counted above; frames: {counted}", *found.notes)
    classes = len(coding.names)
    preparing.say(args.destination, classes, found.splits, notes, "configs/own_videos.py")
