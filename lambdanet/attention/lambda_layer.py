"""The lambda layer of LambdaNetworks (Bello, ICLR 2021, arXiv 2102.08602) and its variants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import BATCH_NORM, POINTWISE, Rule, prefixed
from lambdanet.layers import Captures, Linear, batch_norm, check_map
from lambdanet.ops import content_lambda, lambda_mix, position_lambda, relative_table

_ALLOWED = {
    "spatial_dims": (1, 2, 3),
    "key_norm": content_lambda.KEY_NORMS,
    "query_norm": ("none", "softmax"),
    "causal": relative_table.CAUSAL,
    "causal_key_norm": content_lambda.CAUSAL_KEY_NORMS,
    "init": ("paper", "timm"),
    "impl": position_lambda.IMPLS,
}


@registry.register("lambda")
class LambdaLayer(Captures, nnx.Module):
    r"""Every query gets a linear function, its lambda, made from the context; the output is lambda
    applied to query.

        q = BN(x W_q),  kbar = softmax_m(c W_k),  v = BN(c W_v)
        y[n, head] = (sum_{m,u} kbar[m,u] v[m,u]^T + sum_{m,u} E[n,m,u] v[m,u]^T)^T q[n, head]

    The first sum is the content lambda, one per image and always global; the second the position
    lambda, one per query, over a local scope or the whole map, with E[n, m] = embedding[position of
    m - position of n]. All heads of a position share its lambda ("multi-query"). There is no
    softmax over pairs, so the content path is linear in the map and the position path may run in
    any order (`impl`).

    Not inside: residual, output projection, stride, the batch norm after the layer. Heads are the
    outer part of the query and output channels (head * k + i, head * v + j), intra-depth the outer
    part of the key and value channels (u * k + i, u * v + j).

    Parameters: `query`, `key`, `value` (kernels [c, out]), `norm_query`, `norm_value`, `pos_bias`
    [k] and `embedding` [*r, u, k] with one axis of r per spatial axis, offset = key position -
    query position, centre tap at (r - 1) / 2 (multi-head: [h, *r, u, k]).

    With the view attribute `capture`, a call sows two `nnx.Intermediate`, quadratic in the map:
    `attention_map` [b, h, *s, *s] (or [b, h, *s, m] for a context of its own), the factors q .
    (kbar + E) with which every value enters every output, of both signs and not summing to one (for
    u > 1 their sum over u); `lambda_norm` [b, 1, *s] (multi-head: [b, h, *s]), the Frobenius norm
    of each query's lambda.

    Source: Bello 2021, "LambdaNetworks: Modeling Long-Range Interactions Without Attention",
    section 3 and listing 1. Beyond the paper: `pos_bias` is the bias of the PyTorch ports' position
    convolution; `shared_embeddings`, `dilation`, `context` and `mask` are what it describes without
    a listing.

    Args:
        dim: channels of the input.
        num_heads: queries per lambda, h; divides `dim_out`.
        key_depth: query and key depth, k.
        intra_depth: key-value pairs per context element, u; the paper uses scope 7 with u > 1.
        scope: taps of the position lambdas per axis, r, odd, one number or one per axis; None ties
            a table of 2 * size - 1 taps to `size`. With neither, the layer has no table and takes
            `embeddings` [n, m, k, u] at every call (graphs, cross context).
        dilation: pixels between taps, one number or one per axis.
        dim_out: channels of the output; None means `dim`.
        context_dim: channels of `context`; None means `dim`.
        size: map size per axis; read only with `scope=None`.
        spatial_dims: spatial axes of the input, 1, 2 or 3.
        content: with the content lambda.
        position: with position lambdas.
        key_norm: normalisation of the keys over the context: 'softmax', 'l2', 'none'.
        query_norm: 'none', or 'softmax' over the key depth.
        norm_query_value: batch norm on queries and values.
        causal: 'none'; 'inclusive': a query sees itself and what comes before it in row-major
            order; 'strict': only what comes before.
        causal_key_norm: 'per_context' normalises the keys inside each query's context, 'shared'
            once over everything; for `causal` and `mask`.
        multi_head: keys, values and embeddings of its own for every head; h times the cost, advised
            against by the paper.
        shared_embeddings: no table of its own; `embeddings` of the shape of `embedding` is given at
            every call.
        pos_bias: adds q . pos_bias to all channels of a head, as a position convolution with bias
            does.
        qkv_bias: biases in the three projections.
        norm_momentum: decay of the running statistics.
        init: 'paper' (projections N(0, 1/dim), queries N(0, 1/(k dim)), embeddings N(0, 1)) or
            'timm' (projections N(0, 1/dim), local embeddings N(0, 1/k), global ones N(0, 0.02^2)).
        impl: lowering of the position lambdas, see `lambdanet.ops.position_lambda.position_term`.
        chunk_rows: query rows per chunk for 'row_chunks'; None leaves it to the cost model.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an option outside its allowed values, or options that do not go together.
    """

    kind: ClassVar[str] = "mixer"

    @staticmethod
    def spatial_axes(options: Mapping[str, Any]) -> tuple[int, ...]:
        """Numbers of spatial axes of the input, by the options."""
        return (options["spatial_dims"],)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        key_depth: int = 16,
        intra_depth: int = 1,
        scope: int | tuple[int, ...] | None = 23,
        dilation: int | tuple[int, ...] = 1,
        dim_out: int | None = None,
        context_dim: int | None = None,
        size: tuple[int, ...] | None = None,
        spatial_dims: int = 2,
        content: bool = True,
        position: bool = True,
        key_norm: str = "softmax",
        query_norm: str = "none",
        norm_query_value: bool = True,
        causal: str = "none",
        causal_key_norm: str = "per_context",
        multi_head: bool = False,
        shared_embeddings: bool = False,
        pos_bias: bool = False,
        qkv_bias: bool = False,
        norm_momentum: float = 0.9,
        init: str = "paper",
        impl: str = "auto",
        chunk_rows: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        given = dict(
            spatial_dims=spatial_dims,
            key_norm=key_norm,
            query_norm=query_norm,
            causal=causal,
            causal_key_norm=causal_key_norm,
            init=init,
            impl=impl,
        )
        for name, value in given.items():
            if value not in _ALLOWED[name]:
                raise _error(
                    f"{name} is {value!r}; allowed: {', '.join(map(repr, _ALLOWED[name]))}"
                )
        dim_out = dim if dim_out is None else dim_out
        if num_heads < 1 or dim_out % num_heads:
            raise _error(f"{num_heads} heads do not divide dim_out={dim_out}")
        if key_depth < 1 or intra_depth < 1 or (chunk_rows is not None and chunk_rows < 1):
            raise _error(
                f"key_depth={key_depth}, intra_depth={intra_depth}, chunk_rows={chunk_rows} must "
                "be 1 or more"
            )
        if not (content or position):
            raise _error("content=False and position=False leave nothing; set one of them to True")
        if pos_bias and not position:
            raise _error("pos_bias=True needs position=True")
        self.dim, self.dim_out, self.num_heads = dim, dim_out, num_heads
        self.key_depth, self.intra_depth = key_depth, intra_depth
        self.context_dim, self.spatial_dims = context_dim or dim, spatial_dims
        self.position, self.multi_head = position, multi_head
        self.key_norm, self.query_norm = key_norm, query_norm
        self.causal, self.causal_key_norm = causal, causal_key_norm
        self.impl, self.chunk_rows = impl, chunk_rows
        self.dilation = _per_axis("dilation", dilation, spatial_dims)
        self.size, self.scope = None, None
        if position and scope is not None:
            self.scope = _per_axis("scope", scope, spatial_dims)
            if any(r % 2 == 0 for r in self.scope):
                raise _error(
                    f"scope is {scope}; it must be odd, so that one tap is the query's own position"
                )
        elif position and size is not None:
            self.size = _per_axis("size", size, spatial_dims)
            self.scope = tuple(2 * s - 1 for s in self.size)
            if any(d != 1 for d in self.dilation):
                raise _error(
                    f"dilation={dilation} needs a local scope; a global table covers every offset"
                )
        self.table_at_call = shared_embeddings
        if shared_embeddings and self.scope is None:
            raise _error(
                "shared_embeddings=True needs position=True and a scope, or scope=None with size"
            )

        heads = num_heads if multi_head else 1
        pairs = heads * intra_depth
        value_depth = dim_out // num_heads
        query_std = (dim if init == "timm" else dim * key_depth) ** -0.5

        def linear(features_in, features, std):
            return Linear(
                features_in,
                features,
                use_bias=qkv_bias,
                kernel_init=nnx.initializers.normal(std),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        def norm(features):
            if not norm_query_value:
                return None
            return batch_norm(
                features, momentum=norm_momentum, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        self.query = linear(dim, num_heads * key_depth, query_std)
        # Position lambdas need no keys.
        self.key = (
            linear(self.context_dim, pairs * key_depth, self.context_dim**-0.5) if content else None
        )
        self.value = linear(self.context_dim, pairs * value_depth, self.context_dim**-0.5)
        self.norm_query, self.norm_value = norm(num_heads * key_depth), norm(pairs * value_depth)
        own_table = self.scope is not None and not shared_embeddings
        std = 1.0 if init == "paper" else 0.02 if self.size else key_depth**-0.5
        table = (
            nnx.initializers.normal(std)(rngs.params(), self._table_shape(), param_dtype)
            if own_table
            else None
        )
        self.embedding = None if table is None else nnx.Param(table)
        self.pos_bias = nnx.Param(jnp.zeros((key_depth,), param_dtype)) if pos_bias else None

    def __call__(
        self,
        x: Float[Array, "b *s c"],
        *,
        context: Float[Array, "b *m d"] | None = None,
        embeddings: Array | None = None,
        mask: Bool[Array, "n m"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b *s o"]:
        """Applies the layer.

        Args:
            x: [batch, *spatial, dim].
            context: [batch, *any, context_dim], where keys and values come from; None means `x`.
                Position lambdas then need `embeddings`.
            embeddings: a table [*r, u, k] for a layer built with `shared_embeddings`, else [n, m,
                k, u], one embedding per query and context element, both row-major; with a leading
                axis of heads for a multi-head layer.
            mask: [n, m], True where a query may see a context element; shared by the batch. A query
                that sees nothing gives zeros.
            rngs: not read, the layer is deterministic; here because every block is called alike.

        Returns:
            [batch, *spatial, dim_out] in the layer's dtype.

        Raises:
            ValueError: shapes or arguments that do not fit the layer.
        """
        table, flat = self._check(x, context, embeddings, mask)
        source = x if context is None else context
        batch, spatial, k = x.shape[0], x.shape[1:-1], self.key_depth
        groups = self.num_heads if self.multi_head else 1
        q, v = self.query(x), self.value(source)
        if self.norm_query is not None:
            q, v = self.norm_query(q), self.norm_value(v)
        q = q.reshape(batch, *spatial, self.num_heads, k)
        if self.query_norm == "softmax":
            q = jax.nn.softmax(q.astype(jnp.promote_types(q.dtype, jnp.float32)), axis=-1).astype(
                q.dtype
            )
        v = v.reshape(*v.shape[:-1], groups, self.intra_depth, self.dim_out // self.num_heads)
        keys = None
        if self.key is not None:
            keys = self.key(source).reshape(*v.shape[:-1], k)
        bias = None if self.pos_bias is None else self.pos_bias[...].astype(q.dtype)

        mixed = dict(
            key_norm=self.key_norm, causal=self.causal, causal_key_norm=self.causal_key_norm
        )
        lowered = dict(dilation=self.dilation, impl=self.impl, chunk_rows=self.chunk_rows)

        def mix(q, keys, v, table, flat):
            y = lambda_mix.mix(q, keys, v, table, flat, mask=mask, bias=bias, **mixed, **lowered)
            if not self.capture:
                return y, None
            return y, lambda_mix.explain(
                q, keys, v, table, flat, mask=mask, dilation=self.dilation, **mixed
            )

        if self.multi_head:  # one layer with a single query per lambda for every head
            heads = jax.vmap(mix, in_axes=(-3, -3, -3, 0, 0), out_axes=(-3, 1))
            y, record = heads(q[..., None, :], keys, v, table, flat)
        else:
            y, record = mix(
                q, None if keys is None else keys.squeeze(-3), v.squeeze(-3), table, flat
            )
        if self.capture:
            shown, norms = record
            seen = spatial if context is None else shown.shape[-1:]
            self.sow(
                nnx.Intermediate,
                "attention_map",
                shown.reshape(batch, self.num_heads, *spatial, *seen),
            )
            self.sow(nnx.Intermediate, "lambda_norm", norms.reshape(batch, groups, *spatial))
        return y.reshape(batch, *spatial, self.dim_out)

    def macs(self, *spatial: int) -> int:
        """Returns the multiply-adds of one sample on a map of the given size, as the paper counts
        them.

        Projections, making the lambdas with min(taps, n) taps per query, and applying content and
        position lambdas by a product each; norms and softmax are not counted. Independent of
        `impl`; a context of its own and masks are not counted.
        """
        if len(spatial) != self.spatial_dims:
            raise _error(f"macs{spatial} needs {self.spatial_dims} sizes")
        n, h, k, u = math.prod(spatial), self.num_heads, self.key_depth, self.intra_depth
        v = self.dim_out // h
        groups = h if self.multi_head else 1
        projections = self.dim * h * k + self.context_dim * groups * u * (
            v + (k if self.key is not None else 0)
        )
        elements, applied = (0, 0) if self.key is None else (1, 1)
        if self.position:
            elements += n if self.scope is None else min(math.prod(self.scope), n)
            applied += 1
        return n * (projections + groups * elements * k * v * u + applied * h * k * v)

    def _table_shape(self) -> tuple[int, ...]:
        heads = (self.num_heads,) if self.multi_head else ()
        return (*heads, *self.scope, self.intra_depth, self.key_depth)

    def _check(self, x, context, embeddings, mask) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns (relative table, flat embeddings), at most one of them, or raises ValueError."""
        spatial, heads = x.shape[1:-1], (self.num_heads,) if self.multi_head else ()
        check_map("lambda layer", x, self.dim, (self.spatial_dims,))
        n = m = math.prod(spatial)
        if context is not None:
            m = math.prod(context.shape[1:-1])
            if (
                context.ndim < 3
                or context.shape[0] != x.shape[0]
                or context.shape[-1] != self.context_dim
            ):
                expected = f"[{x.shape[0]}, elements, {self.context_dim}]"
                raise _error(f"the context has shape {context.shape}; expected {expected}")
            if self.causal != "none":
                raise _error(
                    f"causal={self.causal!r} has no meaning for a context of its own; use mask="
                )
        elif self.context_dim != self.dim:
            raise _error(
                f"built with context_dim={self.context_dim} and dim={self.dim}, so it needs "
                "context="
            )
        if mask is not None and (mask.shape != (n, m) or mask.dtype != jnp.bool_):
            raise _error(
                f"the mask has shape {mask.shape}, dtype {mask.dtype}; expected [n, m] = {(n, m)}, "
                "bool"
            )
        if not self.position:
            if embeddings is not None:
                raise _error("embeddings given to a layer built with position=False")
            return None, None
        shape = None if embeddings is None else embeddings.shape
        if context is not None or self.scope is None:
            expected = (*heads, n, m, self.key_depth, self.intra_depth)
            if shape != expected:
                why = (
                    "the layer has neither scope nor size"
                    if context is None
                    else "a context of its own has no offsets"
                )
                raise _error(
                    f"{why}, so position lambdas need embeddings= [n, m, k, u] of shape "
                    f"{expected}, got {shape}; "
                    "or set position=False"
                )
            return None, embeddings
        if self.size is not None and spatial != self.size:
            raise _error(
                f"the map has size {spatial}, the embedding table is for size {self.size}; build "
                "the layer with "
                f"size={spatial} and convert its weights with resize_params, or use a local scope"
            )
        if self.table_at_call:
            if shape != self._table_shape():
                raise _error(
                    f"built with shared_embeddings: embeddings= must be {self._table_shape()}, got "
                    f"{shape}"
                )
            return embeddings, None
        if embeddings is not None:
            raise _error(
                "embeddings given to a layer with a table of its own; build it with "
                "shared_embeddings=True"
            )
        return self.embedding[...], None


def resize_params(
    params: Mapping[str, Any], old: Sequence[int], new: Sequence[int]
) -> dict[str, Any]:
    """Converts the parameters of a layer with a global table to another map size.

    A smaller map takes the centre of the table, a larger one interpolates it, see
    `relative_table.resize_table`.

    Args:
        params: the layer's parameters by name, as `nnx.to_pure_dict` gives them.
        old: map size per axis that they belong to.
        new: map size per axis wanted.

    Returns:
        The same parameters with `embedding` [*(2 * new - 1), u, k].

    Raises:
        ValueError: there is no table of the old size among the parameters.
    """
    if params.get("embedding") is None:
        raise _error(
            f"no embedding among the parameters ({', '.join(params)}); only global tables are tied "
            "to a size"
        )
    return {**params, "embedding": relative_table.resize_table(params["embedding"], old, new)}


def _error(text: str) -> ValueError:
    return ValueError(f"lambda layer: {text}")


def _per_axis(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or any(v < 1 for v in values):
        raise _error(
            f"{name} is {value}; expected a positive number or {axes} of them, one per spatial axis"
        )
    return values


# Layouts of the PyTorch ports' position embeddings, all to [*r, u, k].
def _conv3d_rr1(weight: np.ndarray) -> np.ndarray:
    """timm's conv_lambda [k, 1, r, r, 1]."""
    return weight[..., 0].transpose(2, 3, 1, 0)


def _conv3d_1rr(weight: np.ndarray) -> np.ndarray:
    """lucidrains' pos_conv [k, u, 1, r, r]."""
    return weight[:, :, 0].transpose(2, 3, 1, 0)


TORCH_NAMES = (
    # timm: one fused projection; a convolution or a table [2H-1, 2W-1, k]
    Rule(r"qkv\.weight", ("query/kernel", "key/kernel", "value/kernel"), "pointwise"),
    Rule(r"qkv\.bias", ("query/bias", "key/bias", "value/bias")),
    Rule(r"conv_lambda\.weight", "embedding", _conv3d_rr1),
    Rule(r"conv_lambda\.bias", "pos_bias"),
    Rule(r"pos_emb", "embedding", lambda table: table[..., None, :]),
    # lucidrains: three projections; a convolution or a table [2n-1, 2n-1, k, u]
    *prefixed(POINTWISE, r"to_q\.", "query"),
    *prefixed(POINTWISE, r"to_k\.", "key"),
    *prefixed(POINTWISE, r"to_v\.", "value"),
    Rule(r"pos_conv\.weight", "embedding", _conv3d_1rr),
    Rule(r"pos_conv\.bias", "pos_bias"),
    Rule(r"rel_pos_emb", "embedding", lambda table: np.swapaxes(table, -1, -2)),
    # both
    *prefixed(BATCH_NORM, r"norm_q\.", "norm_query"),
    *prefixed(BATCH_NORM, r"norm_v\.", "norm_value"),
)
"""Names of timm's `LambdaLayer` and of lucidrains' `LambdaLayer`."""
