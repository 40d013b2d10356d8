"""Folders of pictures and of their masks, turned once into a prepared data set for segmentation."""

from __future__ import annotations

import tensorflow_datasets as tfds
from rich import progress

from lambdanet.data import class_histogram, digits, image_folder, mask_sheet, overview
from lambdanet.data.mask_folders import MaskFolders


class PreparedMasks(tfds.core.GeneratorBasedBuilder):
    """Pictures with a class for every pixel, from folders; `file` is the picture's original name,
    255 in a label map means that the pixel counts nowhere.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, folders: MaskFolders, bars: progress.Progress, *, data_dir: str):
        self.folders, self.bars = folders, bars
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        label_map = tfds.features.LabeledImage(
            labels=list(self.folders.coding.names), shape=(None, None, 1), encoding_format="png"
        )
        features = {
            "file": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "segmentation_mask": label_map,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description=type(self).__doc__,
        )

    def _split_generators(self, dl_manager):
        return {
            name: self._generate_examples(name, pairs)
            for name, pairs in self.folders.splits.items()
        }

    def _generate_examples(self, split, pairs):
        for pair in self.bars.track(pairs, description=split):
            labels = self.folders.coding.read((self.folders.masks / pair.mask).read_bytes())
            yield (
                pair.image,
                {
                    "file": pair.image,
                    "image": (self.folders.images / pair.image).read_bytes(),
                    "segmentation_mask": digits.png_bytes(labels),
                },
            )


def overview_of(folders: MaskFolders) -> overview.Overview:
    """Returns the contact sheet, and the table with all that was said."""
    return overview.make(
        mask_sheet.draw(folders),
        class_histogram.table(folders.counts, folders.coding.names),
        warnings=folders.warnings,
        notes=folders.notes,
        findings=folders.findings.lines(),
    )


def write(folders: MaskFolders, directory: str) -> None:
    """Writes the prepared set to `directory`, with a contact sheet and the table as text.

    Args:
        folders: without mistakes, or without what they are about.
        directory: new or empty.

    Raises:
        ValueError: `directory` is in use.
        OSError: a file cannot be read or written.
    """
    image_folder.write_prepared(
        lambda bars, scratch: PreparedMasks(folders, bars, data_dir=scratch),
        directory,
        lambda prepared: overview.write(overview_of(folders), prepared),
    )
