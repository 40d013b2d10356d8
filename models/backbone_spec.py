"""Backbones inside other models: their specs, and the names of files that hold them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from lambdanet.interop.files import OWN_TABLE
from lambdanet.interop.names import Rule, prefixed
from lambdanet.registry import show

from .backbone import CLASSIFIER_PARTS
from .registration import registry

HANDED_TO_BACKBONE = ("in_channels", "image_size", "remat", "dtype", "param_dtype")
REMATS = ("none", "block", "stage")


def backbone_options(spec: Any, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name of a backbone and all options that it is built with.

    Args:
        spec: a name, or a mapping with `name` and options.
        given: options of the model around it; those that the backbone declares are handed on unless
            the spec sets them.

    Raises:
        ValueError: no such model, or a spec of another form.
    """
    name, own = name_and_options("backbone", spec)
    factory, _ = registry.lookup(name)
    other = ("outputs", "detect", "takes_clips")
    if not hasattr(factory, "features") or any(hasattr(factory, one) for one in other):
        raise ValueError(
            f"'{name}' is no backbone of images; allowed: models with `features` of their own"
        )
    if "num_classes" in own:
        raise ValueError("option 'num_classes' is that of the whole model; a backbone has none")
    declared = registry.parameters(name)
    handed = {key: given[key] for key in HANDED_TO_BACKBONE if key in declared and key in given}
    return name, {**handed, "num_classes": 0, **own}


def name_and_options(part: str, spec: Any) -> tuple[str, dict[str, Any]]:
    """Returns the name and the options of a spec; raises ValueError for one of another form.

    Args:
        part: what it is of, for the message.
        spec: a name, or a mapping with `name` and options.
    """
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ValueError(f"{part} is {show(spec)}; allowed: a name, or a mapping with 'name'")
    return spec["name"], {key: value for key, value in spec.items() if key != "name"}


def backbone_tables(backbone: nnx.Module) -> Mapping[str, tuple[Rule, ...]]:
    """Returns grammar -> table for files with a backbone's weights alone, placed in the model
    around it: its own names ('lambdanet') and those of PyTorch. The classifier that such a file
    has, and the norm before it, are dropped.

    Args:
        backbone: the backbone, without a classifier.
    """
    own = (Rule(CLASSIFIER_PARTS.pattern, None), Rule(r"(.+)", r"backbone/\1"))
    try:
        torch = backbone.torch_names
    except ValueError:
        torch = {}
    return {OWN_TABLE: own, **{name: prefixed(t, "", "backbone") for name, t in torch.items()}}
