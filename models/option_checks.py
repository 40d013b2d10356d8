"""Checks that the options of all families share; plain Python, before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lambdanet.attention import kind, list_attention
from lambdanet.attention import registry as attention_registry
from lambdanet.registry import is_number, show, suggest

DTYPES = ("float32", "bfloat16")

MOST_BLOCKS = 1000
"""Of all stages together: a thousand are built in seconds, a million in hours."""

LARGEST = {
    "num_classes": 10**7,
    "in_channels": 10**4,
    "image_size": 2**16,
    "frames": 2**16,
    "stem_frames": 2**10,
    "stem_frame_stride": 2**10,
    "widths": 2**16,
    "mlp_ratios": 2**10,
    "patch_sizes": 2**10,
    "sr_ratios": 2**10,
}
"""Upper bounds of numbers, beyond what any network needs, so that a slip of the hand ends here and
not in the memory."""


def basic_problems(
    options: Mapping[str, Any],
    *,
    choices: Mapping[str, Sequence[str]],
    counts: Iterable[str] = (),
    counts_or_zero: Iterable[str] = (),
    counts_from_zero: Iterable[str] = (),
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
        counts_or_zero: options that are integers of 0, no classifier, or more.
        counts_from_zero: options that are integers of 0 or more.
        rates: options that are numbers from 0 to below 1.
        positive: options that are positive numbers.
        flags: options that are True or False.

    `image_size` and `blocks`, which every family has, are checked, too, and upper bounds.
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
        (
            name,
            type(options[name]) is int and options[name] >= 0,
            "0 (no classifier) or a positive integer",
        )
        for name in counts_or_zero
    ]
    checks += [
        (name, type(options[name]) is int and options[name] >= 0, "0 or a positive integer")
        for name in counts_from_zero
    ]
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
    problems = [
        f"{name} is {show(options[name])}; allowed: {allowed}"
        for name, good, allowed in checks
        if not good
    ]
    if positives(options["blocks"]) and sum(options["blocks"]) > MOST_BLOCKS:
        problems.append(
            f"blocks is {show(options['blocks'])}; allowed: {MOST_BLOCKS} in all, or less"
        )
    for name, most in LARGEST.items():
        given = options.get(name)
        if any(
            is_number(n) and n > most for n in (given if isinstance(given, tuple) else (given,))
        ):
            problems.append(f"{name} is {show(given)}; allowed: {most} or less")
    return problems


def mixer_problems(spec: Any, *, also: tuple[str, ...] = ()) -> list[str]:
    """Returns what is wrong with the spec of a layer that mixes positions, one text per problem.

    Args:
        spec: a name, or a mapping with `name` and options.
        also: keys that the network reads itself, and checks itself.
    """
    if not isinstance(spec, (str, Mapping)) or (isinstance(spec, Mapping) and "name" not in spec):
        return [f"attention is {spec!r}; allowed: a name, or a mapping with 'name' and options"]
    name = spec if isinstance(spec, str) else spec["name"]
    own = {} if isinstance(spec, str) else spec
    given = {key: value for key, value in own.items() if key not in ("name", *also)}
    try:
        problems = list(attention_registry.option_problems(name, given, also=also).values())
    except ValueError as error:
        return [f"attention is {spec!r}: {error}"]
    if problems:
        return problems
    allowed = f"allowed as attention: {', '.join(list_attention(kind='mixer'))}"
    if kind(name) == "context":
        return [
            f"attention '{name}' is a context block, which is inserted beside the layers: "
            f"context=dict(name='{name}', after='stage*.*'); {allowed}"
        ]
    if kind(name) == "carried":
        return [
            f"attention '{name}' hands state from layer to layer, as the models lavit_* do; "
            f"{allowed}"
        ]
    return []


def positives(value: Any, length: int | None = None) -> bool:
    """Whether `value` is a non-empty tuple of positive integers, of that length if one is given."""
    right_length = isinstance(value, tuple) and len(value) in (
        (length,) if length else range(1, 100)
    )
    return right_length and all(
        isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in value
    )
