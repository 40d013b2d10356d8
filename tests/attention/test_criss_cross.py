"""Criss-cross attention against loops over pairs, what it links, and what it holds in memory."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_macs import jaxpr_macs
from jaxpr_sizes import largest_array

from lambdanet.attention import create_attention
from lambdanet.attention.criss_cross import TORCH_NAMES, CrissCross
from lambdanet.interop.names import convert

DIM = 8


def block(*, dim=DIM, seed=0, **options):
    """A block whose biases and gammas are not zero."""
    made = nnx.eval_shape(
        lambda: CrissCross(dim, **{"reduction": 2, **options}, rngs=nnx.Rngs(seed))
    )
    rng = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(made, nnx.Param)):
        variable.set_value(jnp.asarray(rng.normal(0, 0.6, variable.shape), variable.dtype))
    return made


def image(*spatial, dim=DIM, batch=2):
    return np.random.default_rng(3).standard_normal((batch, *spatial, dim)).astype(np.float32)


def on_cross(u, t):
    """Whether two positions differ in at most one coordinate."""
    return sum(a != b for a, b in zip(u, t, strict=True)) <= 1


def by_hand(made, x):
    """float64 loops over all pairs: (output, weights [b, passes, n, n])."""
    x, maps = np.float64(x), []
    spatial = x.shape[1:-1]
    positions = list(itertools.product(*map(range, spatial)))
    for index in range(made.recurrence):
        weights = made.passes[index if len(made.passes) > 1 else 0]
        q, k, v = (
            x @ np.float64(p.kernel[...]) + np.float64(p.bias[...])
            for p in (weights.query, weights.key, weights.value)
        )
        y = x.copy()
        shown = np.zeros((len(x), len(positions), len(positions)))
        for b, (n, u) in itertools.product(range(len(x)), enumerate(positions)):
            cross = [m for m, t in enumerate(positions) if on_cross(u, t)]
            powers = np.exp([q[b][u] @ k[b][positions[m]] for m in cross])
            for m, weight in zip(cross, powers / powers.sum(), strict=True):
                shown[b, n, m] = weight
                y[b][u] += float(weights.gamma[0]) * weight * v[b][positions[m]]
        x = y
        maps.append(shown)
    return x, np.stack(maps, 1)


@pytest.mark.parametrize(
    ("spatial", "options"),
    [
        ((5, 3), dict(recurrence=2)),
        ((3, 4), dict(recurrence=3, share_weights=False)),
        ((2, 3, 4), dict(recurrence=2)),
        ((5,), {}),
        ((1, 4), {}),
        ((4, 1), {}),
        ((1, 1), {}),
    ],
    ids=str,
)
def test_equals_the_loops(spatial, options):
    made, x = block(**options), image(*spatial)

    @jax.jit
    def run(x):
        return nnx.capture(nnx.view(made, capture=True), nnx.Intermediate)(x)

    y, sown = run(x)
    (shown,) = nnx.to_pure_dict(sown)["attention_map"]
    expected, weights = by_hand(made, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert shown.shape == (2, made.recurrence, *spatial, *spatial)
    np.testing.assert_allclose(shown.reshape(weights.shape), weights, rtol=1e-5, atol=1e-6)


def test_float64_is_not_rounded():
    with jax.enable_x64():
        made = block(param_dtype=jnp.float64, recurrence=2)
        x = jnp.asarray(np.float64(image(4, 3)))
        np.testing.assert_allclose(jax.jit(made)(x), by_hand(made, x)[0], rtol=1e-13, atol=1e-13)


def reached(made, *spatial):
    """[n, n]: whether an output position depends on an input position, from the Jacobian."""
    n = math.prod(spatial)
    x = 0.2 * image(*spatial, batch=1).reshape(
        n, DIM
    )  # small, so that no weight vanishes in the softmax
    jacobian = jax.jit(jax.jacrev(lambda x: made(x.reshape(1, *spatial, DIM)).reshape(n, DIM)))(x)
    return np.abs(jacobian).max((1, 3)) > 1e-9


def crosses(*spatial):
    positions = list(itertools.product(*map(range, spatial)))
    return np.array([[on_cross(u, t) for t in positions] for u in positions])


def test_one_pass_sees_the_cross_and_two_the_map():
    np.testing.assert_array_equal(reached(block(recurrence=1), 3, 4), crosses(3, 4))
    assert reached(block(recurrence=2), 3, 4).all()


def test_a_volume_needs_three_passes():
    once = crosses(2, 3, 2)
    np.testing.assert_array_equal(reached(block(recurrence=2), 2, 3, 2), once @ once)
    assert not (once @ once).all()
    assert reached(block(recurrence=3), 2, 3, 2).all()


@pytest.mark.parametrize(
    "spatial", [pytest.param(s, marks=() if s in ((1, 5), (1, 1, 3)) else pytest.mark.exhaustive)
                for s in [(1, 5), (5, 1), (1, 1), (1, 1, 3)]], ids=str
)  # fmt: skip
def test_gradients_are_finite_where_an_axis_is_masked_as_a_whole(spatial):
    made = block(dtype=jnp.bfloat16, recurrence=2)
    graphdef, state = nnx.split(made)

    @jax.jit
    def gradients(state, x):
        return jax.value_and_grad(
            lambda s, x: jnp.sum(nnx.merge(graphdef, s)(x).astype(jnp.float32) ** 2), (0, 1)
        )(state, x)

    for leaf in jax.tree.leaves(gradients(state, image(*spatial))):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


def test_large_logits_do_not_overflow():
    """The pieces share one maximum: a softmax per piece, or none subtracted, would overflow or sum
    to more than one.
    """
    made, x = block(), image(4, 5)
    made.passes[0].query.kernel[...] *= 1e3

    @jax.jit
    def captured(made, x):
        _, sown = nnx.capture(nnx.view(made, capture=True), nnx.Intermediate)(x)
        return nnx.to_pure_dict(sown)["attention_map"][0]

    shown = np.asarray(captured(made, x))
    np.testing.assert_allclose(shown.sum((-1, -2)), 1, rtol=1e-5)


def test_starts_as_the_identity_and_learns_from_there():
    made, x = CrissCross(DIM, recurrence=2, rngs=nnx.Rngs(0)), image(3, 4)
    np.testing.assert_array_equal(jax.jit(made)(x), x)
    graphdef, state = nnx.split(made)
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(nnx.merge(graphdef, s)(x) ** 2)))(state)
    assert abs(float(gradient["passes"][0]["gamma"][0])) > 1e-3


def test_memory_grows_with_rows_and_columns():
    """No array of forward and backward pass is larger than the weights of one axis, N * H."""
    side, dim = 32, 16
    made = block(dim=dim)
    gradient = jax.grad(lambda x: jnp.sum(made(x) ** 2))
    assert largest_array(gradient, image(side, side, dim=dim, batch=1)) == side**3


def parameters(module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def test_counts():
    def count(**options):
        return parameters(nnx.eval_shape(lambda: CrissCross(512, **options, rngs=nnx.Rngs(0))))

    assert count() == count(recurrence=2) == 328_321
    assert count(recurrence=3, share_weights=False) == 3 * 328_321
    made = nnx.eval_shape(lambda: create_attention("rcca", 512, rngs=nnx.Rngs(0)))
    # 97 x 97: the paper gives 16.5 GFLOPs for two passes, of two per multiply-add.
    assert round(2 * made.macs(97, 97) / 1e9, 1) == 16.5
    small = block(recurrence=2)
    assert small.macs(2, 3, 4) == jaxpr_macs(small, image(2, 3, 4, batch=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(recurrence=0), "recurrence is 0; allowed: 1 or more"),
        (dict(reduction=9), "reduction is 9 for 8 channels; allowed: 1 <= reduction <= channels"),
        (dict(reduction=0), "reduction is 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CrissCross(DIM, **options, rngs=nnx.Rngs(0))


def test_names_of_mmcv():
    draw = np.random.default_rng(0).standard_normal
    state = {
        f"{name}_conv.{kind}": draw(shape)
        for name in ("query", "key")
        for kind, shape in (("weight", (4, 8, 1, 1)), ("bias", 4))
    }
    state |= {
        "value_conv.weight": draw((8, 8, 1, 1)),
        "value_conv.bias": draw(8),
        "gamma.scale": draw(()),
    }
    shapes = {
        "/".join(map(str, path)): v.shape for path, v in nnx.to_flat_state(nnx.state(block()))
    }
    ours = convert(state, TORCH_NAMES, shapes)
    assert ours["passes/0/gamma"] == state["gamma.scale"]
    np.testing.assert_array_equal(
        ours["passes/0/query/kernel"], state["query_conv.weight"][:, :, 0, 0].T
    )
