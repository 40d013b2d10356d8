"""Checks of the ResNet options, in plain Python and before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdanet.attention import kind, list_attention
from lambdanet.attention import registry as attention_registry
from lambdanet.layers import ACTIVATIONS

from ..context import context_problems
from ..option_checks import DTYPES, basic_problems, positives
from .blocks import EXPANSION, POOL_WINDOWS, STEMS

CHOICES = {
    "block": tuple(EXPANSION),
    "stem": tuple(STEMS),
    "shortcut": ("conv", "avg"),
    "pool": tuple(POOL_WINDOWS),
    "activation": tuple(ACTIVATIONS),
    "remat": ("none", "block", "stage"),
    "dtype": DTYPES,
    "param_dtype": DTYPES,
}


def check_options(options: Mapping[str, Any]) -> None:
    """Checks types, ranges, lengths and names.

    Args:
        options: every option of `ResNet` by name.

    Raises:
        ValueError: one message with every problem: the value, what is allowed, and the nearest name
            where there is one.
    """
    problems = basic_problems(
        options,
        choices=CHOICES,
        counts=("num_classes", "in_channels"),
        rates=("dropout_rate", "drop_path_rate", "norm_momentum"),
    )

    def require(name: str, good: Any, allowed: str) -> None:
        if not good:
            problems.append(f"{name} is {options[name]!r}; allowed: {allowed}")

    require("widths", positives(options["widths"]), "a tuple of positive integers, one per stage")
    if options["block"] == "basic":
        require(
            "post_norm_act",
            options["post_norm_act"],
            "True with block='basic', whose norm after the attention layer is its last",
        )
    if positives(options["blocks"]):
        blocks = options["blocks"]
        if positives(options["widths"]):
            require(
                "widths",
                len(options["widths"]) == len(blocks),
                f"{len(blocks)} entries, as many as blocks has",
            )
        problems += _attention_problems(options, blocks) + context_problems(
            options["context"], blocks
        )
    if problems:
        raise ValueError("; ".join(problems))


def _attention_problems(options: Mapping[str, Any], blocks: tuple[int, ...]) -> list[str]:
    problems = []
    specs = options["attention"]
    if isinstance(specs, tuple) and len(specs) != len(blocks):
        problems.append(
            f"attention has {len(specs)} entries; allowed: one spec, or {len(blocks)}, as many as "
            "blocks has"
        )
    specs = [spec for spec in (specs if isinstance(specs, tuple) else (specs,)) if spec is not None]
    for spec in specs:
        problems += _spec_problems(spec, options["share_embeddings"])
    if options["share_embeddings"] and not specs:
        problems.append("share_embeddings is True; allowed: False where attention is None")

    where = options["attention_blocks"]
    form = (
        "'all', or a tuple with one entry per stage: 'all' or a tuple of 1-based block "
        "numbers, "
        "() for none"
    )
    if where == "all":
        return problems
    if not isinstance(where, tuple) or len(where) != len(blocks):
        return [*problems, f"attention_blocks is {where!r}; allowed: {form} ({len(blocks)} stages)"]
    for stage, (entry, count) in enumerate(zip(where, blocks, strict=True)):
        if entry == "all":
            continue
        if (
            not isinstance(entry, tuple)
            or (entry and not positives(entry))
            or max(entry, default=0) > count
        ):
            problems.append(
                f"attention_blocks[{stage}] is {entry!r}; allowed: 'all' or a tuple of numbers "
                f"from 1 to {count}"
            )
    return problems


def mixer_problems(spec: Any) -> list[str]:
    """Returns what is wrong with the spec of a layer that mixes positions, one text per problem."""
    if not isinstance(spec, (str, Mapping)) or (isinstance(spec, Mapping) and "name" not in spec):
        return [f"attention is {spec!r}; allowed: a name, or a mapping with 'name' and options"]
    name = spec if isinstance(spec, str) else spec["name"]
    given = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "name"}
    try:
        problems = list(attention_registry.option_problems(name, given).values())
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


def _spec_problems(spec: Any, share_embeddings: bool) -> list[str]:
    problems = mixer_problems(spec)
    if problems or not share_embeddings:
        return problems
    name = spec if isinstance(spec, str) else spec["name"]
    if "shared_embeddings" not in attention_registry.parameters(name):
        return [
            f"share_embeddings is True; allowed: False, attention '{name}' has no embeddings to "
            "share"
        ]
    return []
