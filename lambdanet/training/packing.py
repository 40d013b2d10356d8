"""The arrays of a state as a short list: vectors of the same length are the rows of one array.

What a jitted call takes of Python's time grows with the number of its arrays, and of a network's
state most are the vectors of its norms: parameters, statistics, momenta and averages of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lambdanet.training.state import TrainState, with_shardings

Packed = list[jax.Array]
Rows = list[jax.Array]
"""Numbers of rows, int32 [] each: 0, 1, ..."""


class Packing:
    """Packs the arrays of a state, and unpacks them, in programs and between them; no number
    changes.

    Vectors that have their part of the state (parameters, statistics, optimiser, averages), their
    length, dtype and sharding in common are the rows of one array. All others stay what they are.

    A program gets the numbers of the rows as arguments: XLA compiles alike operations once, and by
    constants those on different rows would be different, and the step would compile longer.

    Attributes:
        shardings: of the list.

    Args:
        state: arrays or abstract, each with its sharding.
    """

    def __init__(self, state: TrainState):
        flat, self._structure = jax.tree.flatten_with_path(state)
        alike: dict[Any, list[int]] = {}
        for index, (path, leaf) in enumerate(flat):
            alone = leaf.ndim != 1 or not leaf.sharding.is_fully_replicated
            kind = index if alone else (path[0], leaf.shape, leaf.dtype, leaf.sharding)
            alike.setdefault(kind, []).append(index)
        # Those that stay come first.
        self._places = sorted(alike.values(), key=lambda indices: len(indices) > 1)
        self._alone = sum(len(indices) == 1 for indices in self._places)
        self.shardings = [flat[indices[0]][1].sharding for indices in self._places]
        self._count = max(map(len, self._places))
        self._everywhere = NamedSharding(self.shardings[0].mesh, PartitionSpec())

    @functools.cached_property
    def rows(self) -> Rows:
        """What the step takes as third argument."""
        make = jax.jit(lambda: list(jnp.arange(self._count)), out_shardings=self._everywhere)
        return make()

    def pack(self, state: TrainState) -> Packed:
        """Returns the list; arrays that are no vectors are those of the state."""
        stack = jax.jit(_stack, out_shardings=self.shardings[self._alone :])
        return self._packed(state, self.rows, stack)

    def unpack(self, arrays: Packed) -> TrainState:
        """Returns the state, whose vectors are copies."""
        return self._unpacked(arrays, self.rows, jax.jit(_unstack))

    def abstract(self, state: TrainState) -> tuple[Packed, Rows]:
        """Returns the list of an abstract state and the numbers of the rows, abstract likewise."""
        rows = [jax.ShapeDtypeStruct((), jnp.int32, sharding=self._everywhere)] * self._count
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
    for i, parts in enumerate(lists):
        for row, part in zip(rows, parts, strict=False):
            stacked[i] = jax.lax.dynamic_update_index_in_dim(stacked[i], part, row, 0)
    return stacked


def _unstack(arrays: Sequence[jax.Array], rows: Rows) -> list[list[jax.Array]]:
    return [
        [jax.lax.dynamic_index_in_dim(array, row, keepdims=False) for row in rows[: len(array)]]
        for array in arrays
    ]
