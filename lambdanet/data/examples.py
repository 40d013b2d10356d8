"""From a record number to one example: reading, the task's own work on it, and what to do with
damaged records.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from absl import logging

from lambdanet.data import pseudo_labels, sources
from lambdanet.data.record import CorruptRecordError, Record, UnusableRecordError

MAX_BAD_IN_A_ROW = 64  # unreadable neighbours after which on_error='skip' gives up
ON_ERROR = ("raise", "skip")
_FIX = "repair or remove it, or set data.on_error='skip'"
Example = dict[str, np.ndarray]
MakeExample = Callable[[Record, np.random.Generator | None], Example]
"""A task's `example` with everything but record and generator filled in."""


def attributes(config: Any) -> Any:
    """Returns a config as plain attributes, which travel to worker processes and are read fast."""
    if isinstance(config, Mapping) or hasattr(config, "to_dict"):
        return SimpleNamespace(**{key: attributes(value) for key, value in config.items()})
    return tuple(map(attributes, config)) if isinstance(config, (list, tuple)) else config


@dataclasses.dataclass(frozen=True)
class Part:
    """Records of one source that training draws from.

    Attributes:
        source: the opened split.
        rows: positions in it, int [n]; None = all.
        replaced: fields that take the place of the stored ones, [n] each.
    """

    source: sources.Source
    rows: np.ndarray | None = None
    replaced: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source) if self.rows is None else len(self.rows)

    def read(self, index: int) -> Record:
        """Returns record `index` of this part, with its replaced fields."""
        record = self.source.read(index if self.rows is None else int(self.rows[index]))
        if not self.replaced:
            return record
        fields = {**record.fields, **{k: values[index] for k, values in self.replaced.items()}}
        return dataclasses.replace(record, fields=fields)


def training_parts(data: Any, features: Mapping[str, str]) -> list[Part]:
    """Returns the training split and, if data.pseudo_labels is set, the records of
    data.pseudo_split that it labels.

    Args:
        data: the section `data` of the config.
        features: field -> feature, of the task's `DataInfo`.

    Raises:
        ValueError: a split cannot be opened; the file of pseudo-labels is unreadable, was made for
            another split, names records that the split lacks or gives a field that is not read; the
            fraction is not inside (0, 1).
    """
    parts = [Part(sources.open_source(data, data.train_split, features))]
    if not data.pseudo_labels:
        return parts
    if not 0.0 < data.pseudo_fraction < 1.0:
        raise ValueError(
            f"data.pseudo_fraction={data.pseudo_fraction}; allowed: between 0 and 1, both excluded"
        )
    split, numbers, fields = pseudo_labels.read_fields(data.pseudo_labels)
    if split and split != data.pseudo_split:
        raise ValueError(
            f"{data.pseudo_labels!r} labels split {split!r}, but "
            f"data.pseudo_split={data.pseudo_split!r}"
        )
    unread = sorted(fields.keys() - features.keys())
    if unread:
        raise ValueError(
            f"data.pseudo_labels = {data.pseudo_labels!r}: gives the field {unread[0]!r}, and this "
            f"task reads only {', '.join(features)}; set it to ''"
        )
    source = sources.open_source(data, data.pseudo_split, features)
    at = {number: i for i, number in enumerate(numbers.tolist())}
    rows = [(row, at[n]) for row, n in enumerate(source.ids().tolist()) if n in at]
    if len(rows) != len(numbers):
        raise ValueError(
            f"{data.pseudo_labels!r} labels {len(numbers)} records, of which "
            f"{len(numbers) - len(rows)} are not in split {data.pseudo_split!r} of "
            f"{data.source!r}"
        )
    chosen, order = np.array(rows, np.int64).reshape(-1, 2).T
    return [*parts, Part(source, chosen, {k: values[order] for k, values in fields.items()})]


def load(part: Part, index: int, make: MakeExample, rng: np.random.Generator | None) -> Example:
    """Reads one record and makes its example, with `id` int64.

    Raises:
        CorruptRecordError: damaged bytes, or what the task finds wrong with this record alone.
        UnusableRecordError: a mistake in the set-up, never skipped.
    """
    try:
        record = part.read(index)
    except Exception as error:  # the reader of the storage raises many types on damaged bytes
        raise CorruptRecordError(
            f"record {index} cannot be read ({type(error).__name__}: {error})"
        ) from error
    try:
        return {**make(record, rng), "id": np.int64(record.id)}
    except UnusableRecordError:
        raise
    except CorruptRecordError as error:
        raise CorruptRecordError(f"{error}; {_FIX}") from error
    except Exception as error:  # so do the decoders
        raise CorruptRecordError(
            f"{record.name}: cannot decode the image ({type(error).__name__}: {error}); {_FIX}"
        ) from error


@functools.lru_cache(maxsize=1000)
def _say_skipped(message: str) -> None:
    """Names a damaged record, once in each process."""
    logging.warning("skipped: %s", message)


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Maps a record number over all parts (0 .. sum of lengths - 1) and a generator to a training
    example.

    With on_error='skip' a damaged record is replaced by the next readable one of the same part, and
    the example says in `skipped` how many were passed over; so positions do not shift and the
    replacement is the same in every run.
    """

    parts: list[Part]
    make: MakeExample
    on_error: str

    def __call__(self, number: int, rng: np.random.Generator) -> Example:
        part, index = self.parts[0], number
        if number >= len(part):
            part, index = self.parts[1], number - len(part)
        skipped = 0
        while True:
            try:
                example = load(part, index, self.make, rng)
                break
            except CorruptRecordError as error:
                if self.on_error != "skip":
                    raise
                _say_skipped(str(error))
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
    skipped records, which are the task's blank example with id -1.
    """

    part: Part
    make: MakeExample
    blank: Example
    on_error: str

    def __call__(self, number: int) -> Example:
        empty = {**self.blank, "id": np.int64(-1), "mask": np.float32(0)}
        if number >= len(self.part):
            return empty
        try:
            return load(self.part, number, self.make, None) | {"mask": np.float32(1)}
        except CorruptRecordError as error:
            if self.on_error != "skip":
                raise
            _say_skipped(str(error))
            return empty
