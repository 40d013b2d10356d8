"""Position lambdas of the lambda layer: one sum, several lowerings.

    y[b, n, h, :] = sum_{m, u} (q[b, n, h, :] . E[n, m, u, :]) v[b, m, u, :]

(Bello 2021, arXiv 2102.08602, eq. 3.) No softmax couples queries and keys, so the products may be
taken in either order, exactly: lambda order builds the map lambda[n, k, v] = sum_m E v first,
attention order ("query first") the logits q . E. On a grid E is a relative table, E[n, m] =
table[offset of m from n], offset = key position - query position, zero outside the table
(correlation, no flip).

Array layouts: queries q [b, *s, h, k]; values v [b, *s, u, v]; table [*r, u, k] with every r odd; s
has one, two or three axes. Flat embeddings are [n, m, k, u], as the paper writes them, with n and m
row-major. Letters: b batch, h queries per lambda, k key depth, v value depth, u intra-depth, n
queries, m context elements, r taps per axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lambdanet.ops import content_lambda, cost_model, position_lowerings, spectral_lambda
from lambdanet.ops.relative_table import clip_table, dense_table, per_axis

IMPLS = ("auto", *cost_model.GRID_IMPLS, "fused")
FLAT_IMPLS = ("auto", *cost_model.FLAT_IMPLS)

_FEW = 64  # context elements up to which 'query_first' takes the content lambdas in


def position_lambdas(
    v: Float[Array, "b m u v"], embeddings: Float[Array, "n m k u"]
) -> Float[Array, "b n k v"]:
    """Returns lambda_p[b, n] = sum_{m, u} E[n, m, :, u] v[b, m, u, :]^T, one linear function per
    query.
    """
    return jnp.einsum("nmku,bmuv->bnkv", embeddings, v)


def position_term(
    q: Float[Array, "b *s h k"],
    v: Float[Array, "b *s u v"],
    table: Float[Array, "*r u k"],
    *,
    content: Float[Array, "b k v"] | None = None,
    dilation: int | Sequence[int] = 1,
    impl: str = "auto",
    chunk_rows: int | None = None,
) -> Float[Array, "b *s h v"]:
    """Applies the position lambdas of a relative table to the queries, on a grid with one, two or
    three axes; with content lambdas, these too: y += content^T q.

    Lowerings, equal up to rounding in values and gradients:
        'dense': the table written out for all pairs, lambda order, one matrix product with the
            batch in its columns.
        'conv': correlation of the values with the table, value depth folded into the batch.
        'query_first': the table written out for all pairs, attention order.
        'row_chunks': attention order by chunks of query rows and the rows they see, each recomputed
            in the backward pass.
        'halo_tiles': attention order by small tiles of queries and the keys around that they see;
            for few taps.
        'spectral': lambda order, by frequencies along the last axis and tiles of the map
            (`spectral_lambda`); one or two axes.
        'fused': a kernel for NVIDIA GPUs from Hopper on, never run on one so far
            (`lambdanet.experimental.fused_lambda`); two axes, dilation 1. Only on request.
        'auto': chosen from shapes, backend and dtype by `lambdanet.ops.cost_model`, for the forward
            pass alone where nothing is differentiated and for both passes where something is. On a
            CPU, where nothing is differentiated, 'query_first' of few context elements and
            'spectral' take the content lambdas into their own sums; all else applies them apart.

    Args:
        q: queries, h per position.
        v: values, u planes of depth v.
        table: relative embeddings, an odd number of taps per axis; taps that the map cannot reach
            are clipped away.
        content: content lambdas, one linear function per image, or None.
        dilation: pixels between taps.
        impl: the lowering.
        chunk_rows: query rows per chunk of 'row_chunks'; None takes the cost model's.

    Returns:
        The position part of the layer's output, with `content` both parts, in the dtype of `q`.
        Every lowering but 'fused', which has reverse mode alone, allows every transformation of
        JAX, nested as one likes.

    Raises:
        ValueError: unknown impl, even taps, shapes that do not belong together, 'spectral' for
            three axes, or 'fused' where it does not run.
    """
    shape = v.shape[1:-2]
    if table.ndim != len(shape) + 2 or table.shape[-2:] != (v.shape[-2], q.shape[-1]):
        raise ValueError(
            f"table of shape {table.shape} does not fit a map of size {shape}: it needs "
            f"{len(shape)} tap axes, "
            f"then u={v.shape[-2]}, k={q.shape[-1]}"
        )
    if any(r % 2 == 0 for r in table.shape[:-2]):
        raise ValueError(
            f"table has {table.shape[:-2]} taps per axis; each must be odd, so that one tap is the "
            "centre"
        )
    if content is not None and content.shape != (q.shape[0], q.shape[-1], v.shape[-1]):
        raise ValueError(
            f"content has shape {content.shape}; expected [b, k, v] = "
            f"{(q.shape[0], q.shape[-1], v.shape[-1])}"
        )
    dilation = per_axis(dilation, len(shape))
    geometry = cost_model.Geometry(
        batch=cost_model.static_batch(v.shape[0]),
        shape=shape,
        scope=table.shape[:-2],
        dilation=dilation,
        num_heads=q.shape[-2],
        key_depth=q.shape[-1],
        value_depth=v.shape[-1],
        intra_depth=v.shape[-2],
        itemsize=q.dtype.itemsize,
    )
    backend = jax.default_backend()
    device = cost_model.device_of(backend)
    rows = chunk_rows or cost_model.default_chunk_rows(geometry, device)

    def lowered(impl, q, v, table, content=None):
        table = clip_table(table, shape, dilation)
        if impl == "fused":
            if any(step != 1 for step in dilation):
                raise ValueError(f"impl 'fused' takes dilation 1, got {dilation}; take impl 'auto'")
            # Here, because its GPU front end takes half a second to import.
            from lambdanet.experimental.fused_lambda import fused_position_term

            return fused_position_term(q, v, table)
        if impl == "conv":
            return position_lowerings.by_convolution(q, v, table, dilation)
        if impl == "row_chunks":
            return position_lowerings.by_row_chunks(q, v, table, dilation, rows)
        if impl == "halo_tiles":
            return position_lowerings.by_halo_tiles(q, v, table, dilation, device)
        if impl == "spectral":
            return spectral_lambda.by_frequencies(q, v, table, dilation, content)
        dense = dense_table(table, shape, dilation)
        return position_lowerings.by_pairs(
            impl, position_lowerings.flat(q), position_lowerings.flat(v), dense, content
        ).reshape(*q.shape[:-1], v.shape[-1])

    def apart(impl, q, v, table, content=None):
        y = lowered(impl, q, v, table)
        if content is None:
            return y
        return y + content_lambda.apply_lambda(position_lowerings.flat(q), content).reshape(y.shape)

    cost_model.check_impl(impl, IMPLS)
    operands = (q, v, table) if content is None else (q, v, table, content)
    if impl != "auto":
        return apart(impl, *operands)
    forward, training = _choices(geometry, backend)
    few = geometry.intra_depth * math.prod(shape) <= _FEW
    narrow = geometry.key_depth <= spectral_lambda.UNROLLED_KEY_DEPTH
    joined = len(operands) > 3 and backend == "cpu"
    joined = joined and {"query_first": few, "spectral": narrow}.get(forward, False)
    if forward == training and not joined:
        return apart(training, *operands)
    run = functools.partial(lowered if joined else apart, forward)
    return _by_direction(run, functools.partial(apart, training), *operands)


def flat_position_term(
    q: Float[Array, "b n h k"],
    v: Float[Array, "b m u v"],
    embeddings: Float[Array, "n m k u"],
    *,
    mask: Bool[Array, "n m"] | None = None,
    impl: str = "auto",
) -> Float[Array, "b n h v"]:
    """Applies position lambdas of arbitrary embeddings: cross context with m != n, graphs, masked
    contexts.

    Args:
        q: queries.
        v: values of the context.
        embeddings: one embedding per (query, context element) pair.
        mask: True where the context element may be seen; None sees everything.
        impl: 'dense' (lambda order), 'query_first' (attention order) or 'auto'.

    Returns:
        The position part of the layer's output, in the dtype of `q`.

    Raises:
        ValueError: unknown impl (the grid lowerings need a relative table) or shapes that do not
            belong together.
    """
    expected = (q.shape[1], v.shape[1], q.shape[-1], v.shape[-2])
    if embeddings.shape != expected:
        raise ValueError(
            f"embeddings have shape {embeddings.shape}; expected [n, m, k, u] = {expected}"
        )
    geometry = cost_model.Geometry(
        batch=cost_model.static_batch(v.shape[0]),
        shape=(q.shape[1],),
        context=v.shape[1],
        num_heads=q.shape[-2],
        key_depth=q.shape[-1],
        value_depth=v.shape[-1],
        intra_depth=v.shape[-2],
        itemsize=q.dtype.itemsize,
    )
    cost_model.check_impl(impl, FLAT_IMPLS)
    if mask is not None:
        embeddings = jnp.where(mask[:, :, None, None], embeddings, 0)
    pairs = embeddings.transpose(0, 2, 3, 1)  # n k u m
    if impl != "auto":
        return position_lowerings.by_pairs(impl, q, v, pairs)
    forward, training = _choices(geometry, jax.default_backend())
    if forward == training:
        return position_lowerings.by_pairs(training, q, v, pairs)
    run = functools.partial(position_lowerings.by_pairs, forward)
    derived = functools.partial(position_lowerings.by_pairs, training)
    return _by_direction(run, derived, q, v, pairs)


def _choices(geometry: cost_model.Geometry, backend: str) -> tuple[str, str]:
    """The lowerings that are fastest in the forward pass alone, and in forward and backward."""
    forward, training = (
        cost_model.choose_impl(geometry, backend, direction) for direction in cost_model.DIRECTIONS
    )
    return forward, training


def _by_direction(
    run: Callable[..., jax.Array], derived: Callable[..., jax.Array], *operands: jax.Array
) -> jax.Array:
    """Runs `run`, or `derived` where something is differentiated: a custom tangent rule tells the
    two apart.
    """
    run = jax.custom_jvp(run)

    def rule(operands, tangents):
        moving = [
            i
            for i, t in enumerate(tangents)
            if not isinstance(t, jax.custom_derivatives.SymbolicZero)
        ]

        def of_moving(*values):
            chosen = dict(zip(moving, values, strict=True))
            return derived(*(chosen.get(i, operand) for i, operand in enumerate(operands)))

        return jax.jvp(of_moving, [operands[i] for i in moving], [tangents[i] for i in moving])

    run.defjvp(rule, symbolic_zeros=True)
    return run(*operands)
