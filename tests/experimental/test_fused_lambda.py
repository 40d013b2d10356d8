"""The fused kernel: against the 'query_first' lowering in interpret mode, and its lowering for
CUDA.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part

from lambdanet.experimental import fused_lambda
from lambdanet.ops import position_lambda

# map size, taps per axis, u, h, k, v, tile
GEOMETRIES = {
    "odd, not square": ((5, 11), (5, 3), 1, 3, 4, 5, (8, 8)),
    "two planes, taps beyond the map": ((4, 9), (23, 23), 2, 2, 4, 5, (8, 8)),
    "whole tiles, groups and blocks of channels": ((8, 16), (3, 5), 1, 2, 17, 70, (8, 16)),
    "one pixel": ((1, 1), (3, 3), 1, 1, 2, 3, (8, 8)),
}


def arrays(shape, scope, u, h, k, v, *, batch=2, dtype=np.float64):
    rng = np.random.default_rng(0)
    sizes = ((batch, *shape, h, k), (batch, *shape, u, v), (*scope, u, k))
    return tuple(jnp.asarray(rng.standard_normal(size), dtype) for size in sizes)


def with_gradients(function):
    """A function that returns values, and the gradients of their product with a fixed array."""

    @jax.jit
    def run(*operands):
        y, pull = jax.vjp(function, *operands)
        return y, *pull(
            jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
        )

    return run


def fused(*operands, tile=(8, 8)):
    return fused_lambda.fused_position_term(*operands, tile=tile, interpret=True)


def query_first(*operands):
    return position_lambda.position_term(*operands, impl="query_first")


@pytest.mark.parametrize("name", part(GEOMETRIES, list(GEOMETRIES)[1:3]))
def test_values_and_gradients_equal_query_first(name):
    *sizes, tile = GEOMETRIES[name]
    with jax.enable_x64():
        operands = arrays(*sizes)
        expected = with_gradients(query_first)(*operands)
        found = with_gradients(lambda *a: fused(*a, tile=tile))(*operands)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_low_precision_keeps_dtypes_adds_up_in_float32_and_repeats_bit_by_bit(dtype, tolerance):
    q, v, table = arrays((9, 10), (7, 5), 1, 2, 4, 5, dtype=dtype)
    operands = (q, v, table.astype(jnp.float32))
    exact = with_gradients(query_first)(*(a.astype(jnp.float32) for a in operands))
    run = with_gradients(fused)
    found = run(*operands)
    assert [a.dtype for a in found] == [dtype, dtype, dtype, jnp.float32]
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, atol=tolerance * np.abs(b).max())
    for a, b in zip(found, run(*operands), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("tile", "depth"), [((8, 8), 32), ((16, 8), 160)])
def test_all_three_kernels_lower_for_cuda(dtype, tile, depth):
    q, v, table = arrays((28, 28), (23, 23), 1, 4, 16, depth, batch=1, dtype=dtype)

    def loss(*operands):
        return fused_lambda._term(*operands, tile, False).astype(jnp.float32).sum()

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    text = gradients.trace(q, v, table).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu_v2") == 3


def test_a_backend_without_the_kernel_is_refused(monkeypatch):
    operands = arrays((4, 4), (3, 3), 1, 2, 4, 5, dtype=np.float32)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(
        ValueError, match="from Hopper on, the backend is 'cpu'; take impl 'auto', which runs"
    ):
        fused_lambda.fused_position_term(*operands)

    class Ampere:
        compute_capability = "8.0"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Ampere()])
    with pytest.raises(ValueError, match="9.0 or newer, this one has '8.0'; take impl 'auto'"):
        fused_lambda.fused_position_term(*operands)


def test_wrong_arguments_are_named():
    q, v, table = arrays((4, 4), (3, 3), 1, 2, 4, 5, dtype=np.float32)
    with pytest.raises(ValueError, match="maps with two axes"):
        fused(q[:, 0], v[:, 0], table[0])
    with pytest.raises(ValueError, match="do not belong together"):
        fused(q, v, table[..., :3])
    with pytest.raises(ValueError, match="must be odd"):
        fused(q, v, table[:2])
    with pytest.raises(ValueError, match="multiples of 8"):
        fused(q, v, table, tile=(4, 8))
    with pytest.raises(ValueError, match="q is float32, v is bfloat16"):
        fused(q, v.astype(jnp.bfloat16), table)
