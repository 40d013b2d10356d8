"""Criss-cross attention (CCNet): every position attends to its own row and column; two passes reach
the whole map.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import POINTWISE, Rule, prefixed
from lambdanet.layers import Captures, Linear, check_map
from lambdanet.ops.wide_einsum import wide_einsum


@registry.register("criss_cross")
class CrissCross(Captures, nnx.Module):
    r"""x <- x + gamma * softmax over the cross of (q . k) applied to v, `recurrence` times.

    A context block with its residual inside; gamma, one scalar, starts at zero, so that the block
    starts as the identity.

        q = x W_q + b_q,  k = x W_k + b_k,  v = x W_v + b_v
        cross(i, j) = {(g, j) for all g} and {(i, g) for all g}: H + W - 1 positions
        a[u, t] = softmax over t in cross(u) of q[u] . k[t];   y[u] = x[u] + gamma sum_t a[u, t] v[t]

    There is no 1 / sqrt(d). A position counts itself once, in its row. One pass links a position
    with its row and column, two passes link every pair of positions, through two corners of a
    rectangle. With three axes the cross is T + H + W - 2 positions and the whole volume needs three
    passes; with one axis it is the axis itself. Memory is N * (H + W) weights per pass, the pairs
    are never formed. Logits and softmax are float32.

    [b, *spatial, dim] -> the same shape, with one, two or three spatial axes. Parameters:
    `passes/<i>/query`, `key`, `value`, `gamma`; only `passes/0` where the passes share them. With
    the view attribute `capture`, a call sows `attention_map` [b, recurrence, *spatial, *spatial],
    zero outside the crosses.

    Source: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation" (ICCV 2019; TPAMI
    2020), section 3, and their code. The paper has neither gamma nor biases, the code has both:
    both are here. Their released 3-D code gathers one axis in the wrong order and counts the own
    voxel twice; here it is the paper's cross, each position once.

    Args:
        dim: channels.
        recurrence: passes, R. 'rcca' is the preset with 2.
        share_weights: all passes use the same weights, as the paper does; False gives each pass its
            own.
        reduction: q and k have dim // reduction channels.
        dtype: activation dtype; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: recurrence below 1, or a reduction that leaves no channel.
    """  # noqa: E501

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        recurrence: int = 1,
        share_weights: bool = True,
        reduction: int = 8,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if recurrence < 1:
            raise ValueError(f"criss-cross: recurrence is {recurrence}; allowed: 1 or more")
        if not 1 <= reduction <= dim:
            raise ValueError(
                f"criss-cross: reduction is {reduction} for {dim} channels; allowed: 1 <= "
                "reduction <= channels"
            )
        self.dim, self.depth, self.recurrence, self.dtype = dim, dim // reduction, recurrence, dtype
        count = 1 if share_weights else recurrence
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.passes = nnx.List([_Pass(dim, self.depth, **options) for _ in range(count)])

    def __call__(
        self, x: Float[Array, "b *spatial c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *spatial c"]:
        """Maps [b, *spatial, dim] to the same shape; `rngs` is not read."""
        check_map("criss-cross", x, self.dim)
        x = x.astype(self.dtype or x.dtype)
        maps = []
        for index in range(self.recurrence):
            x, weights = self.passes[index % len(self.passes)](x)
            if self.capture:
                maps.append(_full_map(weights, x.shape[1:-1]))
        if self.capture:
            self.sow(nnx.Intermediate, "attention_map", jnp.stack(maps, 1))
        return x

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample: projections, and both attention products over all
        axes, in every pass.

        The own position is multiplied once per axis and then masked, so the axes count in full.
        """
        projections = self.dim * (2 * self.depth + self.dim)
        return (
            self.recurrence
            * math.prod(spatial)
            * (projections + sum(spatial) * (self.depth + self.dim))
        )


registry.register("rcca", CrissCross, recurrence=2)


class _Pass(nnx.Module):
    """One set of weights: (x + gamma * context, the softmax weights of every axis)."""

    def __init__(self, dim: int, depth: int, **options: Any):
        self.query = Linear(dim, depth, **options)
        self.key = Linear(dim, depth, **options)
        self.value = Linear(dim, dim, **options)
        self.gamma = nnx.Param(jnp.zeros((1,), options["param_dtype"]))

    def __call__(self, x):
        query, key, value = (
            project(x).astype(x.dtype) for project in (self.query, self.key, self.value)
        )
        weights = criss_cross_weights(query, key)
        context = criss_cross_values(weights, value)
        return (x + self.gamma[...] * context).astype(x.dtype), weights


def criss_cross_weights(
    query: Float[Array, "b *spatial d"], key: Float[Array, "b *spatial d"]
) -> list[Array]:
    """Softmax of query . key over the cross of every position, one piece per spatial axis.

    Args:
        query: [b, *spatial, d].
        key: [b, *spatial, d].

    Returns:
        For each axis, of length l: [b, *other axes, l, l], the weight of every position of the line
        (last) for the query at a position of the line (before it). All pieces of a query sum to one
        together; its own position is zero in all pieces but the last. In that layout the products
        of a line are plain batched matrix products, and only [b, *spatial] maxima and sums are
        transposed. At least float32.
    """
    last = query.ndim - 2
    logits = {}
    for axis in range(1, last + 1):
        lines = (_to_lines(tensor, axis) for tensor in (query, key))
        piece = wide_einsum("...qc,...kc->...qk", *lines)
        if axis != last:  # the own position counts in the last axis alone
            piece = jnp.where(jnp.eye(piece.shape[-1], dtype=bool), -jnp.inf, piece)
        logits[axis] = piece
    # One softmax over all pieces. The last piece has no masked entry, so the joint maximum is
    # finite even where another piece is masked as a whole (an axis of length 1).
    peaks = [_from_lines(piece.max(-1, keepdims=True), axis) for axis, piece in logits.items()]
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, peaks))
    powers = {axis: jnp.exp(piece - _to_lines(peak, axis)) for axis, piece in logits.items()}
    total = sum(_from_lines(piece.sum(-1, keepdims=True), axis) for axis, piece in powers.items())
    return [piece / _to_lines(total, axis) for axis, piece in powers.items()]


def criss_cross_values(
    weights: Sequence[Array], value: Float[Array, "b *spatial c"]
) -> Float[Array, "b *spatial c"]:
    """Sums the values of every cross with the weights of `criss_cross_weights`; the result has the
    values' dtype.
    """
    lines = [
        _from_lines(
            jnp.einsum("...qk,...kc->...qc", piece.astype(value.dtype), _to_lines(value, axis)),
            axis,
        )
        for axis, piece in enumerate(weights, 1)
    ]
    return functools.reduce(operator.add, lines)


def _to_lines(tensor: jax.Array, axis: int) -> jax.Array:
    """[b, *spatial, c] -> [b, *other axes, axis, c]."""
    return jnp.moveaxis(tensor, axis, -2)


def _from_lines(tensor: jax.Array, axis: int) -> jax.Array:
    return jnp.moveaxis(tensor, -2, axis)


def _full_map(weights: Sequence[jax.Array], spatial: tuple[int, ...]) -> jax.Array:
    """Pieces of `criss_cross_weights` -> [b, *spatial, *spatial], zero outside the crosses."""
    axes, full = len(spatial), 0.0
    for own, piece in enumerate(weights):
        piece = _from_lines(piece, own + 1)  # [b, *query, key on the own axis]
        shape = [1] * axes
        shape[own] = spatial[own]
        piece = piece.reshape(*piece.shape[:-1], *shape)
        for other in range(axes):
            if other != own:  # keys of this line have the query's coordinate on the other axes
                shape = [1] * (2 * axes)
                shape[other] = shape[axes + other] = spatial[other]
                piece = piece * jnp.eye(spatial[other], dtype=piece.dtype).reshape(shape)
        full = full + piece
    return full


TORCH_NAMES = (
    *prefixed(POINTWISE, r"query_conv\.", "passes/0/query"),
    *prefixed(POINTWISE, r"key_conv\.", "passes/0/key"),
    *prefixed(POINTWISE, r"value_conv\.", "passes/0/value"),
    Rule(r"gamma", "passes/0/gamma"),
    Rule(r"gamma\.scale", "passes/0/gamma", lambda scale: scale.reshape(1)),  # mmcv
)
"""Names of the CrissCrossAttention of CCNet and of mmcv, for passes that share their weights."""
