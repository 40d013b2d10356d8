"""From a name and options to a function that builds the model, for models that hold others, too."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from flax import nnx

from .context import fit_context, replace_context
from .option_checks import positives
from .registration import registry

_log = logging.getLogger(__name__)


def model_builder(name: str, **overrides: Any) -> Callable[..., nnx.Module]:
    """Checks the options of a model once and returns what builds it, as often as wanted.

    Args:
        name: one of `list_models()`.
        **overrides: options of the model's class in place of the name's presets; `describe(name)`
            lists both. With other `blocks` and no `attention_blocks` or `context`, the preset's
            places are fitted to the new depth (see `fit_attention_blocks`, `fit_context`); with
            other `widths` and no `num_heads`, the preset's heads to the new widths (see
            `fit_heads`). A `context` stands beside the preset's or, with None as its first entry,
            in its place (see `replace_context`).

    Returns:
        A function of the keyword `rngs` that checks no option again: `nnx.eval_shape(lambda:
        build(rngs=nnx.Rngs(0)))`.

    Raises:
        ValueError: unknown name or option, with the nearest known one; options out of their range,
            all of them in one message.
    """
    factory, preset = registry.lookup(name)
    registry.check_options(name, overrides)
    declared = registry.parameters(name)
    defaults = {k: p.default for k, p in declared.items() if p.default is not p.empty}
    if "context" in overrides:
        overrides["context"] = replace_context(name, preset.get("context"), overrides["context"])
    options = {**defaults, **preset, **overrides}
    missing = [option for option in declared if option not in (*options, "rngs")]
    if missing:
        raise ValueError(f"model '{name}' needs the options {', '.join(missing)}")
    fitted = (
        ("attention_blocks", fit_attention_blocks, "blocks"),
        ("context", fit_context, "blocks"),
        ("num_heads", fit_heads, "widths"),
    )
    for option, fit, changed in fitted:
        given, known = overrides.get(changed), options.get(option)
        if positives(given) and known is not None and option not in overrides:
            options[option] = fit(known, given)
            if options[option] != known:
                _log.info("%s with %s %s: %s %s", name, changed, given, option, options[option])
    # models of other people may have no check of their own
    problems = getattr(factory, "option_problems", lambda options: [])(options)
    if problems:
        raise ValueError("; ".join(problems))
    return functools.partial(factory, **options)


def fit_attention_blocks(placed: str | tuple, blocks: tuple[int, ...]) -> str | tuple:
    """Cuts preset block numbers to stages of another depth.

    Args:
        placed: 'all', or per stage 'all' or a tuple of 1-based block numbers.
        blocks: the new number of blocks per stage, positive integers.

    Returns:
        The same with the numbers that exist in each stage; a stage that had some and would have
        none keeps its last block. Unchanged if the number of stages differs, which the model then
        refuses.
    """
    if placed == "all" or len(placed) != len(blocks):
        return placed
    return tuple(
        entry if entry == "all" or not entry else tuple(n for n in entry if n <= count) or (count,)
        for entry, count in zip(placed, blocks, strict=True)
    )


def fit_heads(num_heads: tuple[int, ...], widths: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the preset's heads for stages of other widths: of each the largest divisor of its
    width that is not above.

    Unchanged if the number of stages differs, which the model then refuses.
    """
    if len(num_heads) != len(widths):
        return num_heads
    return tuple(
        max(n for n in range(1, heads + 1) if width % n == 0)
        for heads, width in zip(num_heads, widths, strict=True)
    )
