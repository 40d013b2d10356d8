"""Content lambdas and their masked forms against loops over queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops import content_lambda

NORMS = ("key_norm", "causal_key_norm")
masked_lambdas = jax.jit(content_lambda.masked_content_lambdas, static_argnames=NORMS)
causal_lambdas = jax.jit(content_lambda.causal_content_lambdas, static_argnames=("causal", *NORMS))


def arrays(b=2, m=7, u=2, k=3, v=4):
    rng = np.random.default_rng(0)
    return rng.standard_normal((b, m, u, k)), rng.standard_normal((b, m, u, v))


def loop_over_queries(keys, v, mask, key_norm, causal_key_norm):
    """One query at a time: normalise the keys it sees, then sum."""

    def normalised(keys):
        if key_norm == "softmax":
            e = np.exp(keys - keys.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)
        return keys / np.sqrt((keys**2).sum(1, keepdims=True)) if key_norm == "l2" else keys

    out = np.zeros((keys.shape[0], mask.shape[0], keys.shape[-1], v.shape[-1]))
    for n, seen in enumerate(mask):
        if seen.any():
            shared = causal_key_norm == "shared"
            kbar = normalised(keys)[:, seen] if shared else normalised(keys[:, seen])
            out[:, n] = np.einsum("bmuk,bmuv->bkv", kbar, v[:, seen])
    return out


@pytest.mark.parametrize("key_norm", content_lambda.KEY_NORMS)
@pytest.mark.parametrize("causal_key_norm", content_lambda.CAUSAL_KEY_NORMS)
def test_masked_and_causal_lambdas_equal_the_loop(key_norm, causal_key_norm):
    keys, v = arrays()
    norms = dict(key_norm=key_norm, causal_key_norm=causal_key_norm)
    mask = np.random.default_rng(1).random((5, 7)) < 0.5
    mask[2] = False  # one query sees nothing
    with jax.enable_x64():
        found = masked_lambdas(keys, v, mask, **norms)
        np.testing.assert_allclose(found, loop_over_queries(keys, v, mask, **norms), atol=1e-12)
        for causal in ("inclusive", "strict"):
            order = np.tri(7, k=0 if causal == "inclusive" else -1, dtype=bool)
            np.testing.assert_array_equal(content_lambda.causal_mask(7, causal), order)
            found = causal_lambdas(keys, v, causal=causal, **norms)
            np.testing.assert_allclose(
                found, loop_over_queries(keys, v, order, **norms), atol=1e-12
            )


@pytest.mark.parametrize("key_norm", ["softmax", "l2"])
def test_gradients_of_causal_lambdas_equal_those_of_the_masked_form_and_are_finite(key_norm):
    keys, v = arrays()
    for causal in ("inclusive", "strict"):

        def gradients(function):
            return jax.jit(jax.grad(lambda keys, v: jnp.sum(jnp.sin(function(keys, v))), (0, 1)))(
                keys, v
            )

        def linear(keys, v, causal=causal):
            return content_lambda.causal_content_lambdas(keys, v, causal=causal, key_norm=key_norm)

        def quadratic(keys, v, causal=causal):
            mask = content_lambda.causal_mask(7, causal)
            return content_lambda.masked_content_lambdas(keys, v, mask, key_norm=key_norm)

        with jax.enable_x64():
            for ours, theirs in zip(gradients(linear), gradients(quadratic), strict=True):
                assert np.isfinite(ours).all()
                np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_keys_far_apart_do_not_underflow():
    """With one maximum for all contexts, exp(-400) / exp(-400) would be 0 / 0 in float32."""
    keys = np.array([-400, -401, 0, 400], np.float32).reshape(1, 4, 1, 1)
    v = np.array([1, 2, 3, 4], np.float32).reshape(1, 4, 1, 1)
    expected = np.array([1.0, (1 + 2 * np.exp(-1)) / (1 + np.exp(-1)), 3.0, 4.0])
    mask = content_lambda.causal_mask(4, "inclusive")

    @jax.jit
    def results(keys):
        strict = jax.grad(
            lambda k: content_lambda.causal_content_lambdas(k, v, causal="strict").sum()
        )
        return (
            content_lambda.causal_content_lambdas(keys, v, causal="inclusive"),
            content_lambda.masked_content_lambdas(keys, v, mask),
            strict(keys),
        )

    causal, masked, grads = map(np.asarray, results(keys))
    np.testing.assert_allclose(causal.ravel(), expected, rtol=1e-6)
    np.testing.assert_allclose(masked.ravel(), expected, rtol=1e-6)
    assert np.isfinite(grads).all()


def test_groups_of_queries_do_not_matter(monkeypatch):
    keys, v = arrays()
    mask = np.random.default_rng(1).random((5, 7)) < 0.5
    with jax.enable_x64():
        whole = content_lambda.masked_content_lambdas(jnp.asarray(keys), v, mask)
        monkeypatch.setattr(
            content_lambda, "MASKED_ELEMENTS", 2 * keys.size
        )  # two queries at a time, five in all
        grouped = content_lambda.masked_content_lambdas(jnp.asarray(keys), v, mask)
    np.testing.assert_allclose(grouped, whole, atol=1e-12)


def test_factors_times_values_are_the_output():
    keys, v = (jnp.asarray(a, jnp.float32) for a in arrays(u=1))
    rng = np.random.default_rng(1)
    q, embeddings = rng.standard_normal((2, 5, 3, 3)), rng.standard_normal((5, 7, 3, 1))
    kbar = content_lambda.normalise_keys(keys)
    weights = content_lambda.attention_weights(q, kbar, embeddings)
    lambdas = content_lambda.content_lambda(kbar, v)[:, None] + np.einsum(
        "nmku,bmuv->bnkv", embeddings, v
    )
    expected = content_lambda.apply_lambda(jnp.asarray(q, jnp.float32), lambdas)
    np.testing.assert_allclose(
        np.einsum("bhnm,bmv->bnhv", weights, v[:, :, 0]), expected, rtol=1e-4, atol=1e-5
    )


def test_bfloat16_keys_are_normalised_in_float32():
    keys = jnp.full((1, 300, 1, 1), 3.0, jnp.bfloat16)
    kbar = content_lambda.normalise_keys(keys)
    assert kbar.dtype == jnp.float32
    np.testing.assert_allclose(
        content_lambda.content_lambda(kbar, jnp.ones((1, 300, 1, 1), jnp.bfloat16)), 1, rtol=1e-6
    )


def test_l2_norm_of_zero_keys_gives_zero_and_finite_gradients():
    keys, v = jnp.zeros((1, 4, 1, 2)), jnp.ones((1, 4, 1, 3))

    @jax.jit
    @jax.value_and_grad
    def total(keys):
        return content_lambda.content_lambda(content_lambda.normalise_keys(keys, "l2"), v).sum()

    value, grad = total(keys)
    assert value == 0 and np.isfinite(grad).all()
