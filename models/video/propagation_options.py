"""Checks of propagations and of the networks around them, before anything is built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from lambdanet.registry import show

from ..backbone_spec import HANDED_TO_BACKBONE, REMATS, name_and_options
from ..building import model_builder
from ..detection.detector import Detector
from ..detection.options import backbone_depth
from ..option_checks import DTYPES, basic_problems
from ..registration import registry as model_registry
from ..segmentation.options import describe_parts as describe_segmenter
from ..segmentation.options import head_builder
from ..segmentation.options import option_problems as segmenter_problems
from .registration import HANDED_IN, registry

HANDED_TO_DETECTOR = ("num_classes", *HANDED_TO_BACKBONE)


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


def detector_builder(spec: Any, given: Mapping[str, Any]) -> Callable[..., Any]:
    """Returns what builds the detector inside a `VideoDetector`, with its options in place.

    Args:
        spec: a name of models/detection, or a mapping with `name` and options.
        given: options of the network around it, which are handed on unless the spec sets them.

    Raises:
        ValueError: no such detector, wrong options, or one that reads several maps.
    """
    name, own = name_and_options("detector", spec)
    factory, _ = model_registry.lookup(name)
    if not (isinstance(factory, type) and issubclass(factory, Detector)):
        raise ValueError(
            f"'{name}' is no detector of images; allowed: 'retinanet', 'faster_rcnn', 'mask_rcnn' "
            "and their presets"
        )
    if "num_classes" in own:
        raise ValueError("option 'num_classes' is that of the whole model; set it there")
    build = model_builder(name, **{**given, **own})
    options = build.keywords
    handed = {key: options[key] for key in HANDED_TO_BACKBONE}
    depth = backbone_depth(options["backbone"], handed)
    if depth is not None:
        check_one_map(options["first_stage"], depth)
    return build


def check_one_map(first_stage: int, depth: int) -> None:
    """Raises ValueError unless the first of the maps that a detector reads is the last.

    Args:
        first_stage: of the detector.
        depth: how many maps its backbone has.
    """
    if first_stage != depth:
        raise ValueError(
            f"first_stage is {first_stage}, so it reads {depth - first_stage + 1} of the "
            f"backbone's maps; allowed: {depth}, the last map alone, which is carried from frame "
            "to frame and of which further levels are made; a finer one by the backbone's "
            "output_stride"
        )


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with options of `VideoSegmenter`, one text per problem, those of the
    parts included.

    Args:
        options: every option by name.
    """
    problems = segmenter_problems({**options, "auxiliary": None}) + _common_problems(options)
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


def detector_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with options of `VideoDetector`, one text per problem, those of the
    parts included.

    Args:
        options: every option by name.
    """
    problems = basic_problems(
        {**options, "blocks": (1,)},
        choices={"remat": REMATS, "dtype": DTYPES, "param_dtype": DTYPES},
        counts=("num_classes", "in_channels"),
    )
    # options that are wrong here are named once
    given = {} if problems else {key: options[key] for key in HANDED_TO_DETECTOR}
    try:
        detector_builder(options["detector"], given)
    except ValueError as error:
        problems.append(f"detector: {error}")
    return problems + _common_problems(options)


def _common_problems(options: Mapping[str, Any]) -> list[str]:
    """Problems of `low_stage` and `propagation`."""
    problems, low = [], options["low_stage"]
    if type(low) is not int or not 1 <= low <= 100:
        problems.append(f"low_stage is {show(low)}; allowed: a stage of the backbone, from 1")
    try:
        propagation_builder(options["propagation"])
    except ValueError as error:
        problems.append(f"propagation: {error}")
    return problems


def describe_parts(given: Mapping[str, Any]) -> str:
    """Returns what the parts of a `VideoSegmenter` are, and their options, as text.

    Args:
        given: the options `backbone`, `head` and `propagation`.
    """
    others = {part: spec for part, spec in given.items() if part != "propagation"}
    return "\n".join([describe_segmenter(others), *_propagation_lines(given["propagation"])])


def describe_detector(given: Mapping[str, Any]) -> str:
    """Returns what the parts of a `VideoDetector` are, and their options, as text.

    Args:
        given: the options `detector` and `propagation`.
    """
    name, own = name_and_options("detector", given["detector"])
    lines = [f"detector: '{name}', described by that name; options of config.model.detector:"]
    # the classes are the whole model's
    options = [o for o in model_registry.options(name, **own) if not o.startswith("num_classes:")]
    lines += [f"  {option}" for option in options]
    return "\n".join([*lines, *_propagation_lines(given["propagation"])])


def _propagation_lines(spec: Any) -> list[str]:
    name, own = name_and_options("propagation", spec)
    lines = [f"propagation: '{name}' of {', '.join(registry.names())}; its options:"]
    return lines + [f"  {option}" for option in registry.options(name, **own)]
