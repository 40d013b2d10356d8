"""Random images with random labels, for measuring speed; nothing can be learnt from them."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lambdanet.data.record import Record

SPLITS = ("train", "validation", "test")


class SyntheticBuilder:
    """Stands where a TFDS builder does: what a task asks for its features and splits.

    Args:
        data: the config's section; reads synthetic_records, synthetic_classes, image_size,
            channels.
    """

    def __init__(self, data: Any):
        self.data_dir = "the synthetic data"
        shape = (*data.image_size, data.channels)
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=data.synthetic_classes),
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
    """

    split: str
    records: int
    num_classes: int
    shape: tuple[int, int, int]

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
        return Record(fields, index, f"record {index} of the synthetic split {self.split!r}")

    def ids(self) -> np.ndarray:
        """Returns 0, 1, ... len - 1."""
        return np.arange(len(self))
