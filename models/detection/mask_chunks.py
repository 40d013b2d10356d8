"""The mask head on as many regions as there are, a few at a time.

Shapes are static: a picture has room for 100 detections and for 128 positive proposals, most of it
empty where there are few objects, and the mask head is the larger part of a step. On CPU a loop
goes through those that are there. Elsewhere all are one batch, since small batches leave an
accelerator idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

CHUNK = 16
"""Regions at a time."""
WIDE = 128
"""Channels from which on a loop pays: the 256 of the published networks do many times the work of a
turn's own cost, while with the 32 of `small_mask_rcnn` a step takes longer than with all regions at
once.
"""


def chunk_size(channels: int) -> int | None:
    """Returns how many regions a mask head with so many channels works on at a time on this
    platform; None: all.
    """
    return CHUNK if channels >= WIDE and jax.default_backend() == "cpu" else None


def in_chunks(
    function: Callable[[Any], Array], regions: Any, there: Bool[Array, " n"], chunk: int | None
) -> Array:
    """Returns the results [n, ...] of regions [n, ...], zeros where there are none.

    Args:
        function: of some of the regions to as many results.
        regions: arrays [n, ...].
        there: which regions there are.
        chunk: regions at a time; None: all.
    """
    if chunk is None:
        found = function(regions)
        return jnp.where(there.reshape(-1, *(1,) * (found.ndim - 1)), found, 0)
    order, turns = _order(there, chunk)

    def step(number: Any, found: Array) -> Array:
        rows = _rows(order, number, chunk)
        return found.at[rows].set(function(_take(regions, rows)), mode="drop")

    one = jax.eval_shape(lambda regions: function(_take(regions, order[:chunk])), regions)
    found = jnp.zeros((there.shape[0], *one.shape[1:]), one.dtype)
    return jax.lax.fori_loop(0, turns, step, found)


def sum_in_chunks(
    function: Callable[[Any, Any, Any], Array],
    weights: Any,
    regions: Any,
    constants: Any,
    there: Bool[Array, " n"],
    chunk: int | None,
) -> Array:
    """Returns the sum of the losses of the regions that are there, in float32, with gradients in
    `weights` and `regions`.

    In chunks these are computed with the loss, so that no activation is kept; for reverse mode of
    first order.

    Args:
        function: (weights, some regions, their constants) to the loss of each, [k].
        weights: floating arrays.
        regions: floating arrays [n, ...].
        constants: arrays [n, ...] without a gradient.
        there: which regions there are.
        chunk: regions at a time; None: all.
    """

    def some(weights: Any, regions: Any, constants: Any, there: Array) -> Array:
        losses = function(weights, regions, constants).astype(jnp.float32)
        return jnp.sum(jnp.where(there, losses, 0.0))

    if chunk is None:
        return some(weights, regions, constants, there)

    @jax.custom_vjp
    def every(weights, regions, constants, order, turns):
        def step(number, total):
            rows = _rows(order, number, chunk)
            return total + some(
                weights, _take(regions, rows), _take(constants, rows), rows < order.shape[0]
            )

        return jax.lax.fori_loop(0, turns, step, jnp.float32(0))

    def forward(weights, regions, constants, order, turns):
        def step(number, state):
            total, to_weights, to_regions = state
            rows = _rows(order, number, chunk)
            value, (own, part) = jax.value_and_grad(some, (0, 1))(
                weights, _take(regions, rows), _take(constants, rows), rows < order.shape[0]
            )
            return (
                total + value,
                jax.tree.map(jnp.add, to_weights, own),
                jax.tree.map(lambda x, one: x.at[rows].set(one, mode="drop"), to_regions, part),
            )

        zeros = jax.tree.map(jnp.zeros_like, (weights, regions))
        total, *gradients = jax.lax.fori_loop(0, turns, step, (jnp.float32(0), *zeros))
        return total, gradients

    def backward(gradients, cotangent):
        scaled = jax.tree.map(lambda x: (x * cotangent).astype(x.dtype), gradients)
        return *scaled, None, None, None

    every.defvjp(forward, backward)
    return every(weights, regions, constants, *_order(there, chunk))


def _order(there: Array, chunk: int) -> tuple[Int[Array, " n"], Int[Array, ""]]:
    """Returns the places of all regions, those first that are there and the others out of bounds;
    and how many chunks there are.
    """
    count = there.shape[0]
    places = jnp.argsort(~there, stable=True)
    order = jnp.where(there[places], places, count).astype(jnp.int32)
    return order, (jnp.sum(there, dtype=jnp.int32) + chunk - 1) // chunk


def _rows(order: Array, number: Any, chunk: int) -> Array:
    """The places of one chunk, out of bounds where there is nothing more."""
    places = number * chunk + jnp.arange(chunk)
    return order.at[places].get(mode="fill", fill_value=order.shape[0])


def _take(values: Any, rows: Array) -> Any:
    """Zeros where there is nothing."""
    return jax.tree.map(lambda x: x.at[rows].get(mode="fill", fill_value=0), values)
