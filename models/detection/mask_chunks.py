"""The mask head on as many regions as there are, a few at a time.

Shapes are static: a picture has room for 100 detections and for 128 positive proposals, most of it
empty where there are few objects, and the mask head is the larger part of a step. On CPU a loop
ends with the last region of any picture. Elsewhere all regions are one batch, since small batches
leave an accelerator idle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

CHUNK = 8
"""Regions of every picture at a time."""


def wanted_chunk(rooms: int) -> int:
    """Returns how many of so many regions are worked on at a time on this platform."""
    return min(CHUNK, rooms) if jax.default_backend() == "cpu" else rooms


def in_chunks(
    function: Callable[[Any], Array], regions: Any, there: Bool[Array, "b r"], chunk: int
) -> Array:
    """Returns the results of regions [b, r, ...]: zeros after the last chunk that has one that is
    there.

    Args:
        function: of a part of `regions`, [b, chunk, ...] each, to [b, chunk, ...].
        regions: arrays [b, r, ...].
        there: which regions are needed; the first ones of each picture.
        chunk: regions of a picture at a time; r = all at once.
    """
    rooms = there.shape[1]
    if chunk >= rooms:
        return function(regions)
    regions = jax.tree.map(lambda x: _filled(x, chunk), regions)

    def step(number: Any, found: Array) -> Array:
        part = function(_part(regions, number, chunk))
        return jax.lax.dynamic_update_slice_in_dim(found, part, number * chunk, 1)

    one = jax.eval_shape(function, jax.eval_shape(lambda r: _part(r, 0, chunk), regions))
    length = -(-rooms // chunk) * chunk
    found = jnp.zeros((one.shape[0], length, *one.shape[2:]), one.dtype)
    return jax.lax.fori_loop(0, _turns(there, chunk), step, found)[:, :rooms]


def sum_in_chunks(
    function: Callable[[Any, Any, Any], Array],
    weights: Any,
    regions: Any,
    constants: Any,
    there: Bool[Array, "b r"],
    chunk: int,
) -> Array:
    """Returns the sum of a loss over regions, with gradients in `weights` and `regions`.

    They are computed with the loss, chunk by chunk, so that no activation is kept; for reverse mode
    of first order.

    Args:
        function: (weights, part of regions, part of constants) to a number; parts are
            [b, chunk, ...]. What is not there has to count 0.
        weights: floating arrays.
        regions: floating arrays [b, r, ...].
        constants: arrays [b, r, ...] without a gradient.
        there: as in `in_chunks`.
        chunk: as in `in_chunks`.
    """
    if chunk >= there.shape[1]:
        return function(weights, regions, constants)
    rooms = there.shape[1]

    def part_of(values: Any, number: Any) -> Any:
        return _part(jax.tree.map(lambda x: _filled(x, chunk), values), number, chunk)

    @jax.custom_vjp
    def total(weights, regions, constants, turns):
        def step(number, total):
            return total + function(
                weights, part_of(regions, number), part_of(constants, number)
            ).astype(jnp.float32)

        return jax.lax.fori_loop(0, turns, step, jnp.float32(0))

    def forward(weights, regions, constants, turns):
        def step(number, state):
            total, to_weights, to_regions = state
            value, (own, part) = jax.value_and_grad(function, (0, 1))(
                weights, part_of(regions, number), part_of(constants, number)
            )
            place = lambda whole, one: jax.lax.dynamic_update_slice_in_dim(  # noqa: E731
                whole, one, number * chunk, 1
            )
            return (
                total + value.astype(jnp.float32),
                jax.tree.map(jnp.add, to_weights, own),
                jax.tree.map(place, to_regions, part),
            )

        zeros = (
            jnp.float32(0),
            jax.tree.map(jnp.zeros_like, weights),
            jax.tree.map(lambda x: jnp.zeros_like(_filled(x, chunk)), regions),
        )
        total, *gradients = jax.lax.fori_loop(0, turns, step, zeros)
        return total, gradients

    def backward(gradients, cotangent):
        to_weights, to_regions = gradients
        to_regions = jax.tree.map(lambda x: x[:, :rooms], to_regions)
        scaled = jax.tree.map(lambda x: (x * cotangent).astype(x.dtype), (to_weights, to_regions))
        return *scaled, None, None

    total.defvjp(forward, backward)
    return total(weights, regions, constants, _turns(there, chunk))


def _turns(there: jax.Array, chunk: int) -> jax.Array:
    """Returns how many chunks reach the last region that is there in any picture."""
    ends = jnp.where(there, jnp.arange(1, there.shape[1] + 1, dtype=jnp.int32), 0)
    return (jnp.max(ends) + chunk - 1) // chunk


def _filled(x: jax.Array, chunk: int) -> jax.Array:
    """Zeros after the regions, up to whole chunks."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))


def _part(values: Any, number: Any, chunk: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, number * chunk, chunk, 1), values)
