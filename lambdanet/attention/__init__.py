"""Attention blocks by name: one file per paper, one import line per file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

# Importing a module registers its blocks.
from lambdanet.attention import bottleneck_attention as _bottleneck_attention  # noqa: F401
from lambdanet.attention import cbam as _cbam  # noqa: F401
from lambdanet.attention import cgnl as _cgnl  # noqa: F401
from lambdanet.attention import criss_cross as _criss_cross  # noqa: F401
from lambdanet.attention import cross_shaped_window as _cross_shaped_window  # noqa: F401
from lambdanet.attention import danet as _danet  # noqa: F401
from lambdanet.attention import double_attention as _double_attention  # noqa: F401
from lambdanet.attention import gc as _gc  # noqa: F401
from lambdanet.attention import halo_attention as _halo_attention  # noqa: F401
from lambdanet.attention import interlaced as _interlaced  # noqa: F401
from lambdanet.attention import lambda_layer as _lambda_layer  # noqa: F401
from lambdanet.attention import less_attention as _less_attention  # noqa: F401
from lambdanet.attention import linformer as _linformer  # noqa: F401
from lambdanet.attention import mhsa as _mhsa  # noqa: F401
from lambdanet.attention import neighborhood as _neighborhood  # noqa: F401
from lambdanet.attention import nonlocal_block as _nonlocal_block  # noqa: F401
from lambdanet.attention import ocnet as _ocnet  # noqa: F401
from lambdanet.attention import se as _se  # noqa: F401
from lambdanet.attention import slide as _slide  # noqa: F401
from lambdanet.attention import spatial_reduction as _spatial_reduction  # noqa: F401
from lambdanet.attention import window as _window  # noqa: F401
from lambdanet.attention.registration import registry

__all__ = [
    "KINDS",
    "create_attention",
    "describe",
    "kind",
    "list_attention",
    "registry",
    "spatial_axes",
]

KINDS = ("mixer", "context", "carried")
"""What a block is for: a mixer stands in for a 3x3 convolution or for MHSA; a context block is
inserted anywhere and carries its own residual or gate; a carried one hands state, such as attention
logits, from layer to layer."""


def create_attention(
    spec: str | Mapping[str, Any],
    dim: int,
    *,
    size: tuple[int, ...] | None = None,
    num_heads: int | None = None,
    dtype: Any = None,
    param_dtype: Any = None,
    norm_momentum: float | None = None,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Builds an attention block from its name.

    Args:
        spec: a registered name, or a mapping with `name` and the block's own options.
        dim: channels of the map the block works on.
        size: map size (height, width), of clips (frames, height, width); handed to blocks that
            declare `size`, unless the spec sets it.
        num_heads: heads of the host's stage; handed to blocks that declare `num_heads`, unless the
            spec sets it.
        dtype: activation dtype; None keeps the block's default.
        param_dtype: dtype of stored parameters; None keeps the block's default.
        norm_momentum: decay of running statistics, for blocks with batch norms; None keeps the
            block's default.
        rngs: source of the parameter initialisation.

    Returns:
        The block, an `nnx.Module` that maps [batch, *spatial, dim] to the same shape (a carried
        one: see its docstring).

    Raises:
        ValueError: unknown name or option, with the nearest known one.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in options:
        raise ValueError(
            f"attention spec {options!r} has no 'name'; allowed: {', '.join(registry.names())}"
        )
    name = options.pop("name")
    factory, preset = registry.lookup(name)
    options = {**preset, **options}
    registry.check_options(name, options)
    declared = registry.parameters(name)
    host = dict(
        size=size,
        num_heads=num_heads,
        dtype=dtype,
        param_dtype=param_dtype,
        norm_momentum=norm_momentum,
    )
    for key, value in host.items():
        if value is not None and key in declared:
            options.setdefault(key, value)
    return factory(dim, **options, rngs=rngs)


def kind(name: str) -> str:
    """Returns the kind of a registered block, one of `KINDS`; raises ValueError for an unknown
    name.
    """
    return registry.lookup(name)[0].kind


def spatial_axes(spec: str | Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the numbers of spatial axes that a block of this spec takes: 2 for maps, 3 for clips.

    A class says so by `spatial_axes`, a tuple or a static function of all its options; without it,
    the block takes one to three.
    """
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = given.pop("name")
    factory, preset = registry.lookup(name)
    declared = getattr(factory, "spatial_axes", (1, 2, 3))
    if not callable(declared):
        return declared
    defaults = {key: one.default for key, one in registry.parameters(name).items()}
    return declared({**defaults, **preset, **given})


def list_attention(pattern: str = "*", *, kind: str | None = None) -> list[str]:
    """Returns the sorted names of the blocks that match a shell pattern; with `kind` only those of
    that kind.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"kind is {kind!r}; allowed: None, {', '.join(KINDS)}")
    return [
        name for name in registry.names(pattern) if kind in (None, registry.lookup(name)[0].kind)
    ]


def describe(name: str) -> str:
    """Returns kind, signature, presets, formula, paper and options of a block, as text."""
    return f"{kind(name)} {registry.describe(name)}"
