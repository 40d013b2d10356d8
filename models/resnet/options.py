"""Checks of the ResNet options, in plain Python and before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdanet.attention import registry as attention_registry
from lambdanet.layers import ACTIVATIONS

from ..context import context_problems
from ..option_checks import DTYPES, MOST_BLOCKS, basic_problems, mixer_problems, positives
from .blocks import EXPANSION, POOL_WINDOWS, STEMS, stem_stride
from .dilation import FIRST_DILATIONS

CHOICES = {
    "block": tuple(EXPANSION),
    "stem": tuple(STEMS),
    "first_dilation": FIRST_DILATIONS,
    "shortcut": ("conv", "avg"),
    "pool": tuple(POOL_WINDOWS),
    "activation": tuple(ACTIVATIONS),
    "remat": ("none", "block", "stage"),
    "dtype": DTYPES,
    "param_dtype": DTYPES,
}


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with types, ranges, lengths and names of options of `ResNet`, one text
    per problem.

    Args:
        options: every option by name.
    """
    problems = basic_problems(
        options,
        choices=CHOICES,
        counts=("in_channels",),
        counts_or_zero=("num_classes",),
        rates=("dropout_rate", "drop_path_rate", "norm_momentum"),
        flags=("share_embeddings", "post_norm_act", "zero_init_last"),
    )

    def require(name: str, good: Any, allowed: str) -> None:
        if not good:
            problems.append(f"{name} is {options[name]!r}; allowed: {allowed}")

    require("widths", positives(options["widths"]), "a tuple of positive integers, one per stage")
    require("multi_grid", positives(options["multi_grid"]), "a tuple of positive integers")
    if options["stem"] in STEMS:
        least, bound = stem_stride(options["stem"]), options["output_stride"]
        require(
            "output_stride",
            bound is None or (positives((bound,)) and bound >= least and bound & (bound - 1) == 0),
            f"None, or a power of two from {least} on, the stride of stem={options['stem']!r}",
        )
    if options["block"] == "basic":
        require(
            "post_norm_act",
            options["post_norm_act"],
            "True with block='basic', whose norm after the attention layer is its last",
        )
    if positives(options["blocks"]) and sum(options["blocks"]) <= MOST_BLOCKS:
        blocks = options["blocks"]
        if positives(options["widths"]):
            require(
                "widths",
                len(options["widths"]) == len(blocks),
                f"{len(blocks)} entries, as many as blocks has",
            )
        problems += attention_problems(options, blocks) + context_problems(
            options["context"], blocks
        )
    return problems


def attention_problems(
    options: Mapping[str, Any], blocks: tuple[int, ...], *, also: tuple[str, ...] = ()
) -> list[str]:
    """Returns what is wrong with the options `attention` and `attention_blocks`, one text per
    problem.

    Args:
        options: every option by name.
        blocks: number of blocks per stage.
        also: keys of a spec that the network reads itself, and checks itself.
    """
    problems, share_embeddings = [], options.get("share_embeddings", False)
    specs = options["attention"]
    if isinstance(specs, tuple) and len(specs) != len(blocks):
        problems.append(
            f"attention has {len(specs)} entries; allowed: one spec, or {len(blocks)}, as many as "
            "blocks has"
        )
    specs = [spec for spec in (specs if isinstance(specs, tuple) else (specs,)) if spec is not None]
    for spec in specs:
        problems += _spec_problems(spec, share_embeddings, also)
    if share_embeddings and not specs:
        problems.append("share_embeddings is True; allowed: False where attention is None")

    where = options["attention_blocks"]
    return problems + ([] if where == "all" else blocks_problems("attention_blocks", where, blocks))


def blocks_problems(
    name: str, where: Any, blocks: tuple[int, ...], default: str = "all"
) -> list[str]:
    """Returns what is wrong with an option that names blocks of every stage, one text per problem.

    Args:
        name: of the option.
        where: its value, which is not `default`.
        blocks: number of blocks per stage.
        default: the value that is no tuple.
    """
    problems = []
    form = (
        f"{default!r}, or a tuple with one entry per stage: 'all' or a tuple of 1-based block "
        "numbers, () for none"
    )
    if not isinstance(where, tuple) or len(where) != len(blocks):
        return [f"{name} is {where!r}; allowed: {form} ({len(blocks)} stages)"]
    for stage, (entry, count) in enumerate(zip(where, blocks, strict=True)):
        if entry == "all":
            continue
        if (
            not isinstance(entry, tuple)
            or (entry and not positives(entry))
            or max(entry, default=0) > count
        ):
            problems.append(
                f"{name}[{stage}] is {entry!r}; allowed: 'all' or a tuple of numbers "
                f"from 1 to {count}"
            )
    return problems


def _spec_problems(spec: Any, share_embeddings: bool, also: tuple[str, ...]) -> list[str]:
    problems = mixer_problems(spec, also=also)
    if problems or not share_embeddings:
        return problems
    name = spec if isinstance(spec, str) else spec["name"]
    if "shared_embeddings" not in attention_registry.parameters(name):
        return [
            f"share_embeddings is True; allowed: False, attention '{name}' has no embeddings to "
            "share"
        ]
    return []
