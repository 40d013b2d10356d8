"""Suite `ops`: operations that XLA's CPU backend runs badly, beside our cures."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Case, Prepared
from lambdanet.ops import depthwise

# (batch, map side, channels, kernel side)
DEPTHWISE = ((8, 28, 192, 3), (8, 28, 64, 7))


def cases() -> list[Case]:
    """Returns one case per shape, direction and lowering."""
    return [
        Case("ops", "depthwise_{2}x{2}_{0}x{0}_c{1}".format(*shape[1:]), direction, impl, prepare)
        for shape in DEPTHWISE
        for direction in ("fwd", "train")
        for impl in depthwise.IMPLS
        for prepare in [functools.partial(prepare_depthwise, shape, direction, impl)]
    ]


def prepare_depthwise(shape: tuple[int, int, int, int], direction: str, impl: str) -> Prepared:
    """Compiles one lowering; `direction` 'train' is the output and both gradients."""
    batch, side, channels, kernel_side = shape
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=(batch, side, side, channels)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(kernel_side, kernel_side, 1, channels)), jnp.float32)

    def loss(x, kernel, impl):
        y = depthwise.depthwise_conv(x, kernel, impl=impl)
        return jnp.sum(y * weight), y

    def program(impl):
        train = jax.value_and_grad(functools.partial(loss, impl=impl), argnums=(0, 1), has_aux=True)
        function = functools.partial(depthwise.depthwise_conv, impl=impl) if direction == "fwd" else train
        return jax.jit(function).lower(x, kernel).compile()

    compiled = program(impl)

    def check():
        pairs = zip(jax.tree.leaves(compiled(x, kernel)), jax.tree.leaves(program("conv")(x, kernel)), strict=True)
        for i, (ours, reference) in enumerate(pairs):
            error = float(jnp.abs(ours - reference).max() / jnp.abs(reference).max())
            assert error < 1e-4, f"result {i} is off by {error:.1e}"

    passes = 1 if direction == "fwd" else 3
    return Prepared(
        lambda: (jax.block_until_ready(compiled(x, kernel)), None)[1],
        check,
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        flops=2.0 * passes * x.size * kernel_side**2,
        bytes=4.0 * 2 * passes * x.size,
    )
