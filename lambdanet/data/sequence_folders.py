"""Sequences of frames with a mask for every frame, as DAVIS has them, turned once into a prepared
data set: one record per sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from rich import progress

from lambdanet.data import class_folders, digits, frame_folders, image_folder, label_maps
from lambdanet.data.mask_folders import MaskFolders, Pair, scan


@dataclasses.dataclass(frozen=True)
class Sequences:
    """What a scan found.

    Attributes:
        folders: the pairs and their coding.
        splits: split name -> folder of a sequence, relative to the root -> its pairs in order.
        notes: what the user should know.
    """

    folders: MaskFolders
    splits: dict[str, dict[str, list[Pair]]]
    notes: tuple[str, ...]


class PreparedSequences(tfds.core.GeneratorBasedBuilder):
    """Sequences of frames with a class for every pixel, from folders; `file` is the folder of the
    frames, 255 in a label map means that the pixel counts nowhere.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, found: Sequences, bars: progress.Progress, *, data_dir: str):
        self.found, self.bars = found, bars
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        label_map = tfds.features.LabeledImage(
            labels=list(self.found.folders.coding.names),
            shape=(None, None, 1),
            encoding_format="png",
        )
        features = {
            "file": tfds.features.Text(),
            "frames": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
            "segmentation_mask": tfds.features.Sequence(label_map),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description=type(self).__doc__,
        )

    def _split_generators(self, dl_manager):
        return {
            name: self._generate_examples(name, sequences)
            for name, sequences in self.found.splits.items()
        }

    def _generate_examples(self, split, sequences):
        folders = self.found.folders
        for name, pairs in self.bars.track(sequences.items(), description=split):
            masks = [
                folders.coding.read((folders.masks / pair.mask).read_bytes()) for pair in pairs
            ]
            yield (
                name,
                {
                    "file": name,
                    "frames": [(folders.images / pair.image).read_bytes() for pair in pairs],
                    "segmentation_mask": [digits.png_bytes(labels) for labels in masks],
                },
            )


def problems_of(root: Path) -> list[str]:
    """Returns what is wrong with the numbers and sizes of frames, sequence by sequence; every
    folder below the root that holds files is one.
    """
    problems = []
    for folder in sorted({file.parent for file in root.rglob("*") if file.is_file()}):
        parts = folder.relative_to(root).parts
        if any(map(class_folders.is_litter, parts)) or not _has_files(folder):
            continue
        where = class_folders.printable("/".join((root.name, *parts)))
        found = frame_folders.clip_of(folder)[1]
        problems += [f"{where}/: {class_folders.printable(problem)}" for problem in found]
    return problems


def _has_files(folder: Path) -> bool:
    return any(e.is_file() and not class_folders.is_litter(e.name) for e in folder.iterdir())


def grouped(
    splits: Mapping[str, Sequence[Pair]],
) -> tuple[dict[str, dict[str, list[Pair]]], tuple[str, ...]]:
    """Returns split -> sequence -> pairs in the order of frame numbers, and notes.

    Args:
        splits: split -> pairs, as `mask_folders.scan` gives them: of several folders whole ones. A
            single sequence, whose frames it would share out, is trained on.
    """
    folders = {split: {str(Path(p.image).parent) for p in pairs} for split, pairs in splits.items()}
    notes: tuple[str, ...] = ()
    if len(splits) > 1 and len(set().union(*folders.values())) == 1:
        splits = {"train": [pair for pairs in splits.values() for pair in pairs]}
        notes = ("no split but 'train': there is but one sequence",)
    found: dict[str, dict[str, list[Pair]]] = {}
    for split, pairs in splits.items():
        members: dict[str, dict[str, Pair]] = {}
        for pair in pairs:
            path = Path(pair.image)
            members.setdefault(path.parent.as_posix(), {})[path.name] = pair
        found[split] = {
            folder: [of[name] for name in frame_folders.in_order(list(of))[0]]
            for folder, of in sorted(members.items())
        }
    return found, notes


def prepare(
    root: str,
    directory: str,
    *,
    masks: str,
    classes: str = "",
    colours: str = "",
    ignore: int = label_maps.IGNORE,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
) -> Sequences:
    """Scans the folders and writes the prepared set to `directory` (new or empty); returns what was
    written.

    Args:
        root: folder of sequences, or of train/ (and validation/, test/) of them: DAVIS's
            JPEGImages/480p.
        directory: for the prepared set.
        masks: the same tree of masks: DAVIS's Annotations/480p.
        classes, colours, ignore, val_fraction, test_fraction: as in `mask_folders.scan`.

    Raises:
        ValueError: the scan found problems (all of them listed), `directory` is in use, or lies in
            one of the folders.
        OSError: a file or folder cannot be read or written.
    """

    def search(on_file) -> Sequences:
        folders = scan(
            root,
            masks,
            classes=classes,
            colours=colours,
            ignore=ignore,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            also=problems_of(Path(root)) if Path(root).is_dir() else (),
            on_file=on_file,
        )
        splits, notes = grouped(folders.splits)
        return Sequences(folders, splits, (*folders.notes, *notes))

    return image_folder.scan_and_write(
        (root, masks),
        directory,
        search,
        lambda found, bars, scratch: PreparedSequences(found, bars, data_dir=scratch),
    )
