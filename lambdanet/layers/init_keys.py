"""Keys for parameter initialisation whose cost does not grow with the number already drawn."""

from __future__ import annotations

import jax


class InitKeys:
    """A stream of keys that layers accept in place of `nnx.Rngs` while they are built: the n-th key
    is fold_in(key, n).

    `nnx.Rngs` counts in a Variable. While a model is traced (`nnx.eval_shape`, `jax.jit`), each
    update of that counter asks a tracer for its sharding, and JAX answers by walking all equations
    so far: a network of 420 layers then takes minutes to build. This counter is a Python integer.
    Such a stream is for constructors only: a module must not keep it.

    Args:
        key: the key that all others are derived from, usually `rngs.params()`.
    """

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """Returns the next key."""
        key = jax.random.fold_in(self._key, self._count)
        self._count += 1
        return key
