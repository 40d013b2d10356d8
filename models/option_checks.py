"""Checks that the options of all families share; plain Python, before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lambdanet.registry import suggest

DTYPES = ("float32", "bfloat16")


def basic_problems(
    options: Mapping[str, Any],
    *,
    choices: Mapping[str, Sequence[str]],
    counts: Iterable[str] = (),
    rates: Iterable[str] = (),
    positive: Iterable[str] = (),
    flags: Iterable[str] = (),
) -> list[str]:
    """Returns one text per option that is wrong on its own: the value, what is allowed, the nearest
    name.

    Args:
        options: values by name.
        choices: option -> allowed names.
        counts: options that are positive integers.
        rates: options that are numbers from 0 to below 1.
        positive: options that are positive numbers.
        flags: options that are True or False.

    `image_size` and `blocks`, which every family has, are checked, too.
    """
    checks = [
        (
            name,
            options[name] in allowed,
            f"{', '.join(allowed)}.{suggest(options[name], tuple(allowed))}",
        )
        for name, allowed in choices.items()
    ]
    checks += [(name, positives((options[name],)), "a positive integer") for name in counts]
    checks += [
        (name, is_number(options[name]) and 0.0 <= options[name] < 1.0, "at least 0 and below 1")
        for name in rates
    ]
    checks += [
        (name, is_number(options[name]) and options[name] > 0, "a positive number")
        for name in positive
    ]
    checks += [(name, isinstance(options[name], bool), "True, False") for name in flags]
    checks.append(
        ("image_size", positives(options["image_size"], 2), "(height, width), positive integers")
    )
    checks.append(
        ("blocks", positives(options["blocks"]), "a tuple of positive integers, one per stage")
    )
    return [
        f"{name} is {options[name]!r}; allowed: {allowed}"
        for name, good, allowed in checks
        if not good
    ]


def is_number(value: Any) -> bool:
    """Whether `value` is an int or a float, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def positives(value: Any, length: int | None = None) -> bool:
    """Whether `value` is a non-empty tuple of positive integers, of that length if one is given."""
    right_length = isinstance(value, tuple) and len(value) in (
        (length,) if length else range(1, 100)
    )
    return right_length and all(
        isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in value
    )
