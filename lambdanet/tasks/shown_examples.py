"""Which record of a split an example is of, for the pictures of reports."""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer


def examples_of(
    rows: Integer[np.ndarray, " n"], examples: Integer[np.ndarray, " m"]
) -> Integer[np.ndarray, " n"]:
    """Returns for every record the number of its example, -1 where it has none.

    Numbers of records need not be different: splits that are evaluated together may count each for
    itself. The examples of one process are the first of the records, so that their place says it;
    where they are not (several processes), records whose number is there twice have no example.

    Args:
        rows: `id` of all counted records.
        examples: `id` of the examples, a part of these.
    """
    count = len(examples)
    if count <= len(rows) and np.array_equal(rows[:count], examples):
        places = np.arange(len(rows))
        return np.where(places < count, places, -1)
    numbers, counts = np.unique(rows, return_counts=True)
    single = set(numbers[counts == 1].tolist())
    at = {number: i for i, number in enumerate(examples.tolist()) if number in single}
    return np.array([at.get(number, -1) for number in rows.tolist()], np.int64)
