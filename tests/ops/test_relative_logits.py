"""Relative logits and the attention with them, against the definition with one embedding per pair
of positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part

from lambdanet.ops.relative_logits import (
    axis_embeddings,
    relative_attention,
    relative_attention_macs,
)
from lambdanet.ops.softmax_attention import dot_attention

# queries' grid, keys' grid, taps per axis: the whole map, a window around a block, strided queries
# with a table to spare
GRIDS = {
    "map": ((3, 5), (3, 5), (5, 9)),
    "window": ((2, 2), (4, 4), (7, 7)),
    "one position": ((1, 1), (1, 1), (1, 1)),
    "one row, spare taps": ((1, 3), (2, 5), (7, 9)),
}


def arrays(name, *, batch=(2,), heads=2, depth=3, value=4):
    queries, keys, taps = GRIDS[name]
    rng = np.random.default_rng(0)
    shapes = [
        (*batch, *queries, heads, depth),
        (*batch, *keys, heads, depth),
        (*batch, *keys, heads, value),
    ]
    shapes += [(t, depth) for t in taps]
    return [rng.standard_normal(shape) for shape in shapes]


def gathered(q, height, width, keys):
    """q . (height[Y - y + centre] + width[X - x + centre]) with an embedding for every pair."""
    (rows, columns), (m, n) = q.shape[-4:-2], keys
    embeddings = np.empty((rows, columns, m, n, q.shape[-1]))
    for y, x, Y, X in np.ndindex(rows, columns, m, n):
        embeddings[y, x, Y, X] = height[Y - y + len(height) // 2] + width[X - x + len(width) // 2]
    return np.einsum("...yxhd,yxYXd->...hyxYX", q, embeddings)


CASES = [(batch, name) for batch in ((2,), (2, 1, 3)) for name in GRIDS]


@pytest.mark.parametrize(
    ("batch", "name"), part(CASES, [((2, 1, 3), "map"), ((2,), "one row, spare taps")])
)
def test_attention_equals_its_definition(batch, name):
    q, k, v, height, width = arrays(name, batch=batch)
    logits = 0.5 * np.einsum("...yxhd,...YXhd->...hyxYX", q, k)
    logits += 2 * gathered(q, height, width, k.shape[-4:-2])
    weights = np.exp(logits)
    weights /= weights.sum((-2, -1), keepdims=True)
    expected = np.einsum("...hyxYX,...YXhv->...yxhv", weights, v)
    with jax.enable_x64():
        y, shown = relative_attention(
            *map(jnp.asarray, (q, k, v, height, width)),
            scale=0.5,
            relative_scale=2.0,
            return_weights=True,
        )
    assert y.dtype == shown.dtype == jnp.float64
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(shown, weights, rtol=1e-11, atol=1e-11)


def test_nothing_has_an_embedding_per_pair():
    """The largest array of forward and backward pass is the logits; all embeddings of one axis are
    no larger than a row.
    """
    side, heads, depth = 16, 2, 32
    q = jnp.ones((side, side, heads, depth))
    table = jnp.ones((2 * side - 1, depth))

    def loss(q, height, width):
        y, _ = relative_attention(q, q, q, height, width, scale=1.0, relative_scale=1.0)
        return y.sum()

    sizes = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(v.aval.size for v in equation.outvars)
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    walk(inner.jaxpr)

    walk(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, table, table).jaxpr)
    assert max(sizes) == heads * side**4 < depth * side**4
    assert relative_attention_macs((2, 3), (4, 5), 2, 3, 7) == 2 * (
        6 * 20 * (3 + 7) + 6 * (4 + 5) * 3
    )


@pytest.mark.parametrize(("taps", "queries", "keys"), [(5, 4, 3), (5, 3, 4), (4, 1, 1)])
def test_a_table_that_does_not_cover_the_offsets(taps, queries, keys):
    with pytest.raises(
        ValueError, match=f"{taps} taps do not cover {queries} queries and {keys} keys"
    ):
        axis_embeddings(jnp.ones((taps, 2)), queries, keys)


def test_list_attention_with_weights_equals_the_library_and_keeps_float64():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal(shape) for shape in ((2, 5, 4, 3), (2, 7, 2, 3), (2, 7, 2, 3)))
    logits = 0.3 * np.einsum("bnhd,bmhd->bhnm", q, k.repeat(2, 2))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bhnm,bmhd->bnhd", weights, v.repeat(2, 2))
    with jax.enable_x64():
        wide, none = dot_attention(*map(jnp.asarray, (q, k, v)), scale=0.3)
    np.testing.assert_allclose(wide, expected, rtol=1e-12, atol=1e-12)
    single = [a.astype(np.float32) for a in (q, k, v)]
    library, none = dot_attention(*single, scale=0.3)
    own, shown = dot_attention(*single, scale=0.3, return_weights=True)
    assert none is None and shown.shape == (2, 4, 5, 7)
    np.testing.assert_allclose(shown, weights, rtol=1e-5)
    np.testing.assert_allclose(library, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)
