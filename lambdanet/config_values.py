"""What the tables of `lambdanet.config_checks` and `lambdanet.config_conditions` are written with:
kinds of values, each with the words for what is allowed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from lambdanet.registry import is_number

Check = tuple[Callable[[Any], bool], str | Collection[str]]


def one_of(*names: str) -> Check:
    return (lambda v: v in names), names


def integer(low: int, high: int) -> Check:
    return (lambda v: low <= v <= high), f"an integer from {low:,} to {high:,}"


def number(low: float, high: float) -> Check:
    return (lambda v: low <= v <= high), f"a number from {low:g} to {high:g}"


def off_or(low: float, high: float) -> Check:
    return (lambda v: v == 0 or low <= v <= high), f"0 (off) or a number from {low:g} to {high:g}"


def pair(low: float, high: float) -> Check:
    return (
        (lambda v: len(v) == 2 and low <= v[0] <= v[1] <= high),
        f"(low, high) with {low:g} <= low <= high <= {high:g}",
    )


def all_between(low: float, high: float) -> Callable[[Iterable[float]], bool]:
    return lambda v: all(low <= x <= high for x in v)


def is_regex(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError, OverflowError, RecursionError):
        return False
    return True


def is_multiplier(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and is_regex(pair[0])
        and is_number(pair[1])
        and 0 <= pair[1] <= 1e6
    )


def are_weights(pairs: tuple[Any, ...]) -> bool:
    if not all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        return False
    return all(is_number(weight) and 0 <= weight <= 1e6 for _, weight in pairs) and len(
        dict(pairs)
    ) == len(pairs)


_BOUND = r"-?[\d_]+(?:\.[\d_]+)?(%|shard)?"
_SPLIT = re.compile(rf"\s*[\w-]+(?:\[(?:({_BOUND})?:({_BOUND})?|-?\d+shard)\])?\s*")


def is_split(text: str) -> bool:
    """Whether a text is a split or a sum of them, as TFDS writes them, none of which is empty
    whatever the data: 'train', 'train[:90%]', 'train+validation', and not 'train[5:2]'.
    """
    for part in text.split("+"):
        match = _SPLIT.fullmatch(part)
        if match is None:
            return False
        low, low_unit, high, high_unit = match.groups()
        if low and high:
            first, last = (float(re.sub("[^0-9.-]", "", b)) for b in (low, high))
            same_end = (first < 0) == (last < 0)
            if (low_unit or high_unit) and low_unit != high_unit:
                return False
            if same_end and first >= last:
                return False
        elif high and float(re.sub("[^0-9.-]", "", high)) == 0:
            return False
    return True


def exists(path: str, kind: str = "file") -> bool:
    """Whether there is such a file or directory; no for a name that the system refuses, such as one
    too long.
    """
    try:
        return Path(path).is_dir() if kind == "dir" else Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_free(path: str) -> bool:
    """Whether `path` is a directory, or one could be made there as far as its name goes."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(mode)
