"""Folders of pictures and of their masks, turned once into a prepared data set for segmentation."""

from __future__ import annotations

import tensorflow_datasets as tfds
from rich import progress

from lambdanet.data import digits, image_folder, label_maps
from lambdanet.data.mask_folders import MaskFolders, scan


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


def prepare(
    images: str,
    masks: str,
    directory: str,
    *,
    classes: str = "",
    colours: str = "",
    ignore: int = label_maps.IGNORE,
    reduce_zero_label: bool = False,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
) -> MaskFolders:
    """Scans both folders and writes the prepared set to `directory` (new or empty); returns what
    was written. All arguments but `directory` are those of `mask_folders.scan`.

    Raises:
        ValueError: the scan found problems (all of them listed), `directory` is in use, or lies in
            one of the folders.
        OSError: a file or folder cannot be read or written.
    """
    return image_folder.scan_and_write(
        (images, masks),
        directory,
        lambda on_file: scan(
            images,
            masks,
            classes=classes,
            colours=colours,
            ignore=ignore,
            reduce_zero_label=reduce_zero_label,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            on_file=on_file,
        ),
        lambda folders, bars, scratch: PreparedMasks(folders, bars, data_dir=scratch),
    )
