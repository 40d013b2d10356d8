"""The arrays of a state as a short list: small ones of the same shape are the rows of one array.

What a jitted call takes of Python's time grows with the number of its arrays, and of a network's
state most are the vectors of its norms: parameters, statistics, momenta and averages of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lambdanet.training.state import TrainState, with_shardings

SMALL = 2**14
"""Numbers; larger arrays stay by themselves: a step copies each row once before it reads it."""

Packed = list[jax.Array]
Rows = list[jax.Array]
"""Digits of the rows' numbers, int32 [] each: 0, 1, ..., _BASE - 1, then 0, _BASE, 2 _BASE, ..."""
_BASE = 16


class Packing:
    """Packs the arrays of a state, and unpacks them, in programs and between them; no number
    changes.

    Arrays of at most `SMALL` numbers that have their shape, dtype and sharding in common, each
    device holding the whole, are the rows of one array. All others stay what they are.

    A program gets the digits of the rows' numbers as arguments: XLA compiles alike operations once,
    and by constants those on different rows would be different, and the step would compile longer.

    Attributes:
        shardings: of the list.

    Args:
        state: arrays or abstract, each with its sharding.
    """

    def __init__(self, state: TrainState):
        leaves, self._structure = jax.tree.flatten(state)
        alike: dict[Any, list[int]] = {}
        for index, leaf in enumerate(leaves):
            alone = leaf.size > SMALL or not leaf.sharding.is_fully_replicated
            kind = index if alone else (leaf.shape, leaf.dtype, leaf.sharding)
            alike.setdefault(kind, []).append(index)
        # Those that stay come first.
        self._places = sorted(alike.values(), key=lambda indices: len(indices) > 1)
        self._alone = sum(len(indices) == 1 for indices in self._places)
        self.shardings = [leaves[indices[0]].sharding for indices in self._places]
        self._digits = _BASE + -(-max(map(len, self._places)) // _BASE)
        self._everywhere = NamedSharding(self.shardings[0].mesh, PartitionSpec())

    @functools.cached_property
    def rows(self) -> Rows:
        """What the step takes as third argument."""
        numbers = [*range(_BASE), *range(0, _BASE * (self._digits - _BASE), _BASE)]
        return jax.jit(lambda: list(map(jnp.int32, numbers)), out_shardings=self._everywhere)()

    def pack(self, state: TrainState) -> Packed:
        """Returns the list; arrays that stay by themselves are those of the state."""
        stack = jax.jit(_stack, out_shardings=self.shardings[self._alone :])
        return self._packed(state, self.rows, stack)

    def unpack(self, arrays: Packed) -> TrainState:
        """Returns the state; what was a row is a copy."""
        return self._unpacked(arrays, self.rows, jax.jit(_unstack))

    def abstract(self, state: TrainState) -> tuple[Packed, Rows]:
        """Returns the list of an abstract state and the numbers of the rows, abstract likewise."""
        rows = [jax.ShapeDtypeStruct((), jnp.int32, sharding=self._everywhere)] * self._digits
        arrays = jax.eval_shape(lambda *given: self._packed(*given, _stack), state, rows)
        return with_shardings(arrays, self.shardings), rows

    def step(
        self, step: Callable[[TrainState, dict], tuple[TrainState, Any]]
    ) -> Callable[[Packed, dict, Rows], tuple[Packed, Any]]:
        """Returns a training step from list to list, to be jitted, with `rows` as last argument.

        Args:
            step: (state, batch) -> (state, what else there is).
        """

        def packed_step(arrays: Packed, batch: dict, rows: Rows) -> tuple[Packed, Any]:
            state, rest = step(self._unpacked(arrays, rows, _unstack), batch)
            return self._packed(state, rows, _stack), rest

        return packed_step

    def _packed(self, state: TrainState, rows: Rows, stack: Callable[..., list]) -> Packed:
        leaves = jax.tree.leaves(state)
        lists = [[leaves[i] for i in indices] for indices in self._places]
        return [leaf for (leaf,) in lists[: self._alone]] + stack(lists[self._alone :], rows)

    def _unpacked(self, arrays: Packed, rows: Rows, unstack: Callable[..., list]) -> TrainState:
        leaves = [None] * sum(map(len, self._places))
        lists = [[a] for a in arrays[: self._alone]] + unstack(arrays[self._alone :], rows)
        for indices, parts in zip(self._places, lists, strict=True):
            for index, part in zip(indices, parts, strict=True):
                leaves[index] = part
        return self._structure.unflatten(leaves)


def _stack(lists: Sequence[Sequence[jax.Array]], rows: Rows) -> list[jax.Array]:
    stacked = [jnp.zeros((len(parts), *parts[0].shape), parts[0].dtype) for parts in lists]
    put = functools.partial(lax.dynamic_update_index_in_dim, axis=0, allow_negative_indices=False)
    for i, parts in enumerate(lists):
        for row, part in enumerate(parts):
            stacked[i] = put(stacked[i], part, _row(rows, row))
    return stacked


def _unstack(arrays: Sequence[jax.Array], rows: Rows) -> list[list[jax.Array]]:
    options = dict(keepdims=False, allow_negative_indices=False)
    take = functools.partial(lax.dynamic_index_in_dim, **options)
    return [[take(a, _row(rows, row)) for row in range(len(a))] for a in arrays]


def _row(rows: Rows, number: int) -> jax.Array:
    return rows[number % _BASE] + rows[_BASE + number // _BASE]
