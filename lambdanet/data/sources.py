"""Where records come from: one class per kind of storage, with `len(source)` and
`source.read(index)`.

A source knows storage, a task knows meaning: a record holds the fields that the task asked for, as
they are stored.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from lambdanet.data import cued_digits, digit_scenes, digits, moving_digits, prepared, storage
from lambdanet.data.record import Record
from lambdanet.data.synthetic import SyntheticBuilder, SyntheticSource

WITH_CANVAS = {
    "cued_digits": cued_digits,
    "digit_scenes": digit_scenes,
    "moving_digits": moving_digits,
}
"""Embedded sets that are drawn at the size of data.image_size."""
EMBEDDED = ("digits", *WITH_CANVAS)
"""Sources that are prepared from installed packages."""
SOURCES = (*EMBEDDED, "tfds", "image_folder", "synthetic")
SPLIT_KEYS = {
    "train_split": "",
    "eval_split": "; '' = none (--config.data.eval_split= --config.train.keep_best=)",
    "test_split": "; '' = none (--config.data.test_split=)",
    "pseudo_split": "",
}
"""Key of the config that names a split -> what an error says of doing without it."""
FILE_FEATURES = ("file", "file_name", "filename", "image/filename")
"""Names that TFDS sets give to the original file."""
ID_FEATURES = ("id", "image/id")
"""Names that TFDS sets give to the number of a record."""


class Encoded(tfds.decode.SkipDecoding):
    """Leaves images, and sequences of images, as the bytes of their files."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        """Forwards the bytes of all images of a sequence."""
        return serialized_example


def holds_images(feature: Any) -> bool:
    """Whether a feature is an image or a sequence of such."""
    image = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return isinstance(image, tfds.features.Image)


class Source(Protocol):
    """A split that can be read at any index from any thread or process."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record: ...

    def ids(self) -> np.ndarray: ...


class PreparedSource:
    """One split of a prepared TFDS directory; images stay encoded.

    A record's id is the first of its features `ID_FEATURES` that is a scalar integer, else its
    position in the split.

    Args:
        builder: from `open_builder`.
        split: TFDS split text: 'train', 'train[:90%]', 'train+validation'.
        features: field -> feature to read it from, `DataInfo.features`.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, features: Mapping[str, str]):
        stored = builder.info.features
        self.features = dict(features)
        self.id = next((f for f in ID_FEATURES if f in stored and _is_integer(stored[f])), "")
        self.file = next((f for f in FILE_FEATURES if f in stored), "")
        self.where = f"split {split!r} of {builder.data_dir}"
        decoders = {feature: Encoded() for feature in stored if holds_images(stored[feature])}
        try:
            self.records = builder.as_data_source(split=split, decoders=decoders)
        except (ValueError, AssertionError, KeyError, NotImplementedError) as error:
            raise ValueError(
                f"cannot read split {split!r} of {builder.data_dir}: {error} Splits: "
                f"{_split_list(builder)}; also slices as 'train[:90%]' and sums as "
                "'train+validation'"
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
        return Record({k: _entry(example, f) for k, f in self.features.items()}, number, name)

    def ids(self) -> np.ndarray:
        """Returns the ids of all records in order; reads the split if they are stored in it."""
        if not self.id:
            return np.arange(len(self))
        return np.array([int(example[self.id]) for example in self.records], np.int64)


def open_source(data: Any, split: str, features: Mapping[str, str]) -> Source:
    """Opens one split of the configured data set.

    Args:
        data: the section `data` of the config.
        split: as written in the config.
        features: field -> feature, of the task's `DataInfo`.

    Raises:
        ValueError: unknown source or split, directory missing or not prepared, empty split.
    """
    builder = None if data.source == "synthetic" else open_builder(data)
    try:
        if builder is None:
            shape = (*data.image_size, data.channels)
            sizes = data.synthetic_records, data.synthetic_classes, shape
            return SyntheticSource(split, *sizes, tuple(features))
        return PreparedSource(builder, split, features)
    except ValueError as error:
        keys = [key for key in SPLIT_KEYS if getattr(data, key, None) == split]
        named = ", ".join(f"data.{key}" for key in keys) or "split"
        fixes = "".join(SPLIT_KEYS[key] for key in keys)
        raise ValueError(f"{named} = {split!r}: {error}{fixes}") from error


def directory(data: Any) -> Path:
    """Returns where the prepared set of the configured source is, or would be."""
    if data.source not in SOURCES:
        raise ValueError(f"unknown data.source {data.source!r}; allowed: {', '.join(SOURCES)}")
    if data.source == "digits":
        return digits.directory(data.data_dir)
    if data.source in WITH_CANVAS:
        return WITH_CANVAS[data.source].directory(data.data_dir, tuple(data.image_size))
    return Path(data.data_dir)


def prepare_embedded(data: Any) -> None:
    """Prepares an embedded set that is not there yet, and says so; other sources are left alone.

    Raises:
        ValueError: the directory cannot be written to.
    """
    if data.source not in EMBEDDED or storage.is_prepared(directory(data)):
        return
    logging.info("preparing the data set %s in %s", data.source, directory(data))
    if data.source == "digits":
        digits.prepare(data.data_dir)
    else:
        WITH_CANVAS[data.source].prepare(data.data_dir, tuple(data.image_size))


def open_builder(data: Any) -> tfds.core.DatasetBuilder | SyntheticBuilder:
    """Opens the prepared directory of the configured data set; nothing is written.

    Raises:
        ValueError: unknown source, directory missing or not prepared.
    """
    if data.source == "synthetic":
        text = "data.source='synthetic': random images, good for measuring speed only"
        logging.log_first_n(logging.WARNING, text, 1)
        return SyntheticBuilder(data)
    where = directory(data)
    if not storage.is_prepared(where):
        what, photos, new = "does not exist", "<folder of class folders>", where
        if where.is_dir():
            what = "holds no prepared data set (no dataset_info.json)"
            if any(where.iterdir()):  # the photos themselves, which nothing is written into
                photos, new = shlex.quote(str(where)), Path("prepared") / where.resolve().name
        fixes = {
            "image_folder": f"prepare it with `python -m lambdanet.data.prepare {photos} "
            f"{shlex.quote(str(new))}`" + ("" if new == where else f" and set data.data_dir={new}"),
            "tfds": "name the directory that holds dataset_info.json, such as "
            "<data_dir>/<name>/<version>",
        }
        fix = fixes.get(data.source, "train.py prepares it there")
        raise ValueError(f"data.data_dir={str(data.data_dir)!r} {what}; {fix}")
    return prepared.open_prepared(where)


def find_feature(builder: Any, name: str, kind: type) -> str:
    """Returns the feature `name` if it is of that kind, else the only one of the kind.

    Raises:
        ValueError: none or several candidates; lists all features.
    """
    return _find(builder, name, lambda feature: isinstance(feature, kind), kind.__name__)


def find_frames(builder: Any) -> str:
    """Returns the feature 'frames' if it is a sequence of images, else the only one that is;
    label maps are no such images.

    Raises:
        ValueError: none or several candidates; lists all features.
    """

    def is_clip(feature: Any) -> bool:
        if not isinstance(feature, tfds.features.Sequence) or not holds_images(feature):
            return False
        return not isinstance(feature.feature, tfds.features.LabeledImage)

    return _find(builder, "frames", is_clip, "Sequence of Image")


def _find(builder: Any, name: str, fits: Callable[[Any], bool], kind: str) -> str:
    features = builder.info.features
    candidates = [key for key, feature in features.items() if fits(feature)]
    if name in candidates:
        return name
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(f"{key}: {type(f).__name__}" for key, f in sorted(features.items()))
    raise ValueError(
        f"{builder.data_dir} needs a feature {name!r} of type {kind}, or exactly one of "
        f"that type; it has {listed}"
    )


def _entry(example: Mapping[str, Any], feature: str) -> Any:
    """Returns a feature of a stored example, or an entry of one."""
    if feature in example:
        return example[feature]
    whole, entry = feature.split("/", 1)
    return example[whole][entry]


def _is_integer(feature: Any) -> bool:
    return (
        isinstance(feature, tfds.features.Tensor)
        and feature.shape == ()
        and np.issubdtype(feature.np_dtype, np.integer)
    )


def _split_list(builder: tfds.core.DatasetBuilder) -> str:
    return ", ".join(f"{name} ({s.num_examples})" for name, s in builder.info.splits.items())
