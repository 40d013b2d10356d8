"""Backbones by name: `create_model(name, rngs=..., **overrides)`; one room per family."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

# Importing a family registers its models.
from . import detection as _detection  # noqa: F401
from . import hierarchical as _hierarchical  # noqa: F401
from . import lavit as _lavit  # noqa: F401
from . import resnet as _resnet  # noqa: F401
from . import segmentation as _segmentation  # noqa: F401
from . import video as _video  # noqa: F401
from .building import fit_attention_blocks, fit_heads, model_builder
from .closest import closest_model
from .loading import build_with_weights
from .registration import registry

__all__ = [
    "builder_from_config",
    "closest_model",
    "create_from_config",
    "create_model",
    "describe",
    "fit_attention_blocks",
    "fit_heads",
    "list_models",
    "model_builder",
    "registry",
]


def create_model(
    name: str,
    *,
    rngs: nnx.Rngs,
    pretrained: str | os.PathLike | bool = False,
    pretrained_head: str = "load",
    **overrides: Any,
) -> nnx.Module:
    """Builds a model from its name: `model_builder(name, **overrides)(rngs=rngs)`.

    Args:
        name: one of `list_models()`.
        rngs: initialisation source.
        pretrained: weights in place of initial values: a file, a folder, the workdir of a run, or
            `'hf:OWNER/NAME[@REVISION][/FILE]'` (see `lambdanet.interop.sources`); True: the public
            ones of `models.pretrained`; False: none.
        pretrained_head: with `pretrained`, what is taken of it: 'load' all; 'new' all but what
            depends on the classes, which stays as initialised; and the other values of
            `train.init_head`.
        **overrides: as in `model_builder`.

    Returns:
        The model, an `nnx.Module`: images [b, h, w, c], or clips [b, t, h, w, c], to logits [b,
        num_classes], or of a segmenter [b, h, w, num_classes].

    Raises:
        FileNotFoundError: no such weights.
        ValueError: as `model_builder`; parts that do not fit each other; weights that cannot be
            read or do not fit the model.
    """
    build = model_builder(name, **overrides)
    if not pretrained:
        return build(rngs=rngs)
    return build_with_weights(name, build, pretrained, head=pretrained_head, rngs=rngs)


def create_from_config(config: Any, *, rngs: nnx.Rngs, **data_options: Any) -> nnx.Module:
    """Builds `config.model`: `builder_from_config(config, data_options)(rngs=rngs)`."""
    return builder_from_config(config, data_options)(rngs=rngs)


def builder_from_config(config: Any, data_options: Mapping[str, Any]) -> Callable[..., nnx.Module]:
    """Checks `config.model` once and returns what builds it: its `name`, every other key being an
    option of that model.

    Args:
        config: the whole config; `config.data` gives `in_channels` and `image_size`, and
            `config.clips` gives `frames`, to a model that has these options.
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
    if "frames" in declared:
        size["frames"] = config.clips.frames
    size = {option: value for option, value in size.items() if option in declared}
    return model_builder(name, **{**size, **data_options, **options})


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted model names that match a shell pattern."""
    return registry.names(pattern)


def describe(name: str) -> str:
    """Returns signature, presets and docstring of a model, as text; of one that is made of parts
    also the options of these.
    """
    factory, preset = registry.lookup(name)
    if not hasattr(factory, "describe_parts"):
        return registry.describe(name)
    declared = registry.parameters(name)
    parts = {part: preset.get(part, declared[part].default) for part in factory.PARTS}
    return f"{registry.describe(name)}\n\n{factory.describe_parts(parts)}"


def _plain(value: Any) -> Any:
    """Turns what JSON and ml_collections make of tuples and dicts back into those."""
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_plain(entry) for entry in value)
    return value
