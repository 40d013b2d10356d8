"""Checks of the options of hierarchical Transformers, in plain Python and before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdanet.registry import suggest

from .context import PLACEMENTS, context_problems
from .resnet_options import mixer_problems, positives
from .transformer_blocks import CONV_INITS, MLP_KINDS, embed_problems

CHOICES = {
    "mlp": MLP_KINDS,
    "pool": ("mean", "cls"),
    "conv_init": CONV_INITS,
    "remat": ("none", "block"),
    "dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
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
        ValueError: one message with every problem: the value, what is allowed, and the nearest name where there is one.
    """
    problems = []

    def require(name: str, good: Any, allowed: str) -> None:
        if not good:
            problems.append(f"{name} is {options[name]!r}; allowed: {allowed}")

    for name, choices in CHOICES.items():
        require(name, options[name] in choices, f"{', '.join(choices)}.{suggest(options[name], choices)}")
    for name in ("num_classes", "in_channels"):
        require(name, positives((options[name],)), "a positive integer")
    for name in ("dropout_rate", "drop_path_rate"):
        require(name, _number(options[name]) and 0.0 <= options[name] < 1.0, "at least 0 and below 1")
    for name in ("norm_epsilon", "embed_epsilon"):
        require(name, _number(options[name]) and options[name] > 0, "a positive number")
    for name in ("position_embedding", "stage_norm"):
        require(name, isinstance(options[name], bool), "True, False")
    scale = options["layer_scale"]
    require("layer_scale", scale is None or _number(scale), "a number, or None")
    require("family", options["family"] is None or isinstance(options["family"], str), "a name, or None")
    require("image_size", positives(options["image_size"], 2), "(height, width), positive integers")
    for name in ("stem", "downsample"):
        problems += embed_problems(name, options[name])
    if options["pool"] == "cls":
        require("mlp", options["mlp"] == "plain", "plain with pool='cls', whose token has no place on a map to convolve")
    require("blocks", positives(options["blocks"]), "a tuple of positive integers, one per stage")
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
    if not isinstance(ratios, tuple) or len(ratios) != depth or not all(_number(r) and r > 0 for r in ratios):
        problems.append(f"mlp_ratios is {ratios!r}; allowed: {per_stage % 'numbers'}")
    elif positives(options["widths"], depth):
        empty = [stage for stage in range(depth) if int(options["widths"][stage] * ratios[stage]) < 1]
        problems += [
            f"mlp_ratios[{stage}] is {ratios[stage]}, which leaves no hidden channel; allowed: 1 or more" for stage in empty
        ]
    if positives(options["widths"], depth) and positives(options["num_heads"], depth):
        problems += [
            f"num_heads[{stage}] is {heads}; allowed: divisors of widths[{stage}]={width}"
            for stage, (heads, width) in enumerate(zip(options["num_heads"], options["widths"], strict=True))
            if width % heads
        ]
    return problems + _attention_problems(options["attention"], depth) + _context_problems(options["context"], blocks)


def _attention_problems(attention: Any, depth: int) -> list[str]:
    form = f"one spec, or {depth}, as many as blocks has; for blocks that take turns in a stage, a tuple as its entry"
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
        f"context[{number}] has the placement {placement!r}; allowed in a Transformer: {PLACEMENTS[0]}, after the block"
        for number, placement in placed
        if placement != PLACEMENTS[0]
    ]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
