"""Checks of the detectors' options and of those of their backbones, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdanet.layers.fpn import EXTRAS
from lambdanet.ops.boxes import CLAMPS
from lambdanet.registry import is_number, show

from ..backbone_spec import HANDED_TO_BACKBONE, REMATS, backbone_options
from ..building import model_builder
from ..option_checks import DTYPES, basic_problems, positives
from .anchoring import STYLES
from .box_losses import BOX_LOSSES
from .parts import HEAD_NORMS

_CHOICES = {
    "extra": EXTRAS,
    "head_norm": HEAD_NORMS,
    "anchor_style": STYLES,
    "box_clamp": CLAMPS,
    "box_loss": BOX_LOSSES,
    "remat": REMATS,
    "dtype": DTYPES,
    "param_dtype": DTYPES,
}
_COUNTS = (
    "channels",
    "first_stage",
    "num_levels",
    "anchor_octaves",
    "before_nms",
    "max_detections",
    "num_classes",
    "in_channels",
)
_POSITIVE = ("anchor_scale", "smooth_l1_beta")

LARGEST = {
    "channels": 2**14,
    "num_levels": 12,
    "anchor_octaves": 64,
    "anchor_scale": 10**4,
    "smooth_l1_beta": 10**4,
    "focal_gamma": 100,
    "num_convs": 100,
    "rpn_convs": 100,
    "mask_convs": 100,
    "roi_sampling": 16,
    "roi_finest": 10**5,
    "box_size": 128,
    "mask_size": 128,
    "fc_channels": 2**14,
    "mask_channels": 2**14,
    "num_classes": 10**5,
    "candidates": 10**6,
    "before_nms": 10**6,
    "max_detections": 10**6,
    "rpn_samples": 10**6,
    "roi_samples": 10**6,
    "proposals_before": 10**6,
    "proposals_after": 10**6,
}
"""Upper bounds, beyond what any detector needs; see `option_checks.LARGEST`."""

MOST_RATIOS, STEEPEST = 64, 100.0
"""Aspect ratios of anchors, and the largest of them; the smallest is one by it."""
LEAST_STD, MOST_STD = 1e-4, 1e4
"""Of a box coder."""


def retinanet_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with options of `RetinaNet`, one text per problem, those of the
    backbone included.

    Args:
        options: every option by name.
    """
    problems = basic_problems(
        {**options, "blocks": (1,)},
        choices={**_CHOICES, "loss_average": ("batch", "image")},
        counts=(*_COUNTS, "candidates"),
        counts_from_zero=("num_convs",),
        positive=_POSITIVE,
        flags=("padding_anchors", "extra_relu"),
    )
    problems += _fractions(options, "positive_iou", "negative_iou", "score_threshold")
    problems += _fractions(options, "nms_threshold", "focal_alpha")
    problems += _not_negative(options, "focal_gamma")
    problems += _ordered(options, "negative_iou", "positive_iou")
    return problems + _common(options, bool(problems))


def rcnn_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with options of `RCNN`, one text per problem, those of the backbone
    included.

    Args:
        options: every option by name.
    """
    counts = (
        *("roi_sampling", "box_size", "fc_channels", "mask_size", "mask_channels"),
        *("rpn_samples", "roi_samples"),
    )
    finest = () if options["roi_finest"] is None else ("roi_finest",)
    problems = basic_problems(
        {**options, "blocks": (1,)},
        choices={
            **_CHOICES,
            "rpn_box_loss": BOX_LOSSES,
            "background": ("last", "first"),
            "mask_target": ("binary", "soft"),
        },
        counts=(*_COUNTS, *counts),
        counts_from_zero=("rpn_convs", "mask_convs"),
        positive=(*_POSITIVE, *finest),
        flags=("padding_anchors", "roi_aligned", "masks"),
    )
    problems += _fractions(options, "rpn_positive_iou", "rpn_negative_iou", "rpn_force_iou")
    problems += _fractions(options, "rpn_positive_fraction", "proposal_nms", "nms_threshold")
    problems += _fractions(options, "roi_positive_fraction", "roi_positive_iou", "score_threshold")
    problems += _ordered(options, "rpn_negative_iou", "rpn_positive_iou")
    for name in ("proposals_before", "proposals_after"):
        if not positives(options[name], 2):
            problems.append(
                f"{name} is {show(options[name])}; allowed: two positive integers, in training and "
                "in evaluation"
            )
    return problems + _common(options, bool(problems))


def _common(options: Mapping[str, Any], wrong: bool) -> list[str]:
    """Problems of what all detectors have; the backbone's only once where options are wrong in the
    detector itself.
    """
    problems = []
    ratios = options["anchor_ratios"]
    if not (_all_between(ratios, 1 / STEEPEST, STEEPEST) and 1 <= len(ratios) <= MOST_RATIOS):
        problems.append(
            f"anchor_ratios is {show(ratios)}; allowed: one to {MOST_RATIOS} numbers from "
            f"{1 / STEEPEST:g} to {STEEPEST:g}"
        )
    stds = options["box_stds"]
    if not (_all_between(stds, LEAST_STD, MOST_STD) and len(stds) == 4):
        problems.append(
            f"box_stds is {show(stds)}; allowed: four numbers from {LEAST_STD:g} to {MOST_STD:g}"
        )
    problems += _numbers(options)
    for name, most in LARGEST.items():
        value = options.get(name)
        given = value if isinstance(value, tuple) else (value,)
        if any(is_number(n) and n > most for n in given):
            problems.append(f"{name} is {show(value)}; allowed: {most} or less")
    depth = None
    try:
        given = () if wrong else HANDED_TO_BACKBONE
        depth = backbone_depth(options["backbone"], {key: options[key] for key in given})
    except ValueError as error:
        problems.append(f"backbone: {error}")
    first, levels = options["first_stage"], options["num_levels"]
    if depth is not None and positives((first, levels)):
        if first > depth:
            problems.append(f"first_stage is {first}; allowed: 1 to {depth}, as the backbone has")
        elif levels < depth - first + 1:
            problems.append(
                f"num_levels is {levels}; allowed: {depth - first + 1} or more, one for every map "
                f"of the backbone from first_stage={first} on"
            )
    return problems


def backbone_depth(spec: Any, given: Mapping[str, Any]) -> int | None:
    """Returns how many maps a backbone gives; None where only the built one says it.

    Args:
        spec: see `backbone_options`.
        given: likewise.

    Raises:
        ValueError: no such backbone, or wrong options.
    """
    name, own = backbone_options(spec, given)
    blocks = getattr(model_builder(name, **own), "keywords", {}).get("blocks")
    return len(blocks) if isinstance(blocks, tuple) else None


def _numbers(options: Mapping[str, Any]) -> list[str]:
    """Problems of what says which output is which class."""
    problems = []
    first, numbers = options["numbered_from"], options["class_numbers"]
    if first is not None and first not in (0, 1) or isinstance(first, (bool, float)):
        problems.append(f"numbered_from is {show(first)}; allowed: None, 0, 1")
    whole = isinstance(numbers, tuple) and all(type(number) is int for number in numbers)
    if numbers is not None and not (whole and numbers):
        problems.append(f"class_numbers is {show(numbers)}; allowed: None, or whole numbers")
    return problems


def _all_between(values: Any, low: float, high: float) -> bool:
    """Whether it is a tuple of numbers from `low` to `high`."""
    return isinstance(values, tuple) and all(is_number(n) and low <= n <= high for n in values)


def _fractions(options: Mapping[str, Any], *names: str) -> list[str]:
    return [
        f"{name} is {show(options[name])}; allowed: from 0 to 1"
        for name in names
        if not (is_number(options[name]) and 0 <= options[name] <= 1)
    ]


def _not_negative(options: Mapping[str, Any], *names: str) -> list[str]:
    return [
        f"{name} is {show(options[name])}; allowed: 0 or more"
        for name in names
        if not (is_number(options[name]) and options[name] >= 0)
    ]


def _ordered(options: Mapping[str, Any], low: str, high: str) -> list[str]:
    low_value, high_value = options[low], options[high]
    if is_number(low_value) and is_number(high_value) and low_value > high_value:
        return [f"{low} is {low_value}; allowed: {high} ({high_value}) or less"]
    return []
