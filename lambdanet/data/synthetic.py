"""Random images and clips with random labels, label maps and objects, for measuring speed; nothing
can be learnt from them.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lambdanet.data import run_lengths
from lambdanet.data.record import Record

SPLITS = ("train", "validation", "test")
PATCH = 8  # side in pixels of the squares of one label that label maps consist of
MAX_MASK_CLASSES = 255  # label maps are uint8, and 255 means 'ignore'
FRAMES = 8  # of a clip
MOST_OBJECTS = 4  # of a picture; there may be none


class SyntheticBuilder:
    """Stands where a TFDS builder does: what a task asks for its features and splits.

    Args:
        data: the config's section; reads synthetic_records, synthetic_classes, image_size,
            channels.
    """

    def __init__(self, data: Any):
        self.data_dir = "the synthetic data"
        shape = (*data.image_size, data.channels)
        names = [str(number) for number in range(min(data.synthetic_classes, MAX_MASK_CLASSES))]
        features = {
            "image": tfds.features.Image(shape=shape),
            "frames": tfds.features.Sequence(tfds.features.Image(shape=shape), length=FRAMES),
            "label": tfds.features.ClassLabel(num_classes=data.synthetic_classes),
            "segmentation_mask": tfds.features.LabeledImage(
                labels=names, shape=(*data.image_size, 1)
            ),
            "frame_masks": tfds.features.Sequence(
                tfds.features.LabeledImage(labels=names, shape=(*data.image_size, 1)), length=FRAMES
            ),
            "frame_boxes": tfds.features.Tensor(shape=(FRAMES, MOST_OBJECTS, 4), dtype=np.float32),
            "frame_classes": tfds.features.Sequence(
                tfds.features.ClassLabel(num_classes=data.synthetic_classes), length=MOST_OBJECTS
            ),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "label": tfds.features.ClassLabel(num_classes=data.synthetic_classes),
                    "mask": tfds.features.Text(),
                }
            ),
        }
        sizes = types.SimpleNamespace(num_examples=data.synthetic_records)
        self.info = types.SimpleNamespace(features=features, splits=dict.fromkeys(SPLITS, sizes))


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """One split.

    Attributes:
        split: one of `SPLITS`; each has its own images.
        records, num_classes: how many.
        shape: (height, width, channels).
        fields: which ones a record has; what is large is left out where it is not asked for. Beside
            frames, segmentation_mask and boxes are of each.
    """

    split: str
    records: int
    num_classes: int
    shape: tuple[int, int, int]
    fields: tuple[str, ...] = ("image", "label")

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(
                f"data.source='synthetic' has no split {self.split!r}; allowed: {', '.join(SPLITS)}"
            )
        if self.records < 1 or self.num_classes < 1:
            raise ValueError(
                f"data.synthetic_records={self.records} and data.synthetic_classes="
                f"{self.num_classes} must be at least 1"
            )

    def __len__(self) -> int:
        return self.records

    def read(self, index: int) -> Record:
        """Returns the record; a pure function of split and index."""
        rng = np.random.default_rng((SPLITS.index(self.split), index))
        label = int(rng.integers(self.num_classes))
        fields = {"image": rng.integers(0, 256, self.shape, np.uint8), "label": label}
        if "frames" in self.fields:
            fields["frames"] = rng.integers(0, 256, (FRAMES, *self.shape), np.uint8)
        if "segmentation_mask" in self.fields:
            whole = [self._label_map(rng) for _ in range(FRAMES if "frames" in fields else 1)]
            fields["segmentation_mask"] = np.stack(whole) if "frames" in fields else whole[0]
        if "boxes" in self.fields:
            fields |= self._of_frames(rng) if "frames" in fields else self._objects(rng)
        return Record(fields, index, f"record {index} of the synthetic split {self.split!r}")

    def _label_map(self, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 [h, w, 1]: squares of one class each."""
        height, width = self.shape[:2]
        classes = min(self.num_classes, MAX_MASK_CLASSES)
        coarse = rng.integers(classes, size=(-(-height // PATCH), -(-width // PATCH)))
        whole = coarse.astype(np.uint8).repeat(PATCH, axis=0).repeat(PATCH, axis=1)
        return whole[:height, :width, None]

    def _objects(self, rng: np.random.Generator) -> dict[str, list]:
        """Returns the fields of some rectangles, each with a mask that fills it."""
        height, width = self.shape[:2]
        boxes, masks = [], []
        for _ in range(rng.integers(MOST_OBJECTS + 1)):
            left, top = (int(rng.integers(side)) for side in (width, height))
            right, bottom = int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1
            mask = np.zeros((height, width), np.uint8)
            mask[top:bottom, left:right] = 1
            boxes.append(np.array([left, top, right, bottom], np.float32))
            masks.append(run_lengths.encode(mask))
        classes = rng.integers(self.num_classes, size=len(boxes)).tolist()
        return {"boxes": boxes, "classes": classes, "masks": masks}

    def _of_frames(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns the fields of as many rectangles as there may be, which are in some frames."""
        boxes = np.zeros((FRAMES, MOST_OBJECTS, 4), np.float32)
        for own in boxes:
            found = self._objects(rng)["boxes"]
            own[: len(found)] = np.reshape(found, (-1, 4))
        return {"boxes": boxes, "classes": rng.integers(self.num_classes, size=MOST_OBJECTS)}

    def ids(self) -> np.ndarray:
        """Returns 0, 1, ... len - 1."""
        return np.arange(len(self))
