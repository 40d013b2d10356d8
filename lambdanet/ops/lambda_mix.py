"""The lambda layer between its projections and its output: content and position lambdas made and
applied.

Array layouts: queries q [b, *s, h, k]; keys [b, *m, u, k] before normalisation, None without a
content path; values v [b, *m, u, v]; a relative table [*r, u, k], or flat embeddings [n, m, k, u],
or neither. With a table the context is the map itself, *m = *s. Letters as in `position_lambda`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lambdanet.ops import content_lambda, position_lambda, relative_table


def mix(
    q: Float[Array, "b *s h k"],
    keys: Float[Array, "b *m u k"] | None,
    v: Float[Array, "b *m u v"],
    table: Float[Array, "*r u k"] | None,
    embeddings: Float[Array, "n m k u"] | None,
    *,
    mask: Bool[Array, "n m"] | None = None,
    bias: Float[Array, " k"] | None = None,
    key_norm: str = "softmax",
    causal: str = "none",
    causal_key_norm: str = "per_context",
    dilation: int | Sequence[int] = 1,
    impl: str = "auto",
    chunk_rows: int | None = None,
) -> Float[Array, "b *s h v"]:
    """Returns y[n, h] = (lambda_c + lambda_p_n)^T q[n, h] + q[n, h] . bias (Bello 2021, eq. 3), in
    the dtype of the queries.

    Args:
        q: queries.
        keys: keys before normalisation, or None.
        v: values.
        table: relative embeddings, or None.
        embeddings: flat embeddings, or None; at most one of the two.
        mask: True where a query may see a context element.
        bias: added to the position embeddings' answer, the same for all value channels.
        key_norm: 'softmax', 'l2' or 'none', over the context.
        causal: 'none', 'inclusive' or 'strict', in row-major order.
        causal_key_norm: 'per_context' or 'shared', for `causal` and `mask`.
        dilation: pixels between taps.
        impl: lowering of the position lambdas; with a mask or flat embeddings only 'dense',
            'query_first' and 'auto'.
        chunk_rows: see `position_lambda.position_term`.
    """
    shape, spatial = (*q.shape[:-1], v.shape[-1]), q.shape[1:-2]
    flat_q, flat_v, keys = _flat(q), _flat(v), _flat(keys)
    if mask is not None:
        mask = _seen(mask, causal, flat_q.shape[1])
    y, content = 0.0, None
    if keys is not None:
        norms = dict(key_norm=key_norm, causal_key_norm=causal_key_norm)
        if mask is not None:
            lambdas = content_lambda.masked_content_lambdas(keys, flat_v, mask, **norms)
        elif causal != "none":
            lambdas = content_lambda.causal_content_lambdas(keys, flat_v, causal=causal, **norms)
        else:
            lambdas = content_lambda.content_lambda(
                content_lambda.normalise_keys(keys, key_norm), flat_v
            )
        if table is not None and lambdas.ndim == 3:
            content = lambdas  # joined with the position lambdas, where that is faster
        else:
            y = content_lambda.apply_lambda(flat_q, lambdas).reshape(shape)
    if bias is not None:
        y = y + (q @ bias)[..., None]
    if table is not None and mask is None:
        # Row-major order of positions is row-major order of offsets: masked taps are exact and keep
        # every lowering.
        table = relative_table.mask_taps(table, causal)
        lowered = dict(dilation=dilation, impl=impl, chunk_rows=chunk_rows)
        y = y + position_lambda.position_term(q, v, table, content=content, **lowered)
    elif table is not None or embeddings is not None:
        if embeddings is None:
            embeddings = relative_table.dense_embeddings(table, spatial, dilation=dilation)
        seen = _seen(mask, causal, flat_q.shape[1])
        y = y + position_lambda.flat_position_term(
            flat_q, flat_v, embeddings, mask=seen, impl=impl
        ).reshape(shape)
    return y


def explain(
    q: Float[Array, "b *s h k"],
    keys: Float[Array, "b *m u k"] | None,
    v: Float[Array, "b *m u v"],
    table: Float[Array, "*r u k"] | None,
    embeddings: Float[Array, "n m k u"] | None,
    *,
    mask: Bool[Array, "n m"] | None = None,
    key_norm: str = "softmax",
    causal: str = "none",
    causal_key_norm: str = "per_context",
    dilation: int | Sequence[int] = 1,
) -> tuple[Float[Array, "b h n m"], Float[Array, "b n"]]:
    """Returns what `mix` did, pair by pair: the factors of `content_lambda.attention_weights` and
    the norms of the lambdas.

    Everything is written out, quadratic in the map. Arguments as in `mix`; `bias` is not part of
    it.
    """
    spatial = q.shape[1:-2]
    q, v, keys = _flat(q), _flat(v), _flat(keys)
    mask = _seen(mask, causal, q.shape[1])
    normalised, lambdas = None, 0.0
    if keys is not None and mask is None:
        normalised = content_lambda.normalise_keys(keys, key_norm)
        lambdas = content_lambda.content_lambda(normalised, v)[:, None]
    elif keys is not None:
        normalised = content_lambda.masked_keys(
            keys, mask, key_norm=key_norm, causal_key_norm=causal_key_norm
        )
        lambdas = jnp.einsum("bnmuk,bmuv->bnkv", normalised, v)
    if table is not None:
        embeddings = relative_table.dense_embeddings(table, spatial, dilation=dilation)
    if embeddings is not None:
        if mask is not None:
            embeddings = jnp.where(mask[:, :, None, None], embeddings, 0)
        lambdas = lambdas + position_lambda.position_lambdas(v, embeddings)
    norms = jnp.sqrt(jnp.sum(jnp.square(lambdas), axis=(-2, -1)))
    return content_lambda.attention_weights(q, normalised, embeddings), jnp.broadcast_to(
        norms, q.shape[:2]
    )


def _flat(a: jax.Array | None) -> jax.Array | None:
    """Merges the axes between the first and the last two."""
    return None if a is None else a.reshape(a.shape[0], -1, *a.shape[-2:])


def _seen(mask: jax.Array | None, causal: str, n: int) -> jax.Array | None:
    """Joins a mask and the causal order; None if everything is seen."""
    if causal == "none":
        return mask
    order = content_lambda.causal_mask(n, causal)
    return order if mask is None else mask & order
