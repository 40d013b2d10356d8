"""What a stored record is, before any task has looked at it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a task found in a data set.

    Attributes:
        features: what the task calls a field -> the set's feature that it is read from; 'a/b' is
            the entry b of feature a, unless a feature has that name.
        classes: one name per class, in the order of their numbers.
        class_ids: the numbers that the set's origin gives the classes, where they are others.
        class_weights: what training multiplies the loss of a record of each class by; () = 1.
    """

    features: Mapping[str, str]
    classes: tuple[str, ...]
    class_ids: tuple[int, ...] = ()
    class_weights: tuple[float, ...] = ()

    def names(self, count: int) -> list[str]:
        """Returns a name for each of `count` classes; where the data has none 'class 7', by its
        original number if that is known, else by its place from 0 on.
        """
        known = [*self.class_ids, *range(len(self.class_ids), count)]
        return [*self.classes, *(f"class {i}" for i in known[len(self.classes) :])][:count]

    def numbers(self, count: int) -> list[int]:
        """Returns the number that files have for each of `count` classes: that of the set's origin,
        or 1, 2, ... where it gave none; of classes that the data does not have those after the
        largest.
        """
        known = self.class_ids or tuple(range(1, len(self.classes) + 1))
        after = max(known, default=0) + 1
        return [*known, *range(after, after + count - len(known))][:count]


@dataclasses.dataclass(frozen=True)
class Record:
    """One stored record.

    Attributes:
        fields: by the task's names: images as encoded bytes or decoded uint8 [h, w, c], everything
            else as it is stored.
        id: stable number.
        name: for messages: the position, the id, the original file.
    """

    fields: Mapping[str, Any]
    id: int
    name: str


class CorruptRecordError(ValueError):
    """A record whose bytes cannot be read or decoded, or whose label map does not fit; the message
    names the record and its file.
    """


class UnusableRecordError(ValueError):
    """A record that contradicts the set-up, such as a class beyond the classes; never skipped."""
