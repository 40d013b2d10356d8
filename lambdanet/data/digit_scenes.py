"""Scenes of digits on photographs, as a TFDS data set for segmentation, detection and instance
segmentation that needs no download. What is drawn, and how: `scenes`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from lambdanet.data import digits, photographs, run_lengths, scenes, storage

CITATION = (
    "Digits: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine "
    "Learning Repository, 1998 (its test part, as in sklearn.datasets.load_digits). "
    f"{photographs.ATTRIBUTION}"
)


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Two to six of the real handwritten digits of scikit-learn, tinted and partly hidden by each
    other, on its two photographs; the splits share neither digits nor parts of the photographs.

    Features:
        image: RGB, [h, w, 3].
        segmentation_mask: per pixel the uppermost digit's class, background, or 255 on edges.
        objects: one entry per digit, from the lowest to the uppermost: bbox (left, top, right,
            bottom of the visible part in pixels; right and bottom are outside), label (0 to 9),
            is_crowd (never) and mask, the visible part as the `counts` of COCO's compressed run
            lengths, whose `size` is that of the image.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, size: tuple[int, int], *, data_dir: str):
        self.size = size
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        shape = tfds.features.Image(shape=(*self.size, 3), encoding_format="png")
        label_map = tfds.features.LabeledImage(
            labels=list(scenes.CLASSES), shape=(*self.size, 1), encoding_format="png"
        )
        objects = {
            "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=list(scenes.CLASSES[1:])),
            "is_crowd": np.bool_,
            "mask": tfds.features.Text(),
        }
        features = {
            "id": np.int64,  # unique over the splits
            "image": shape,
            "segmentation_mask": label_map,
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description=f"{type(self).__doc__}\n{photographs.ATTRIBUTION}",
            citation=CITATION,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in scenes.SPLITS}

    def _generate_examples(self, split):
        material = scenes.load_material(split)
        first = sum(list(scenes.SPLITS.values())[: list(scenes.SPLITS).index(split)])
        for index in range(scenes.SPLITS[split]):
            scene = scenes.draw(material, index, self.size)
            yield (
                index,
                {
                    "id": first + index,
                    "image": digits.png_bytes(scene.image),
                    "segmentation_mask": digits.png_bytes(scene.label_map),
                    "objects": objects_of(scene),
                },
            )


def objects_of(scene: scenes.Scene) -> list[dict]:
    """Returns the scene's digits as the feature `objects` of the set has them."""
    return [
        {"bbox": box, "label": int(label), "is_crowd": False, "mask": run_lengths.encode(mask)}
        for box, label, mask in zip(scene.boxes, scene.labels, scene.masks, strict=True)
    ]


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError unless the digits have room on a canvas of that size and the photographs
    cover it.
    """
    low, high = scenes.SIDES
    if not all(low <= side <= high for side in size):
        raise ValueError(
            f"data.image_size={tuple(size)} is the canvas of data.source='digit_scenes'; allowed: "
            f"sides from {low} to {high}"
        )


def directory(data_dir: str | os.PathLike, size: tuple[int, int]) -> Path:
    """Returns where the prepared set with that canvas (height, width) is, or would be."""
    name = f"{size[0]}x{size[1]}"
    return Path(data_dir) / "digit_scenes" / name / str(DigitScenes.VERSION)


def prepare(data_dir: str, size: tuple[int, int]) -> str:
    """Prepares the set with that canvas under `data_dir` unless it is there; returns the directory
    of the prepared set.

    Args:
        data_dir: holds digit_scenes/HxW/VERSION, one directory per size.
        size: (height, width) of the canvas.

    Raises:
        ValueError: no such canvas, or the directory is not writable.
    """
    check_size(size)
    where = directory(data_dir, size)
    try:
        storage.prepare_atomically(
            lambda scratch: DigitScenes(tuple(size), data_dir=scratch), where
        )
    except OSError as error:
        raise ValueError(
            f"cannot prepare the digit scenes under data.data_dir={os.fspath(data_dir)!r}: {error};"
            " name a writable directory"
        ) from error
    return str(where)
