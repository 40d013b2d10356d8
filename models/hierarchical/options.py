"""Checks of the options of hierarchical Transformers, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdanet.registry import is_number

from ..context import PLACEMENTS, context_problems
from ..option_checks import DTYPES, MOST_BLOCKS, basic_problems, mixer_problems, positives
from .blocks import MLP_KINDS
from .embeddings import CONV_INITS, embed_problems

CHOICES = {
    "mlp": MLP_KINDS,
    "pool": ("mean", "cls"),
    "conv_init": CONV_INITS,
    "remat": ("none", "block"),
    "dtype": DTYPES,
    "param_dtype": DTYPES,
}


def cycles(attention: Any, depth: int) -> tuple[tuple[Any, ...], ...]:
    """Returns, for each of `depth` stages, the specs that its blocks take in turn."""
    stages = attention if isinstance(attention, tuple) else (attention,) * depth
    return tuple(entry if isinstance(entry, tuple) else (entry,) for entry in stages)


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with types, ranges, lengths and names of options of
    `HierarchicalTransformer`, one text per problem.

    Args:
        options: every option by name.
    """
    problems = basic_problems(
        options,
        choices=CHOICES,
        counts=("in_channels",),
        rates=("dropout_rate", "drop_path_rate"),
        positive=("norm_epsilon",),
        flags=("position_embedding", "stage_norm", "output_norm"),
    )
    scale, family = options["layer_scale"], options["family"]
    if scale is not None and not is_number(scale):
        problems.append(f"layer_scale is {scale!r}; allowed: a number, or None")
    if family is not None and not isinstance(family, str):
        problems.append(f"family is {family!r}; allowed: a name, or None")
    for name in ("stem", "downsample"):
        problems += embed_problems(name, options[name])
    if options["pool"] == "cls" and options["mlp"] != "plain":
        allowed = "plain with pool='cls', whose token has no place on a map to convolve"
        problems.append(f"mlp is {options['mlp']!r}; allowed: {allowed}")
    if positives(options["blocks"]) and sum(options["blocks"]) <= MOST_BLOCKS:
        problems += _stage_problems(options, options["blocks"])
    return problems


def _stage_problems(options: Mapping[str, Any], blocks: tuple[int, ...]) -> list[str]:
    depth = len(blocks)
    sizes = size_problems(options, ("widths", "num_heads"), depth)
    return [
        *(sizes or head_problems(options)),
        *cycle_problems(options["attention"], depth),
        *post_context_problems(options["context"], blocks),
    ]


def size_problems(options: Mapping[str, Any], counts: tuple[str, ...], depth: int) -> list[str]:
    """Returns what is wrong with the sizes of the stages, one text per problem.

    Args:
        options: with `widths` and `mlp_ratios`.
        counts: `widths` and other options with a positive integer per stage.
        depth: number of stages.
    """
    per_stage = f"a tuple of {depth} positive %s, as many as blocks has entries"
    wrong = [name for name in counts if not positives(options[name], depth)]
    problems = [f"{name} is {options[name]!r}; allowed: {per_stage % 'integers'}" for name in wrong]
    ratios = options["mlp_ratios"]
    if not _positive_numbers(ratios, depth):
        problems.append(f"mlp_ratios is {ratios!r}; allowed: {per_stage % 'numbers'}")
    elif "widths" not in wrong:
        problems += [
            f"mlp_ratios[{stage}] is {ratio}, which leaves no hidden channel; allowed: 1 or more"
            for stage, (width, ratio) in enumerate(zip(options["widths"], ratios, strict=True))
            if int(width * ratio) < 1
        ]
    return problems


def head_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns one text per stage whose heads do not divide its channels; for sizes without
    problems.
    """
    stages = enumerate(zip(options["num_heads"], options["widths"], strict=True))
    return [
        f"num_heads[{stage}] is {heads}; allowed: divisors of widths[{stage}]={width}"
        for stage, (heads, width) in stages
        if width % heads
    ]


def cycle_problems(attention: Any, depth: int, *, own: bool = False) -> list[str]:
    """Returns what is wrong with specs that the blocks of a stage take in turn, one text per
    problem.

    Args:
        attention: one spec, or one entry per stage, see `cycles`.
        depth: number of stages.
        own: whether None, which leaves a stage to the network's own attention, is one.
    """
    form = (
        f"{'None, ' * own}one spec, or {depth}, as many as blocks has; for blocks that take turns "
        "in a stage, a tuple as its entry"
    )
    if isinstance(attention, tuple) and len(attention) != depth:
        return [f"attention has {len(attention)} entries; allowed: {form}"]
    problems: list[str] = []
    for stage, specs in enumerate(cycles(attention, depth)):
        if not specs:
            problems.append(f"attention[{stage}] is (); allowed: {form}")
        for spec in () if own and specs == (None,) else specs:
            problems += [problem for problem in mixer_problems(spec) if problem not in problems]
    return problems


def post_context_problems(context: Any, blocks: tuple[int, ...]) -> list[str]:
    """Returns what is wrong with the option `context` of a Transformer, whose context blocks stand
    after its blocks, one text per problem.
    """
    problems = context_problems(context, blocks)
    if problems or context is None:
        return problems
    entries = enumerate((context,) if isinstance(context, Mapping) else context)
    placed = [(number, entry.get("placement", PLACEMENTS[0])) for number, entry in entries]
    return [
        f"context[{number}] has the placement {placement!r}; allowed in a Transformer: "
        f"{PLACEMENTS[0]}, after the block"
        for number, placement in placed
        if placement != PLACEMENTS[0]
    ]


def _positive_numbers(values: Any, length: int) -> bool:
    right_length = isinstance(values, tuple) and len(values) == length
    return right_length and all(is_number(value) and value > 0 for value in values)
