"""Checks of the options of `VideoResNet`, in plain Python and before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..context import context_entries, context_problems
from ..extent import extent_problems
from ..option_checks import MOST_BLOCKS, basic_problems, positives
from ..resnet.options import CHOICES as IMAGE_CHOICES
from ..resnet.options import attention_problems, blocks_problems
from .inflation import INFLATIONS, STARTS
from .poolings import POOLINGS

CHOICES = {
    **{name: allowed for name, allowed in IMAGE_CHOICES.items() if name != "first_dilation"},
    "pooling": tuple(POOLINGS),
    "inflation": INFLATIONS,
    "image_weights": STARTS,
}


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with types, ranges, lengths and names of options of `VideoResNet`, one
    text per problem.

    Args:
        options: every option by name.
    """
    problems = basic_problems(
        options,
        choices=CHOICES,
        counts=("in_channels", "frames", "stem_frames", "stem_frame_stride"),
        counts_or_zero=("num_classes",),
        rates=("dropout_rate", "drop_path_rate", "norm_momentum"),
        flags=("post_norm_act", "zero_init_last"),
    )

    def require(name: str, good: Any, allowed: str) -> None:
        if not good:
            problems.append(f"{name} is {options[name]!r}; allowed: {allowed}")

    if positives((options["stem_frames"],)):
        require("stem_frames", options["stem_frames"] % 2, "odd numbers of frames")
    require("widths", positives(options["widths"]), "a tuple of positive integers, one per stage")
    if options["block"] == "basic":
        require(
            "post_norm_act",
            options["post_norm_act"],
            "True with block='basic', whose norm after the attention layer is its last",
        )
        require(
            "inflation",
            options["inflation"] != "3x1x1",
            "'none', '3x3x3' with block='basic', which has no 1x1 convolution",
        )
    blocks = options["blocks"]
    if not positives(blocks) or sum(blocks) > MOST_BLOCKS:
        return problems
    if positives(options["widths"]):
        require(
            "widths",
            len(options["widths"]) == len(blocks),
            f"{len(blocks)} entries, as many as blocks has",
        )
    problems += attention_problems(options, blocks, also=("extent",))
    if options["inflated_blocks"] != "paper":
        problems += blocks_problems("inflated_blocks", options["inflated_blocks"], blocks, "paper")
    problems += context_problems(options["context"], blocks, also=("extent",))
    if problems:
        return problems
    attention = options["attention"]
    specs = attention if isinstance(attention, tuple) else (attention,)
    for spec in specs:
        problems += [] if spec is None else extent_problems("attention", spec)
    for number, entry in enumerate(context_entries(options["context"])):
        label = f"context[{number}]" if isinstance(options["context"], tuple) else "context"
        problems += extent_problems(label, entry)
    return problems
