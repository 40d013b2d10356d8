"""Checks of propagations and of the networks around them, before anything is built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from lambdanet.registry import show

from ..backbone_spec import name_and_options
from ..segmentation.options import describe_parts as describe_segmenter
from ..segmentation.options import head_builder
from ..segmentation.options import option_problems as segmenter_problems
from .registration import HANDED_IN, registry


def propagation_builder(spec: Any) -> tuple[Callable[..., Any], frozenset[str]]:
    """Returns what builds a propagation, with its options in place, and what it wants from the
    network around it.

    Args:
        spec: a name, or a mapping with `name` and options.

    Raises:
        ValueError: no such propagation, or wrong options, all in one message.
    """
    name, own = name_and_options("propagation", spec)
    factory, preset = registry.lookup(name)
    options = {**preset, **own}
    problems = list(registry.option_problems(name, options).values())
    if not problems:
        problems = getattr(factory, "option_problems", lambda options: [])(options)
    if problems:
        raise ValueError("; ".join(problems))
    wanted = frozenset(registry.parameters(name)) & frozenset(HANDED_IN)
    return functools.partial(factory, **options), wanted


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with options of `VideoSegmenter`, one text per problem, those of the
    parts included.

    Args:
        options: every option by name.
    """
    problems = segmenter_problems({**options, "auxiliary": None})
    low = options["low_stage"]
    if type(low) is not int or not 1 <= low <= 100:
        problems.append(f"low_stage is {show(low)}; allowed: a stage of the backbone, from 1")
    try:
        propagation_builder(options["propagation"])
    except ValueError as error:
        problems.append(f"propagation: {error}")
    try:
        declared = head_builder(options["head"])[1]
    except ValueError:
        return problems  # named above
    if "stage" not in declared:
        problems.append(
            f"head is {show(options['head'])}, which reads several maps; allowed: heads that read "
            "one, whose features are carried from frame to frame"
        )
    return problems


def describe_parts(given: Mapping[str, Any]) -> str:
    """Returns what the parts of a `VideoSegmenter` are, and their options, as text.

    Args:
        given: the options `backbone`, `head` and `propagation`.
    """
    name, own = name_and_options("propagation", given["propagation"])
    lines = [f"propagation: '{name}' of {', '.join(registry.names())}; its options:"]
    lines += [f"  {option}" for option in registry.options(name, **own)]
    others = {part: spec for part, spec in given.items() if part != "propagation"}
    return "\n".join([describe_segmenter(others), *lines])
