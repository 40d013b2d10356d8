"""How far a block sees in a clip: over the clip, over each frame, or over each pixel through time.

A spec of a network of clips may have the key `extent` beside the block's own options:
    'spacetime': the block gets [b, t, h, w, c], if it takes three axes.
    'space': it gets every frame as a map of its own, [b * t, h, w, c].
    'time': it gets every pixel as a sequence of its own, [b * h * w, t, c].
Without it, a block that takes three axes sees the clip, and one that does not, each frame: what a
block takes is `lambdanet.attention.spatial_axes` of its spec. The last two are the space-only and
time-only variants of Wang et al. 2018, "Non-local Neural Networks", table 2e.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from lambdanet.attention import create_attention, spatial_axes
from lambdanet.registry import suggest

EXTENTS = {"spacetime": 3, "space": 2, "time": 1}
"""Extents, and the number of spatial axes of what a block gets."""

Spec = str | Mapping[str, Any]


def extent_of(spec: Spec) -> str:
    """Returns the extent of a block in a network of clips: that of its spec, or by its axes."""
    if not isinstance(spec, str) and "extent" in spec:
        return spec["extent"]
    axes = spatial_axes(_own(spec))
    return next((extent for extent, count in EXTENTS.items() if count in axes), "spacetime")


def create_block(
    spec: Spec,
    dim: int,
    *,
    size: tuple[int, ...],
    norm_momentum: float,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
) -> tuple[nnx.Module, str | None]:
    """Builds a block by `create_attention` and returns it with its extent, None in a network of
    images.

    Args:
        spec: of the block, with `extent` or without.
        dim: channels.
        size: at the block's place, (h, w) of images or (t, h, w) of clips; the block gets its part.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """
    options = dict(norm_momentum=norm_momentum, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    if len(size) == 2:
        return create_attention(spec, dim, size=size, **options), None
    extent = extent_of(spec)
    return create_attention(_own(spec), dim, size=_part(extent, size), **options), extent


def run_block(extent: str | None, block: nnx.Module, x: jax.Array, **inputs: Any) -> jax.Array:
    """Applies a block to [b, t, h, w, c] within its extent; with None, to `x` as it is."""
    if extent == "space":
        y = block(x.reshape(-1, *x.shape[2:]), **inputs)
        return y.reshape(*x.shape[:2], *y.shape[1:])
    if extent == "time":
        batch, frames, *pixels, channels = x.shape
        lines = x.reshape(batch, frames, -1, channels).swapaxes(1, 2)
        y = block(lines.reshape(-1, frames, channels), **inputs)
        y = y.reshape(batch, -1, frames, y.shape[-1]).swapaxes(1, 2)
        return y.reshape(batch, frames, *pixels, y.shape[-1])
    return block(x, **inputs)


def block_macs(extent: str | None, block: nnx.Module, size: tuple[int, ...]) -> int:
    """Returns the multiply-accumulates of a block for one image or clip of this size."""
    if extent is None:
        return block.macs(*size)
    part = _part(extent, size)
    return math.prod(size) // math.prod(part) * block.macs(*part)


def extent_problems(label: str, spec: Spec) -> list[str]:
    """Returns what is wrong with the extent of a spec that is right otherwise, one text at most.

    Args:
        label: of the spec, for the message.
        spec: of a registered block.
    """
    extent, own = extent_of(spec), _own(spec)
    if extent not in EXTENTS:
        hint = suggest(extent, tuple(EXTENTS))
        return [f"{label} has the extent {extent!r}; allowed: {', '.join(EXTENTS)}.{hint}"]
    axes = spatial_axes(own)
    if isinstance(spec, str) or "extent" not in spec or EXTENTS[extent] in axes:
        return []
    name = own if isinstance(own, str) else own["name"]
    allowed = ", ".join(one for one, count in EXTENTS.items() if count in axes)
    more = f", or spatial_dims={EXTENTS[extent]}" if name == "lambda" else ""
    return [f"{label} has the extent {extent!r}; allowed for '{name}': {allowed}{more}"]


def _own(spec: Spec) -> Spec:
    """The spec that the block is built from."""
    return spec if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "extent"}


def _part(extent: str, size: tuple[int, ...]) -> tuple[int, ...]:
    """Of a clip's size (t, h, w), that of what a block gets."""
    return {"spacetime": size, "space": size[1:], "time": size[:1]}[extent]
