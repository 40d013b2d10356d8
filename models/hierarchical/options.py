"""Checks of the options of hierarchical Transformers, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..context import PLACEMENTS, context_problems
from ..option_checks import DTYPES, basic_problems, is_number, positives
from ..resnet.options import mixer_problems
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


def check_options(options: Mapping[str, Any]) -> None:
    """Checks types, ranges, lengths and names.

    Args:
        options: every option of `HierarchicalTransformer` by name.

    Raises:
        ValueError: one message with every problem: the value, what is allowed, and the nearest name
            where there is one.
    """
    problems = basic_problems(
        options,
        choices=CHOICES,
        counts=("num_classes", "in_channels"),
        rates=("dropout_rate", "drop_path_rate"),
        positive=("norm_epsilon", "embed_epsilon"),
        flags=("position_embedding", "stage_norm"),
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
    if positives(options["blocks"]):
        problems += _stage_problems(options, options["blocks"])
    if problems:
        raise ValueError("; ".join(problems))


def _stage_problems(options: Mapping[str, Any], blocks: tuple[int, ...]) -> list[str]:
    depth = len(blocks)
    per_stage = f"a tuple of {depth} positive %s, as many as blocks has entries"
    problems = [
        f"{name} is {options[name]!r}; allowed: {per_stage % 'integers'}"
        for name in ("widths", "num_heads")
        if not positives(options[name], depth)
    ]
    ratios = options["mlp_ratios"]
    if (
        not isinstance(ratios, tuple)
        or len(ratios) != depth
        or not all(is_number(r) and r > 0 for r in ratios)
    ):
        problems.append(f"mlp_ratios is {ratios!r}; allowed: {per_stage % 'numbers'}")
    elif positives(options["widths"], depth):
        empty = [
            stage for stage in range(depth) if int(options["widths"][stage] * ratios[stage]) < 1
        ]
        problems += [
            f"mlp_ratios[{stage}] is {ratios[stage]}, which leaves no hidden channel; allowed: 1 "
            "or more"
            for stage in empty
        ]
    if positives(options["widths"], depth) and positives(options["num_heads"], depth):
        problems += [
            f"num_heads[{stage}] is {heads}; allowed: divisors of widths[{stage}]={width}"
            for stage, (heads, width) in enumerate(
                zip(options["num_heads"], options["widths"], strict=True)
            )
            if width % heads
        ]
    return (
        problems
        + _attention_problems(options["attention"], depth)
        + _context_problems(options["context"], blocks)
    )


def _attention_problems(attention: Any, depth: int) -> list[str]:
    form = (
        f"one spec, or {depth}, as many as blocks has; for blocks that take turns in a stage, "
        "a "
        "tuple as its entry"
    )
    if isinstance(attention, tuple) and len(attention) != depth:
        return [f"attention has {len(attention)} entries; allowed: {form}"]
    problems: list[str] = []
    for stage, specs in enumerate(cycles(attention, depth)):
        if not specs:
            problems.append(f"attention[{stage}] is (); allowed: {form}")
        for spec in specs:
            problems += [problem for problem in mixer_problems(spec) if problem not in problems]
    return problems


def _context_problems(context: Any, blocks: tuple[int, ...]) -> list[str]:
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
