"""Content lambdas of the lambda layer, with and without masks, and what a query attends to.

    lambda_c = sum_{m, u} kbar[m, u, :] v[m, u, :]^T,   kbar = keys normalised over the context m

(Bello 2021, arXiv 2102.08602, eq. 3.) A masked context (appendix B.2) gives every query its own
content lambda. `per_context` normalises the keys inside each context, which is what the paper's
text asks for; `shared` normalises them once over everything and only then masks, which is what its
listing does.

Array layouts: queries q [b, n, h, k]; keys [b, m, u, k]; values v [b, m, u, v]. Letters as in
`position_lambda`. Everything here computes in float32 (float64 for float64 inputs), whatever the
dtype of the inputs; an empty context gives zeros.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from lambdanet import batch_split

KEY_NORMS = ("softmax", "l2", "none")
CAUSAL_KEY_NORMS = ("per_context", "shared")
MASKED_ELEMENTS = 2**24  # normalised keys of a masked context that are held at once


def _wide(a: jax.Array) -> jax.Array:
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))


def normalise_keys(
    keys: Float[Array, "b m u k"], key_norm: str = "softmax"
) -> Float[Array, "b m u k"]:
    """Normalises every key channel over the context: 'softmax', 'l2' (unit norm) or 'none'."""
    keys = _wide(keys)
    if key_norm == "softmax":
        return jax.nn.softmax(keys, axis=1)
    if key_norm == "l2":
        return keys * _inverse_root(jnp.sum(keys**2, axis=1, keepdims=True))
    return keys


def content_lambda(
    normalised_keys: Float[Array, "b m u k"], v: Float[Array, "b m u v"]
) -> Float[Array, "b k v"]:
    """Returns sum_{m, u} kbar v^T, one linear function per image, shared by its queries."""
    # Merged by hand: contractions over two axes are rearranged on a CPU, forward or backward,
    # before they become products.
    keys, v = (_wide(a).reshape(a.shape[0], -1, a.shape[-1]) for a in (normalised_keys, v))
    return jnp.einsum("bmk,bmv->bkv", keys, v)


def causal_content_lambdas(
    keys: Float[Array, "b n u k"],
    v: Float[Array, "b n u v"],
    *,
    causal: str,
    key_norm: str = "softmax",
    causal_key_norm: str = "per_context",
) -> Float[Array, "b n k v"]:
    """Content lambdas over the raster-order past, in time and memory linear in n.

    Softmax keys normalised per context are a quotient of two sums over the past, which follow
    sum_n = exp(top_{n-1} - top_n) sum_{n-1} + exp(key_n - top_n) [v_n, 1] with top_n the largest
    key so far. No factor exceeds one and no divisor is below one, so no key is too large or too
    small. (One maximum shared by all contexts would let early contexts underflow to 0 / 0.)

    Args:
        keys: keys before normalisation.
        v: values.
        causal: 'inclusive' (context m <= n) or 'strict' (m < n; the first query has an empty
            context and gets zeros).
        key_norm: 'softmax', 'l2' or 'none'.
        causal_key_norm: 'per_context' or 'shared'.
    """
    keys, v = _wide(keys), _wide(v)
    if causal_key_norm == "shared" or key_norm == "none":
        lambdas = jnp.cumsum(
            jnp.einsum("bnuk,bnuv->bnkv", normalise_keys(keys, key_norm), v), axis=1
        )
    elif key_norm == "l2":
        sums = jnp.cumsum(jnp.einsum("bnuk,bnuv->bnukv", keys, v), axis=1)
        lambdas = jnp.einsum("bnukv,bnuk->bnkv", sums, _inverse_root(jnp.cumsum(keys**2, axis=1)))
    else:
        top = lax.cummax(
            lax.stop_gradient(keys), axis=1
        )  # cancels in the quotient, so it needs no gradient
        keep = jnp.concatenate(
            [jnp.zeros_like(top[:, :1]), jnp.exp(top[:, :-1] - top[:, 1:])], axis=1
        )[..., None]
        values = jnp.concatenate(
            [v, jnp.ones_like(v[..., :1])], axis=-1
        )  # the last channel sums the weights
        new = jnp.exp(keys - top)[..., None] * values[..., None, :]  # b n u k v+1
        _, sums = lax.associative_scan(_combine, (keep, new), axis=1)
        lambdas = jnp.sum(sums[..., :-1] / sums[..., -1:], axis=2)
    if causal == "strict":
        lambdas = jnp.pad(lambdas[:, :-1], [(0, 0), (1, 0), (0, 0), (0, 0)])
    return lambdas


def masked_keys(
    keys: Float[Array, "b m u k"],
    mask: Bool[Array, "n m"],
    *,
    key_norm: str = "softmax",
    causal_key_norm: str = "per_context",
) -> Float[Array, "b n m u k"]:
    """Normalised keys as each query sees them: zero outside its context; quadratic."""
    keys = _wide(keys)
    seen = mask[None, :, :, None, None]
    if causal_key_norm == "shared":
        return jnp.where(seen, normalise_keys(keys, key_norm)[:, None], 0)
    spread = jnp.where(seen, keys[:, None], 0)
    if key_norm == "softmax":
        top = jnp.max(jnp.where(seen, keys[:, None], -jnp.inf), axis=2, keepdims=True)
        top = lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
        weights = jnp.where(seen, jnp.exp(jnp.where(seen, spread - top, 0)), 0)
        total = weights.sum(2, keepdims=True)
        return weights / jnp.where(total > 0, total, 1)
    if key_norm == "l2":
        return spread * _inverse_root(jnp.sum(spread**2, axis=2, keepdims=True))
    return spread


def masked_content_lambdas(
    keys: Float[Array, "b m u k"],
    v: Float[Array, "b m u v"],
    mask: Bool[Array, "n m"],
    *,
    key_norm: str = "softmax",
    causal_key_norm: str = "per_context",
) -> Float[Array, "b n k v"]:
    """Content lambdas over an arbitrary context per query.

    Keys normalised per context differ from query to query: they are made for a few queries at a
    time, so that memory stays at `MASKED_ELEMENTS` normalised keys.

    Args:
        keys: keys before normalisation.
        v: values.
        mask: True where query n may see context element m; a query that sees nothing gets zeros.
        key_norm: 'softmax', 'l2' or 'none'.
        causal_key_norm: 'per_context' or 'shared'.
    """
    v = _wide(v)
    if causal_key_norm == "shared" or key_norm == "none":
        outer = jnp.einsum("bmuk,bmuv->bmkv", normalise_keys(keys, key_norm), v)
        return jnp.einsum("nm,bmkv->bnkv", mask.astype(v.dtype), outer)

    def some(rows):
        return jnp.einsum("bnmuk,bmuv->bnkv", masked_keys(keys, rows, key_norm=key_norm), v)

    n = mask.shape[0]
    group = max(1, min(n, MASKED_ELEMENTS * batch_split.devices() // keys.size))
    if group == n:
        return some(mask)
    groups = -(-n // group)
    rows = jnp.pad(mask, [(0, groups * group - n), (0, 0)]).reshape(groups, group, -1)
    lambdas = lax.map(jax.checkpoint(some), rows)  # groups b group k v
    lambdas = jnp.moveaxis(lambdas, 0, 1).reshape(
        v.shape[0], groups * group, keys.shape[-1], v.shape[-1]
    )
    return lambdas[:, :n]


def apply_lambda(q: Float[Array, "b n h k"], lambdas: Array) -> Float[Array, "b n h v"]:
    """Applies lambdas [b, k, v] (one per image) or [b, n, k, v] (one per query), in the dtype of
    the queries.
    """
    lambdas = lambdas.astype(q.dtype)
    if lambdas.ndim == 4:
        return jnp.einsum("bnhk,bnkv->bnhv", q, lambdas)
    batch, n, heads, key_depth = q.shape
    return (q.reshape(batch, n * heads, key_depth) @ lambdas).reshape(
        batch, n, heads, -1
    )  # merged for the same reason


def causal_mask(n: int, causal: str) -> Bool[Array, "n n"]:
    """True where query n may see element m: m <= n for 'inclusive', m < n for 'strict'."""
    return jnp.tri(n, k=0 if causal == "inclusive" else -1, dtype=bool)


def attention_weights(
    q: Float[Array, "b n h k"],
    normalised_keys: Array | None,
    embeddings: Float[Array, "n m k u"] | None,
) -> Float[Array, "b h n m"]:
    """The layer read in attention order: the factor q . (kbar + E), summed over u, with which query
    n takes in value m.

    The factors are linear in q, may be negative and do not sum to one: there is no softmax over
    pairs. The sum of factor times value over m is the layer's output for u = 1.

    Args:
        q: queries.
        normalised_keys: kbar [b, m, u, k], or [b, n, m, u, k] from `masked_keys`, or None without a
            content path.
        embeddings: E, zero outside the scope and the mask, or None without a position path.
    """
    q, weights = _wide(q), 0.0
    if normalised_keys is not None:
        pairs = "bmuk" if normalised_keys.ndim == 4 else "bnmuk"
        weights += jnp.einsum(f"bnhk,{pairs}->bhnm", q, normalised_keys)
    if embeddings is not None:
        weights += jnp.einsum("bnhk,nmku->bhnm", q, _wide(embeddings))
    return weights


def _combine(
    left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Composes two steps x -> keep * x + new."""
    return left[0] * right[0], right[0] * left[1] + right[1]


def _inverse_root(square: jax.Array) -> jax.Array:
    """1 / sqrt(square), zero (value and gradient) where square is zero."""
    return jnp.where(square > 0, lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
