"""Where records come from: one class per kind of storage, with `len(source)` and
`source.read(index)`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from lambdanet.data import cued_digits, digits, storage

SOURCES = ("digits", "cued_digits", "tfds", "image_folder", "synthetic")
SYNTHETIC_SPLITS = ("train", "validation", "test")
FILE_FEATURES = (
    "file",
    "file_name",
    "filename",
    "image/filename",
)  # names TFDS sets give to the original file


@dataclasses.dataclass(frozen=True)
class Record:
    """One stored record: encoded bytes or a decoded uint8 array [h, w, c], class, stable number,
    name for messages.
    """

    image: bytes | np.ndarray
    label: int
    id: int
    name: str


class Source(Protocol):
    """A split that can be read at any index from any thread or process."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record: ...

    def ids(self) -> np.ndarray: ...


class PreparedSource:
    """One split of a prepared TFDS directory; images stay encoded.

    A record's id is its feature `id` if it has a scalar integer one, else its position in the
    split.

    Args:
        builder: from `open_directory`.
        split: TFDS split text: 'train', 'train[:90%]', 'train+validation'.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.image, self.label = find_features(builder)
        features = builder.info.features
        self.id = "id" if "id" in features and _is_integer(features["id"]) else ""
        self.file = next((f for f in FILE_FEATURES if f in features), "")
        self.where = f"split {split!r} of {builder.data_dir}"
        decoders = {self.image: tfds.decode.SkipDecoding()}
        try:
            self.records = builder.as_data_source(split=split, decoders=decoders)
        except (ValueError, AssertionError, KeyError) as error:
            raise ValueError(
                f"cannot read split {split!r} of {builder.data_dir}: {error} Splits: "
                f"{_split_list(builder)}; also "
                "slices as 'train[:90%]' and sums as 'train+validation'"
            ) from error

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> Record:
        """Returns record `index`; raises whatever the storage raises if the file is damaged."""
        example = self.records[index]
        number = int(example[self.id]) if self.id else index
        name = f"record {index} of {self.where}"
        if self.id:
            name += f", id {number}"
        if self.file:
            file = example[self.file]
            name += f", file {file.decode(errors='replace') if isinstance(file, bytes) else file}"
        return Record(bytes(example[self.image]), int(example[self.label]), number, name)

    def ids(self) -> np.ndarray:
        """Returns the ids of all records in order; reads the split if they are stored in it."""
        if not self.id:
            return np.arange(len(self))
        return np.array([int(example[self.id]) for example in self.records], np.int64)


class SyntheticSource:
    """Random images with random labels, for measuring speed; nothing can be learnt from them.

    Args:
        split: one of `SYNTHETIC_SPLITS`; each has its own images.
        records, num_classes: how many.
        shape: (height, width, channels).
    """

    def __init__(self, split: str, *, records: int, num_classes: int, shape: tuple[int, int, int]):
        if split not in SYNTHETIC_SPLITS:
            raise ValueError(
                f"data.source='synthetic' has no split {split!r}; allowed: "
                f"{', '.join(SYNTHETIC_SPLITS)}"
            )
        if records < 1 or num_classes < 1:
            raise ValueError(
                f"data.synthetic_records={records} and data.synthetic_classes={num_classes} must "
                "be at least 1"
            )
        self.split, self.records, self.num_classes, self.shape = split, records, num_classes, shape

    def __len__(self) -> int:
        return self.records

    def read(self, index: int) -> Record:
        """Returns the record; a pure function of split and index."""
        rng = np.random.default_rng((SYNTHETIC_SPLITS.index(self.split), index))
        label = int(rng.integers(self.num_classes))
        image = rng.integers(0, 256, self.shape, np.uint8)
        return Record(image, label, index, f"record {index} of the synthetic split {self.split!r}")

    def ids(self) -> np.ndarray:
        """Returns 0, 1, ... len - 1."""
        return np.arange(len(self))


def open_source(config: Any, split: str) -> Source:
    """Opens one split of the configured data set.

    Args:
        config: the section `data` of the config.
        split: as written in the config.

    Raises:
        ValueError: unknown source or split, directory missing or not prepared, features missing,
            empty split.
    """
    if config.source == "synthetic":
        logging.log_first_n(
            logging.WARNING,
            "data.source='synthetic': random images, good for measuring speed only",
            1,
        )
        shape = (*config.image_size, config.channels)
        return SyntheticSource(
            split,
            records=config.synthetic_records,
            num_classes=config.synthetic_classes,
            shape=shape,
        )
    return PreparedSource(open_directory(config), split)


def open_directory(config: Any) -> tfds.core.DatasetBuilder:
    """Opens the prepared directory of the configured data set; prepares `digits` and `cued_digits`
    on first use.
    """
    if config.source not in SOURCES:
        raise ValueError(f"unknown data.source {config.source!r}; allowed: {', '.join(SOURCES)}")
    if config.source == "digits":
        directory = Path(digits.prepare(config.data_dir))
    elif config.source == "cued_digits":
        directory = Path(cued_digits.prepare(config.data_dir, tuple(config.image_size)))
    else:
        directory = Path(config.data_dir)
    if not storage.is_prepared(directory):
        what = (
            "holds no prepared data set (no dataset_info.json)"
            if directory.is_dir()
            else "does not exist"
        )
        fix = (
            "prepare it with `python -m lambdanet.data.prepare <folder of class folders> "
            f"{directory}`"
            if config.source == "image_folder"
            else "name the directory that holds dataset_info.json, such as "
            "<data_dir>/<name>/<version>"
        )
        raise ValueError(f"data.data_dir={str(config.data_dir)!r} {what}; {fix}")
    return tfds.builder_from_directory(directory)


def find_features(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """Returns the names of the image and the class feature: 'image' and 'label', or the only ones
    of their kinds.

    Raises:
        ValueError: none or several candidates; names all features.
    """
    features = builder.info.features
    found = []
    for name, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
        candidates = [key for key, feature in features.items() if isinstance(feature, kind)]
        if name in candidates:
            found.append(name)
        elif len(candidates) == 1:
            found.append(candidates[0])
        else:
            listed = ", ".join(
                f"{key}: {type(feature).__name__}" for key, feature in sorted(features.items())
            )
            raise ValueError(
                f"{builder.data_dir} needs a feature {name!r} of type {kind.__name__}, or exactly "
                "one of that type; "
                f"it has {listed}"
            )
    return found[0], found[1]


def _is_integer(feature: Any) -> bool:
    return (
        isinstance(feature, tfds.features.Tensor)
        and feature.shape == ()
        and np.issubdtype(feature.np_dtype, np.integer)
    )


def _split_list(builder: tfds.core.DatasetBuilder) -> str:
    return ", ".join(
        f"{name} ({split.num_examples})" for name, split in builder.info.splits.items()
    )
