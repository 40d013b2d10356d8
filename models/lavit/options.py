"""Checks of the options of LaViT, in plain Python and before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdanet.attention.attention_residual import KERNELS, MODES, NORMS
from lambdanet.attention.diagonality_loss import MATRICES, VARIANTS
from lambdanet.attention.less_attention import RESIZE_POLICIES, TRANSFORMS
from lambdanet.registry import is_number

from ..context import place_context
from ..hierarchical.options import (
    cycle_problems,
    cycles,
    head_problems,
    post_context_problems,
    size_problems,
)
from ..option_checks import DTYPES, basic_problems

CHOICES = {
    "residual_kernel": KERNELS,
    "residual_mode": MODES,
    "residual_norm": NORMS,
    "loss_variant": VARIANTS,
    "loss_on": MATRICES,
    "pool": ("mean", "cls"),
    "remat": ("none", "block"),
    "dtype": DTYPES,
    "param_dtype": DTYPES,
}


def per_stage(value: Any, depth: int) -> tuple[Any, ...]:
    """Returns one entry per stage of an option that may be given once for all of them."""
    return value if isinstance(value, tuple) else (value,) * depth


def stage_specs(attention: Any, depth: int) -> tuple[tuple[Any, ...] | None, ...]:
    """Returns, for each stage, the specs that its blocks take in turn, or None where less-attention
    stays.
    """
    return tuple(None if entry == (None,) else entry for entry in cycles(attention, depth))


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with types, ranges, lengths and names of options of `LaViT`, and with
    what its parts demand of each other, one text per problem.

    Args:
        options: every option by name.
    """
    problems = basic_problems(
        options,
        choices=CHOICES,
        counts=("in_channels",),
        rates=("dropout_rate", "attention_dropout_rate", "drop_path_rate", "norm_momentum"),
        flags=("position_embedding", "center_rows", "output_norm"),
    )
    if options["transform_bias"] not in (None, True, False):
        problems.append(
            f"transform_bias is {options['transform_bias']!r}; allowed: None, True, False"
        )
    if not is_number(options["residual_scale"]):
        problems.append(f"residual_scale is {options['residual_scale']!r}; allowed: a number")
    return problems or _stage_problems(options, len(options["blocks"]))


def _stage_problems(options: Mapping[str, Any], depth: int) -> list[str]:
    counts = ("widths", "num_heads", "sr_ratios", "vanilla_blocks", "patch_sizes")
    problems = size_problems(options, counts, depth)
    residuals, transform = options["attention_residual"], options["transform"]
    if (
        not isinstance(residuals, tuple)
        or len(residuals) != depth
        or not all(isinstance(r, bool) for r in residuals)
    ):
        problems.append(
            f"attention_residual is {residuals!r}; allowed: a tuple of {depth} times True or "
            "False, one per stage"
        )
    if len(per_stage(transform, depth)) != depth or not all(
        one in TRANSFORMS for one in per_stage(transform, depth)
    ):
        problems.append(
            f"transform is {transform!r}; allowed: {', '.join(TRANSFORMS)}, or a tuple with "
            f"{depth} of these"
        )
    problems += cycle_problems(options["attention"], depth, own=True)
    problems += post_context_problems(options["context"], options["blocks"])
    return problems or _constraint_problems(options, depth)


def _constraint_problems(options: Mapping[str, Any], depth: int) -> list[str]:
    """What the parts demand of each other."""
    ratios, mode, specs = (
        options["sr_ratios"],
        options["residual_mode"],
        stage_specs(options["attention"], depth),
    )
    less = [
        own is None and count > vanilla
        for own, count, vanilla in zip(
            specs, options["blocks"], options["vanilla_blocks"], strict=True
        )
    ]
    problems = head_problems(options)
    problems += [
        f"sr_ratios[{stage}] is {ratios[stage]}; allowed: 1 in a stage with less-attention, whose "
        "maps of logits are square "
        f"(blocks[{stage}]={options['blocks'][stage]}, of them "
        f"vanilla_blocks[{stage}]={options['vanilla_blocks'][stage]})"
        for stage in range(depth)
        if less[stage] and ratios[stage] != 1
    ]
    resize, transforms = options["resize"], per_stage(options["transform"], depth)
    weighted = [stage for stage in range(depth) if less[stage] and transforms[stage] != "reuse"]
    if resize is not None and (resize not in RESIZE_POLICIES or not weighted):
        allowed = (
            f"None, {', '.join(RESIZE_POLICIES)}"
            if weighted
            else "None, no layer has weights tied to a size"
        )
        problems.append(f"resize is {resize!r}; allowed: {allowed}")
    if options["transform_bias"] and not weighted:
        problems.append(
            "transform_bias is True; allowed: None or False, no layer has a transform with weights"
        )
    for stage in range(depth):
        if options["attention_residual"][stage]:
            problems += _residual_problems(options, stage, ratios, mode, specs)
    last = depth - 1
    placed = place_context(options["context"], options["blocks"])
    if options["pool"] == "cls":
        if any(stage == last for stage, _ in placed):
            problems.append(
                "pool is 'cls'; allowed: 'mean' with context blocks in the last stage, which work "
                "on maps"
            )
        if specs[last] is not None:
            problems.append(
                f"pool is 'cls'; allowed: 'mean' where attention[{last}] stands in for the last "
                "stage's own, "
                "or None there, since other mixers work on maps without a class token"
            )
        elif ratios[last] != 1:
            problems.append(
                f"sr_ratios[{last}] is {ratios[last]}; allowed: 1 with pool='cls', whose token is "
                "on no map to reduce"
            )
        if options["attention_residual"][last] and mode == "query_only":
            problems.append(
                "residual_mode is 'query_only'; allowed: 'square' into a stage with a class token "
                "(pool='cls')"
            )
    return problems


def _residual_problems(
    options: Mapping[str, Any],
    stage: int,
    ratios: tuple[int, ...],
    mode: str,
    specs: tuple[Any, ...],
) -> list[str]:
    label = f"attention_residual[{stage}] is True"
    if stage == 0:
        return [f"{label}; allowed: False, no stage comes before the first"]
    problems = [
        f"{label}; allowed: False where attention[{side}] stands in for the stage's own, which "
        "hands on no logits"
        for side in (stage - 1, stage)
        if specs[side] is not None
    ]
    before, here = ratios[stage - 1], ratios[stage]
    if mode == "square" and (before, here) != (1, 1):
        problems.append(
            f"{label} between sr_ratios {before} and {here}; allowed: 1 and 1, its maps of logits "
            "are square "
            "(residual_mode='query_only' takes reduced keys of the same number)"
        )
    if mode == "query_only" and before != 2 * here:
        problems.append(
            f"{label} between sr_ratios {before} and {here}; allowed with residual_mode "
            "'query_only': twice the ratio "
            "before, so that both stages have the same number of keys"
        )
    if mode == "query_only" and options["residual_kernel"] != "full":
        problems.append(
            f"residual_kernel is {options['residual_kernel']!r}; allowed: full with residual_mode "
            "'query_only'"
        )
    if options["patch_sizes"][stage] != 2:
        patch = options["patch_sizes"][stage]
        problems.append(
            f"{label} beside patch_sizes[{stage}]={patch}; allowed: 2, the step by which logits "
            "are down-sampled"
        )
    return problems
