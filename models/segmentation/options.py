"""Checks of a segmenter's options and of those of its parts, before anything is built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ..backbone_spec import HANDED_TO_BACKBONE, REMATS, backbone_options, name_and_options
from ..building import model_builder
from ..option_checks import DTYPES, basic_problems
from ..registration import registry as model_registry
from .registration import registry


def head_builder(spec: Any) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """Returns what builds a head, with its options in place, and the parameters it declares.

    Args:
        spec: a name, or a mapping with `name` and options.

    Raises:
        ValueError: no such head, or wrong options, all in one message.
    """
    name, own = name_and_options("head", spec)
    factory, preset = registry.lookup(name)
    options = {**preset, **own}
    problems = list(registry.option_problems(name, options).values())
    declared = registry.parameters(name)
    missing = [
        option
        for option, parameter in declared.items()
        if parameter.default is parameter.empty
        and option not in options
        and option not in registry.handed_in
    ]
    if missing:
        problems.append(f"{registry.kind} '{name}' needs the options {', '.join(missing)}")
    if not problems:
        problems = getattr(factory, "option_problems", lambda options: [])(options)
    if problems:
        raise ValueError("; ".join(problems))
    return functools.partial(factory, **options), declared


def describe_parts(given: Mapping[str, Any]) -> str:
    """Returns what the parts of a segmenter are, and their options, as text.

    Args:
        given: the options `backbone`, `head` and `auxiliary`.
    """
    lines = []
    for part, spec in given.items():
        known = model_registry if part == "backbone" else registry
        if spec is None:
            lines.append(f"{part}: none here; allowed: {', '.join(registry.names())}")
            continue
        name, own = name_and_options(part, spec)
        lines.append(f"{part}: '{name}', described by that name; options of config.model.{part}:")
        # the classes are the segmenter's
        options = [o for o in known.options(name, **own) if not o.startswith("num_classes:")]
        lines += [f"  {option}" for option in options]
    return "\n".join(lines)


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with options of `Segmenter`, one text per problem, those of the
    backbone and the heads included.

    Args:
        options: every option by name.
    """
    problems = basic_problems(
        {**options, "blocks": (1,)},
        choices={"remat": REMATS, "dtype": DTYPES, "param_dtype": DTYPES},
        counts=("num_classes", "in_channels"),
        positive=("classifier_std",),
        flags=("align_corners",),
    )
    wrong_here = bool(problems)
    depth = None
    try:
        # options that are wrong in the segmenter itself are named once
        given = {} if wrong_here else {key: options[key] for key in HANDED_TO_BACKBONE}
        name, own = backbone_options(options["backbone"], given)
        builder = model_builder(name, **own)
        blocks = getattr(builder, "keywords", {}).get("blocks")
        depth = len(blocks) if isinstance(blocks, tuple) else None
    except ValueError as error:
        problems.append(f"backbone: {error}")
    for part in ("head", "auxiliary"):
        if part == "auxiliary" and options[part] is None:
            continue
        try:
            build, _ = head_builder(options[part])
        except ValueError as error:
            problems.append(f"{part}: {error}")
            continue
        stage = build.keywords.get("stage")
        if depth is not None and stage is not None and stage > depth:
            problems.append(
                f"{part}: stage is {stage}; allowed: None (the last), 1 to {depth}, as the "
                "backbone has"
            )
    return problems
