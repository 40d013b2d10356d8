"""From a record number to one example: reading, checking, decoding, augmenting, and what to do with
damaged records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from lambdanet.data import augment, decode, pseudo_labels, sources

MAX_BAD_IN_A_ROW = 64  # unreadable neighbours after which on_error='skip' gives up
CROPS = ("none", "shift", "random_resized")  # of training images
Example = dict[str, np.ndarray]


class CorruptRecordError(ValueError):
    """A record whose bytes cannot be read or decoded; the message names the record and its file."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Records of one source that training draws from.

    Attributes:
        source: the opened split.
        rows: positions in it, int [n]; None = all.
        labels: classes that replace the stored ones, int [n]; None = the stored ones.
    """

    source: sources.Source
    rows: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.source) if self.rows is None else len(self.rows)

    def read(self, index: int) -> sources.Record:
        """Returns record `index` of this part, with its replaced label if there is one."""
        record = self.source.read(index if self.rows is None else int(self.rows[index]))
        return (
            record
            if self.labels is None
            else dataclasses.replace(record, label=int(self.labels[index]))
        )


def training_parts(config: Any) -> list[Part]:
    """Returns the training split and, if data.pseudo_labels is set, the records of
    data.pseudo_split that it labels.

    Args:
        config: the section `data` of the config.

    Raises:
        ValueError: a split cannot be opened; the label file is unreadable, was made for another
            split or names records that the split lacks; the fraction is not inside (0, 1).
    """
    parts = [Part(sources.open_source(config, config.train_split))]
    if not config.pseudo_labels:
        return parts
    if not 0.0 < config.pseudo_fraction < 1.0:
        raise ValueError(
            f"data.pseudo_fraction={config.pseudo_fraction}; allowed: between 0 and 1, both "
            "excluded"
        )
    content = pseudo_labels.read_file(config.pseudo_labels)
    if content["split"] and content["split"] != config.pseudo_split:
        raise ValueError(
            f"{config.pseudo_labels!r} labels split {content['split']!r}, but "
            f"data.pseudo_split={config.pseudo_split!r}"
        )
    labels = dict(zip(content["ids"], content["labels"], strict=True))
    source = sources.open_source(config, config.pseudo_split)
    ids = source.ids().tolist()
    rows = [row for row, number in enumerate(ids) if number in labels]
    if len(rows) != len(labels):
        raise ValueError(
            f"{config.pseudo_labels!r} labels {len(labels)} records, of which "
            f"{len(labels) - len(rows)} are not in "
            f"split {config.pseudo_split!r} of {config.source!r}"
        )
    return [
        *parts,
        Part(
            source, np.array(rows, np.int64), np.array([labels[ids[row]] for row in rows], np.int64)
        ),
    ]


def load(
    part: Part, index: int, num_classes: int, transform: Callable[[Image.Image], np.ndarray]
) -> Example:
    """Reads one record, checks its label and applies `transform` to its image.

    Returns:
        dict(image uint8 [h, w, c], label int32, id int64).

    Raises:
        CorruptRecordError: damaged bytes.
        ValueError: the label is out of range, a mistake in the set-up that is never skipped.
    """
    try:
        record = part.read(index)
    except Exception as error:  # the reader of the storage raises many types on damaged bytes
        raise CorruptRecordError(
            f"record {index} cannot be read ({type(error).__name__}: {error})"
        ) from error
    if not 0 <= record.label < num_classes:
        raise ValueError(
            f"{record.name}: label {record.label} is out of range; allowed: 0 to {num_classes - 1} "
            f"({num_classes} classes)"
        )
    try:
        image = transform(decode.open_image(record.image))
    except Exception as error:  # so do the decoders
        raise CorruptRecordError(
            f"{record.name}: cannot decode the image ({type(error).__name__}: {error}); repair or "
            "remove it, or set "
            "data.on_error='skip'"
        ) from error
    return {"image": image, "label": np.int32(record.label), "id": np.int64(record.id)}


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Crop, flip and colour augmentation of one training image, in the order of the config's
    comments.

    Fields are the keys of the config section `data` of the same names.
    """

    image_size: tuple[int, int]
    channels: int
    interpolation: str
    crop: str
    shift: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: float
    rand_augment: tuple[int, float]
    color_jitter: tuple[float, float, float]
    random_erasing: float

    def __post_init__(self):
        if self.crop not in CROPS:
            raise ValueError(f"data.crop={self.crop!r}; allowed: {', '.join(CROPS)}")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Maps an opened image to uint8 [h, w, c]."""
        box = (0, 0, *image.size)
        if self.crop == "random_resized":
            box = decode.random_resized_box(
                *image.size, scale=self.crop_scale, ratio=self.crop_ratio, rng=rng
            )
        interpolation = (
            str(rng.choice(list(decode.FILTERS)))
            if self.interpolation == "random"
            else self.interpolation
        )
        image = decode.crop_and_resize(
            image, box, size=self.image_size, channels=self.channels, interpolation=interpolation
        )
        if self.crop == "shift":
            image = augment.shift_crop(image, self.shift, rng)
        if self.flip > 0:
            image = augment.random_flip(image, self.flip, rng)
        if self.rand_augment[0] > 0:
            image = augment.rand_augment(
                image, int(self.rand_augment[0]), self.rand_augment[1], rng
            )
        if any(self.color_jitter):
            image = augment.color_jitter(image, self.color_jitter, rng)
        array = decode.to_array(image)
        return (
            augment.random_erasing(array, self.random_erasing, rng)
            if self.random_erasing > 0
            else array
        )


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resize and centre crop of one evaluation image; fields as in the config section `data`."""

    image_size: tuple[int, int]
    channels: int
    interpolation: str
    eval_crop: float
    eval_keep_aspect: bool

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Maps an opened image to uint8 [h, w, c]."""
        options = dict(fraction=self.eval_crop, keep_aspect=self.eval_keep_aspect)
        box = decode.centre_box(*image.size, size=self.image_size, **options)
        interpolation = "bicubic" if self.interpolation == "random" else self.interpolation
        image = decode.crop_and_resize(
            image, box, size=self.image_size, channels=self.channels, interpolation=interpolation
        )
        return decode.to_array(image)


def transform_from_config(kind: type, config: Any) -> Any:
    """Builds a TrainTransform or EvalTransform from the config section `data`; lists (from JSON)
    become tuples.
    """
    values = {field.name: config[field.name] for field in dataclasses.fields(kind)}
    return kind(
        **{name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in values.items()}
    )


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Maps a record number over all parts (0 .. sum of lengths - 1) and a generator to a training
    example.

    With on_error='skip' a damaged record is replaced by the next readable one of the same part, and
    the example says in `skipped` how many were passed over; so positions do not shift and the
    replacement is the same in every run.
    """

    parts: list[Part]
    num_classes: int
    transform: TrainTransform
    on_error: str

    def __call__(self, number: int, rng: np.random.Generator) -> Example:
        part, index = self.parts[0], number
        if number >= len(part):
            part, index = self.parts[1], number - len(part)
        skipped = 0
        while True:
            try:
                example = load(
                    part, index, self.num_classes, lambda image: self.transform(image, rng)
                )
                break
            except CorruptRecordError as error:
                if self.on_error != "skip":
                    raise
                skipped += 1
                if skipped >= min(MAX_BAD_IN_A_ROW, len(part)):
                    raise ValueError(
                        f"{skipped} damaged records in a row; the last one: {error}"
                    ) from error
                index = (index + 1) % len(part)
        if self.on_error == "skip":
            example["skipped"] = np.int32(skipped)
        return example


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """Maps a position in a split to an evaluation example with `mask`: 1, or 0 for padding and
    skipped records.
    """

    part: Part
    num_classes: int
    transform: EvalTransform
    on_error: str

    def __call__(self, number: int) -> Example:
        blank = np.zeros((*self.transform.image_size, self.transform.channels), np.uint8)
        empty = {"image": blank, "label": np.int32(0), "id": np.int64(-1), "mask": np.float32(0)}
        if number >= len(self.part):
            return empty
        try:
            return load(self.part, number, self.num_classes, self.transform) | {
                "mask": np.float32(1)
            }
        except CorruptRecordError:
            if self.on_error != "skip":
                raise
            return empty
