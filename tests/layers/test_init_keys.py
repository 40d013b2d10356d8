"""Keys of InitKeys: distinct, reproducible, and accepted by layers in place of nnx.Rngs."""

import jax
from flax import nnx

from lambdanet.layers import InitKeys


def test_the_nth_key_is_the_seed_folded_with_n():
    seed = jax.random.key(5)
    keys = InitKeys(seed)
    for n in range(3):
        assert keys.params() == jax.random.fold_in(seed, n)


def test_tracing_a_layer_leaves_no_counter_in_the_program():
    def build(make_keys):
        return jax.make_jaxpr(lambda key: nnx.state(nnx.Linear(2, 3, rngs=make_keys(key))))(
            jax.random.key(0)
        )

    ours, theirs = build(InitKeys), build(nnx.Rngs)
    assert len(ours.eqns) < len(theirs.eqns)
    assert [v.aval for v in ours.jaxpr.outvars] == [v.aval for v in theirs.jaxpr.outvars]
