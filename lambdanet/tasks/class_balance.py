"""Classes of unlike size: how often each occurs in training, and weights that even them out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lambdanet import data
from lambdanet.data.image_folder import progress_bars
from lambdanet.data.record import CorruptRecordError, DataInfo, UnusableRecordError

MODES = ("none", "balanced")
"""Values of `classification.class_weights`."""
SHOWN_FROM = 20_000  # records from which on counting shows a bar


def weigh_classes(info: DataInfo, config: Any) -> DataInfo:
    """Returns `info` with the weights of the classes that `classification.class_weights` asks for;
    'balanced' reads the labels of all training records once, pseudo-labelled ones included.

    Raises:
        ValueError: a label is none of the classes, or a record cannot be read and
            data.on_error='raise'; fewer than two classes occur.
    """
    if config.classification.class_weights == "none":
        return info
    counts = class_counts(info, config)
    if np.count_nonzero(counts) < 2:
        there = info.classes[int(counts.argmax())]
        raise ValueError(
            f"classification.class_weights='balanced': all records of {config.data.train_split!r} "
            f"are of class {there!r}; set it to 'none', or name a split with others"
        )
    return dataclasses.replace(info, class_weights=tuple(map(float, balanced_weights(counts))))


def balanced_weights(counts: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Returns n / (k' n_c) for n records in k' classes that occur, n_c of class c: every class that
    occurs weighs the same in all, and a record 1 on average. Classes that do not occur get 1.
    """
    occurring = counts > 0
    weights = counts.sum() / (np.count_nonzero(occurring) * np.maximum(counts, 1))
    return np.where(occurring, weights, 1.0)


def class_counts(info: DataInfo, config: Any) -> Int[np.ndarray, " k"]:
    """Returns how many training records each class has; raises as `weigh_classes`."""
    parts = data.training_parts(config.data, info.features)
    counts, total = np.zeros(len(info.classes), np.int64), sum(map(len, parts))
    with progress_bars(visible=total >= SHOWN_FROM) as bars:
        counting = bars.add_task("counting classes", total=total)
        for part in parts:
            for index in range(len(part)):
                try:
                    label = int(part.read(index).fields["label"])
                except Exception as error:  # the reader of the storage raises many types
                    if config.data.on_error == "skip":
                        continue
                    raise CorruptRecordError(f"record {index} cannot be read: {error}") from error
                if not 0 <= label < len(counts):
                    raise UnusableRecordError(
                        f"record {index}: label {label} is out of range; allowed: 0 to "
                        f"{len(counts) - 1} ({len(counts)} classes)"
                    )
                counts[label] += 1
                bars.advance(counting)
    return counts
