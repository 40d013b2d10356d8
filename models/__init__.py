"""Backbones by name: `create_model(name, rngs=..., **overrides)`; one room per family."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

# Importing a family registers its models.
from . import hierarchical as _hierarchical  # noqa: F401
from . import lavit as _lavit  # noqa: F401
from . import resnet as _resnet  # noqa: F401
from .context import fit_context, replace_context
from .option_checks import positives
from .registration import registry

__all__ = [
    "builder_from_config",
    "create_from_config",
    "create_model",
    "describe",
    "list_models",
    "model_builder",
    "registry",
]

_log = logging.getLogger(__name__)


def create_model(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> nnx.Module:
    """Builds a model from its name: `model_builder(name, **overrides)(rngs=rngs)`.

    Args:
        name: one of `list_models()`.
        rngs: initialisation source.
        **overrides: as in `model_builder`.

    Returns:
        The model, an `nnx.Module`: images [b, h, w, c] to logits [b, num_classes].

    Raises:
        ValueError: as `model_builder`; parts that do not fit each other.
    """
    return model_builder(name, **overrides)(rngs=rngs)


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


def create_from_config(config: Any, *, rngs: nnx.Rngs, **data_options: Any) -> nnx.Module:
    """Builds `config.model`: `builder_from_config(config, data_options)(rngs=rngs)`."""
    return builder_from_config(config, data_options)(rngs=rngs)


def builder_from_config(config: Any, data_options: Mapping[str, Any]) -> Callable[..., nnx.Module]:
    """Checks `config.model` once and returns what builds it: its `name`, every other key being an
    option of that model.

    Args:
        config: the whole config; `config.data` gives `in_channels` and `image_size` to a model that
            has these options.
        data_options: options that the task has from the data, {'num_classes': 10} in
            classification; the model section goes before them, they before `config.data`.

    Returns:
        As `model_builder`.

    Raises:
        ValueError: as `model_builder`, also for an entry of `data_options` that the model does not
            have; a model section without `name`.
    """
    options = _plain(
        config.model.to_dict() if hasattr(config.model, "to_dict") else dict(config.model)
    )
    name = options.pop("name", None)
    if name is None:
        raise ValueError(f"config.model has no 'name'; allowed: {', '.join(list_models())}")
    declared = registry.parameters(name)
    size = {"in_channels": config.data.channels, "image_size": _plain(config.data.image_size)}
    size = {option: value for option, value in size.items() if option in declared}
    return model_builder(name, **{**size, **data_options, **options})


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted model names that match a shell pattern."""
    return registry.names(pattern)


def describe(name: str) -> str:
    """Returns signature, presets and docstring of a model, as text."""
    return registry.describe(name)


def _plain(value: Any) -> Any:
    """Turns what JSON and ml_collections make of tuples and dicts back into those."""
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(entry) for entry in value)
    return value
