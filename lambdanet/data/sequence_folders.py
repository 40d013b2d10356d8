"""Sequences of frames with a mask for every frame, as DAVIS has them, turned once into a prepared
data set: one record per sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from rich import progress

from lambdanet.data import class_folders, digits, frame_folders, image_folder, label_maps
from lambdanet.data.mask_folders import MaskFolders, find, resolved
from lambdanet.data.mask_pairs import Pair


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


def sequences_in(root: Path) -> list[Path]:
    """Returns the folders of sequences: the root and all below it that hold files; what systems
    leave in folders does not count.
    """
    found = set()
    for file in root.rglob("*"):
        litter = any(map(class_folders.is_litter, file.relative_to(root).parts))
        if not litter and not file.is_dir():
            found.add(file.parent)
    return sorted(found)


def problems_of(root: Path) -> list[tuple[str, str]]:
    """Returns what is wrong with the numbers and sizes of frames, sequence by sequence: (path
    within the root, problem) pairs.
    """
    problems = []
    for folder in sequences_in(root):
        path = "".join(f"{part}/" for part in folder.relative_to(root).parts)
        found = frame_folders.clip_of(folder)[1]
        problems += [(path, class_folders.printable(problem)) for problem in found]
    return problems


def grouped(splits: Mapping[str, Sequence[Pair]]) -> dict[str, dict[str, list[Pair]]]:
    """Returns split -> sequence -> pairs in the order of frame numbers.

    Args:
        splits: split -> pairs, as `mask_folders.find` gives them: of several folders whole ones.
    """
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
    return found


def prepare(
    root: str,
    directory: str,
    *,
    masks: str,
    classes: str = "",
    colours: str = "",
    ignore: int = label_maps.IGNORE,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    on_error: str = "raise",
) -> Sequences:
    """Scans the folders and writes the prepared set to `directory` (new or empty); returns what was
    written.

    Args:
        root: folder of sequences, or of train/ (and validation/, test/) of them: DAVIS's
            JPEGImages/480p.
        directory: for the prepared set.
        masks: the same tree of masks: DAVIS's Annotations/480p.
        classes, colours, ignore, val_fraction, test_fraction: as in `mask_folders.find`.
        on_error: 'skip': sequences with mistakes are left out, and counted in the notes.

    Raises:
        ValueError: the scan found problems (all of them listed), `directory` is in use, or lies in
            one of the folders.
        OSError: a file or folder cannot be read or written.
    """

    def search(on_file: Callable[[], object]) -> Sequences:
        at = Path(root)
        folders = find(
            root,
            masks,
            classes=classes,
            colours=colours,
            ignore=ignore,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            divide_folders=False,
            also=problems_of(at) if at.is_dir() else (),
            on_file=on_file,
        )
        folders = resolved(folders, on_error)
        return Sequences(folders, grouped(folders.splits), folders.notes)

    return image_folder.scan_and_write(
        (root, masks),
        directory,
        search,
        lambda found, bars, scratch: PreparedSequences(found, bars, data_dir=scratch),
    )
