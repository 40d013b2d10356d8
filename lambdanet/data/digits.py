"""The 8x8 handwritten digits inside scikit-learn, as a TFDS data set: real images that need no
download.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lambdanet.data import storage

VALIDATION, TEST = 360, 360  # of 1797 images; the other 1077 are `train`
LABELLED_FRACTION = 0.1  # of `train`: the split `train_labelled`; the rest is `train_unlabelled`


def stratified_split(labels: np.ndarray, sizes: list[int], seed: int = 0) -> list[np.ndarray]:
    """Splits record numbers so that every part has the class shares of the whole, to within one
    record per class.

    Args:
        labels: class of each record, int [n].
        sizes: number of records of each part; together at most n.
        seed: which of the many such splits; the result is a pure function of all three arguments.

    Returns:
        One sorted int array of record numbers per size. The parts do not overlap.

    Raises:
        ValueError: the sizes ask for more records than there are.
    """
    if sum(sizes) > len(labels):
        raise ValueError(f"cannot split {len(labels)} records into parts of {sizes}")
    # RandomState: its stream is frozen for good, while Generator methods may change between numpy
    # releases.
    order = np.random.RandomState(seed).permutation(len(labels))
    parts = []
    for size in sizes:
        classes, counts = np.unique(labels[order], return_counts=True)
        exact = counts * size / len(order)
        quota = np.floor(exact).astype(int)
        largest_remainder = np.argsort(quota - exact, kind="stable")
        quota[largest_remainder[: size - quota.sum()]] += 1
        taken = np.concatenate(
            [order[labels[order] == c][:q] for c, q in zip(classes, quota, strict=True)]
        )
        parts.append(np.sort(taken))
        order = order[~np.isin(order, taken)]
    return parts


def split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows of load_digits that train, validation and test consist of, given the class
    of every row.
    """
    validation, test, train = stratified_split(
        labels, [VALIDATION, TEST, len(labels) - VALIDATION - TEST]
    )
    return {"train": train, "validation": validation, "test": test}


def png_bytes(image: np.ndarray) -> bytes:
    """Encodes a uint8 image [h, w] or [h, w, 3] losslessly (given arrays, TFDS would encode them
    with TensorFlow).
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Digits(tfds.core.GeneratorBasedBuilder):
    """1797 grey 8x8 digits by 13 writers (test part of the UCI set, Alpaydin and Kaynak 1998), in
    stratified splits.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "id": np.int64,  # row of sklearn.datasets.load_digits
                "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=[str(d) for d in range(10)]),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, description=type(self).__doc__
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import (
            load_digits,
        )  # a second of imports that only the first run needs

        data = load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
        labels = data.target
        splits = split_rows(labels)
        train = splits["train"]
        (chosen,) = stratified_split(labels[train], [round(LABELLED_FRACTION * len(train))])
        splits |= {"train_labelled": train[chosen], "train_unlabelled": np.delete(train, chosen)}
        return {
            name: self._generate_examples(images, labels, rows) for name, rows in splits.items()
        }

    def _generate_examples(self, images, labels, rows):
        for row in rows:
            yield (
                int(row),
                {"id": int(row), "image": png_bytes(images[row]), "label": int(labels[row])},
            )


def directory(data_dir: str | os.PathLike) -> Path:
    """Returns where the prepared set is, or would be."""
    return Path(data_dir) / "digits" / str(Digits.VERSION)


def prepare(data_dir: str) -> str:
    """Prepares the set under `data_dir` unless it is there; returns the directory of the prepared
    set.

    Raises:
        ValueError: the directory is not writable, or the disk is full.
    """
    where = directory(data_dir)
    try:
        storage.prepare_atomically(lambda scratch: Digits(data_dir=scratch), where)
    except OSError as error:
        raise ValueError(
            f"cannot prepare the digits under data.data_dir={os.fspath(data_dir)!r}: {error}; name "
            "a writable directory"
        ) from error
    return str(where)
