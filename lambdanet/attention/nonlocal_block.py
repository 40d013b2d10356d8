"""The non-local block of Wang et al. (CVPR 2018, arXiv 1711.07971) in its four modes, with the
presets of its ports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import BATCH_NORM, POINTWISE, prefixed
from lambdanet.layers import Captures, Linear, batch_norm, check_map, max_pool_cells
from lambdanet.ops.cost_model import static_batch
from lambdanet.ops.softmax_attention import attention_logits, softmax_attention
from lambdanet.ops.wide_einsum import wide_einsum

_ALLOWED = {
    "mode": ("embedded_gaussian", "gaussian", "dot_product", "concatenation"),
    "scale": ("none", "inner", "input"),
    "norm": ("batch", "group", "none"),
    "zero_init": ("norm", "conv", "none"),
    "init": ("normal", "he", "torch"),
    "order": ("auto", "direct", "linear"),
}
_SOFTMAX = ("embedded_gaussian", "gaussian")
_POOL = {1: (2,), 2: (2, 2), 3: (1, 2, 2)}
# Weights that query_chunk='auto' allows at once in the modes without a softmax, whose cores are
# here. On CPU what stays in the cache is faster although it is computed twice.
_CHUNK_BYTES = {"cpu": 2**21}
_CHUNK_BYTES_ELSEWHERE = 2**30


@registry.register("nonlocal")
class NonLocal(Captures, nnx.Module):
    r"""Every position gets a weighted sum of a projection of all positions; the residual is inside.

        theta = x W_t,  phi = s W_p,  g = s W_g          s: x, or x after max pooling (M positions)
        y_i = 1/Z_i sum_j f(x_i, s_j) g_j
        out = x + norm(y W_z)

    | mode | f | Z |
    |---|---|---|
    | embedded_gaussian | exp(scale * theta_i . phi_j) | sum over j: a softmax over the keys |
    | gaussian | exp(x_i . s_j), all `dim` channels, theta and phi are not projected | sum over j |
    | dot_product | theta_i . phi_j | M |
    | concatenation | relu(w_f . [theta_i, phi_j]) = relu(w_t . theta_i + w_p . phi_j), without bias
    | M |

    A context block: the output is x plus the branch. With `zero_init` 'norm' or 'conv' it starts as
    the identity. Positions are one, two or three spatial axes, decided by the input. The block on
    frames or on pixels alone (the paper's space-only and time-only variants) is this one with the
    other axis folded into the batch.

    Sub-sampling shrinks keys and values only, the output keeps the size of x. Windows do not
    overlap, a remainder that fills no window is dropped; a window longer than an axis is cut to it,
    so that 1 x 1 maps work.

    Cost: the softmax modes take N M d multiply-adds twice and N x M logits. The other two have an
    exact way round the N x M map (`order`): dot_product as theta (phi^T g) / M, and concatenation
    by sorting the keys' scalars, because relu(a_i + b_j) lets through the keys with b_j > -a_i, for
    which sum_j (a_i + b_j) g_j = a_i sum g_j + sum b_j g_j are two cumulative sums.

    Parameters: `query` (theta), `key` (phi), `value` (g), `out` (W_z), `norm`, and `pair` (w_f,
    [2d, 1]).

    With the view attribute `capture`, a call sows `attention_map` [b, 1, *s, *key grid], the
    weights f / Z, by the direct order and all queries at once.

    Source: section 3 of the paper for the formulas; the ports differ from it and from each other:

    | preset | scale | pooling | biases | initialisation |
    |---|---|---|---|---|
    | nonlocal, nonlocal_fair: the authors' video-nonlocal-net | d^-0.5 | before phi and g | yes |
    N(0, 0.01^2) |
    | nonlocal_paper | 1 | after phi and g | yes | He |
    | nonlocal_alexhex7: AlexHex7/Non-local_pytorch | 1 | after | yes | PyTorch's |
    | nonlocal_cgnl_repo: SpatialNL of the CGNL authors | d^-0.5 | none | none | N(0, 0.01^2) |
    | nonlocal_mmcv | d^-0.5 | none | yes | N(0, 0.01^2), no norm, W_z = 0 |
    | nonlocal_timm, d = dim / 8 to the nearest 8 | dim^-0.5 | none | yes | He |

    PySlowFast, the authors' PyTorch port, is nonlocal_fair with init='he'. mmcv with a norm has
    out_bias=False. Neither the paper nor a port scales the other modes.

    Args:
        dim: channels of the map.
        mode: the pairwise function f.
        inner_dim: channels of theta, phi and g, d; 'half' (dim / 2, at least 1) or 'eighth' (dim /
            8 to the nearest multiple of 8, timm's rule) or a number.
        sub_sample: whether keys and values are max-pooled.
        pool_size: window per spatial axis; None means 2, (2, 2) or (1, 2, 2).
        pool_first: pools x once before phi and g; otherwise phi and g after their projection. The
            two differ: a maximum does not commute with a linear map.
        scale: factor on the logits of embedded_gaussian: 'none', 'inner' (d^-0.5) or 'input'
            (dim^-0.5).
        use_bias: biases in theta, phi and g.
        out_bias: bias in W_z; None means as `use_bias`.
        norm: after W_z: 'batch', 'group' or 'none'.
        norm_groups: groups of norm='group'; 1 normalises each sample over all channels and
            positions.
        norm_momentum: decay of the batch norm's running statistics.
        zero_init: what starts at zero: 'norm' (its scale), 'conv' (W_z and its bias) or 'none'.
        init: projections start from 'normal' (N(0, 0.01^2)), 'he' (N(0, 2 / outputs)) or 'torch'
            (kernels and biases uniform within +- inputs^-0.5).
        order: 'direct' computes the N x M map, 'linear' goes round it (dot_product and
            concatenation only), 'auto' takes what is cheaper for the map's size: in dot_product the
            fewer multiply-adds, in concatenation the smaller of the map, N M, and the cumulative
            sums, 2 d (N + M).
        query_chunk: queries per step. An int maps over chunks of that many and recomputes each in
            the backward pass, so that memory grows with chunk * M; None takes all at once; 'auto'
            does so up to a bound of bytes for the whole batch and beyond it takes chunks of equal
            size: in the softmax modes as `lambdanet.ops.attention_lowering` has it, in the others
            up to 1 GiB (on CPU 2 MiB). The 'linear' order needs none.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an option outside its allowed values, or options that do not go together.
    """

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        mode: str = "embedded_gaussian",
        inner_dim: int | str = "half",
        sub_sample: bool = True,
        pool_size: tuple[int, ...] | None = None,
        pool_first: bool = True,
        scale: str = "inner",
        use_bias: bool = True,
        out_bias: bool | None = None,
        norm: str = "batch",
        norm_groups: int = 1,
        norm_momentum: float = 0.9,
        zero_init: str = "norm",
        init: str = "normal",
        order: str = "auto",
        query_chunk: int | str | None = "auto",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        given = dict(mode=mode, scale=scale, norm=norm, zero_init=zero_init, init=init, order=order)
        for name, value in given.items():
            if value not in _ALLOWED[name]:
                raise _error(
                    f"{name} is {value!r}; allowed: {', '.join(map(repr, _ALLOWED[name]))}"
                )
        rules = {"half": max(dim // 2, 1), "eighth": _nearest_multiple(dim / 8, 8)}
        inner = rules.get(inner_dim, inner_dim)
        if not isinstance(inner, int) or inner < 1:
            raise _error(
                f"inner_dim is {inner_dim!r}; allowed: 'half', 'eighth' or a positive number"
            )
        if not (
            query_chunk in (None, "auto") or (isinstance(query_chunk, int) and query_chunk >= 1)
        ):
            raise _error(
                f"query_chunk is {query_chunk!r}; allowed: None, 'auto' or a positive number"
            )
        if zero_init == "norm" and norm == "none":
            raise _error(
                "zero_init is 'norm' and norm is 'none'; allowed without a norm: 'conv', 'none'"
            )
        if norm == "group" and (norm_groups < 1 or dim % norm_groups):
            raise _error(
                f"norm_groups is {norm_groups} for {dim} channels; allowed: divisors of the "
                "channels"
            )
        if order == "linear" and mode in _SOFTMAX:
            raise _error(
                f"order is 'linear' in mode {mode!r}; allowed: 'auto', 'direct' (a softmax needs "
                "every pair)"
            )
        if pool_size is not None:
            pool_size = tuple(pool_size)
            if not sub_sample:
                raise _error(
                    f"pool_size is {pool_size} and sub_sample is False; set sub_sample=True or "
                    "leave it out"
                )
            if not 1 <= len(pool_size) <= 3 or any(p < 1 for p in pool_size):
                raise _error(
                    f"pool_size is {pool_size}; allowed: one to three positive numbers, one per "
                    "spatial axis"
                )
        self.dim, self.inner, self.mode, self.dtype = dim, inner, mode, dtype
        self.sub_sample, self.pool_size, self.pool_first = sub_sample, pool_size, pool_first
        self.scale = (
            {"none": 1.0, "inner": inner**-0.5, "input": dim**-0.5}[scale]
            if mode == "embedded_gaussian"
            else 1.0
        )
        self.order, self.query_chunk = order, query_chunk

        def linear(features_in: int, features: int, bias: bool, zero: bool = False) -> Linear:
            kernel_init, bias_init = (
                _initialisers(init, features_in)
                if not zero
                else 2 * (nnx.initializers.zeros_init(),)
            )
            return Linear(
                features_in,
                features,
                use_bias=bias,
                kernel_init=kernel_init,
                bias_init=bias_init,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        projected = mode != "gaussian"
        self.query = linear(dim, inner, use_bias) if projected else None
        self.key = linear(dim, inner, use_bias) if projected else None
        self.value = linear(dim, inner, use_bias)
        self.pair = linear(2 * inner, 1, False) if mode == "concatenation" else None
        self.out = linear(
            inner, dim, use_bias if out_bias is None else out_bias, zero=zero_init == "conv"
        )
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        if norm == "batch":
            self.norm = batch_norm(
                dim, momentum=norm_momentum, zero_init=zero_init == "norm", **options
            )
        elif norm == "group":
            scale_init = (
                nnx.initializers.zeros_init()
                if zero_init == "norm"
                else nnx.initializers.ones_init()
            )
            self.norm = nnx.GroupNorm(
                dim, num_groups=norm_groups, epsilon=1e-5, scale_init=scale_init, **options
            )
        else:
            self.norm = None

    def __call__(
        self, x: Float[Array, "b *s c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s c"]:
        """Maps [b, *spatial, dim] (one, two or three spatial axes) to the same shape; `rngs` is not
        read.

        Raises:
            ValueError: another number of channels, or of spatial axes than `pool_size` has.
        """
        check_map("non-local", x, self.dim)
        spatial = x.shape[1:-1]
        window = self._window(spatial)
        x = x.astype(self.dtype or x.dtype)
        source, pool_after = (
            (max_pool_cells(x, window), (1,) * len(window)) if self.pool_first else (x, window)
        )
        query = _flat(x if self.query is None else self.query(x))
        key = _flat(max_pool_cells(source if self.key is None else self.key(source), pool_after))
        value = _flat(max_pool_cells(self.value(source), pool_after))
        n, m = query.shape[1], key.shape[1]
        if self.pair is not None:
            kernel = self.pair.kernel[...].astype(query.dtype)[:, 0]
            query = wide_einsum("bnd,d->bn", query, kernel[: self.inner])
            key = wide_einsum("bmd,d->bm", key, kernel[self.inner :])
        weights = None
        if self.mode in _SOFTMAX:
            y, weights = softmax_attention(
                query,
                key,
                value,
                scale=self.scale,
                query_chunk=self.query_chunk,
                return_weights=self.capture,
            )
        elif self.capture:
            y, weights = _direct(query, key, value)
        elif self._linear(n, m):
            y = (_linear_dot if self.pair is None else _linear_concatenation)(query, key, value)
        else:
            chunk = self._chunk(x.shape[0], n, m)
            y = _in_chunks(lambda query: _direct(query, key, value)[0], query, chunk)
        if self.capture:
            self.sow(
                nnx.Intermediate,
                "attention_map",
                weights.reshape(-1, 1, *spatial, *_grid(spatial, window)),
            )
        z = self.out(y.astype(value.dtype).reshape(*x.shape[:-1], self.inner))
        z = z if self.norm is None else self.norm(z)
        return x + z.astype(x.dtype)

    def macs(self, *spatial: int) -> int:
        """Returns the multiply-adds of one sample: projections and products over pairs, in the
        order that is run.
        """
        n, m = math.prod(spatial), math.prod(_grid(spatial, self._window(spatial)))
        c, d = self.dim, self.inner
        projected = m if self.pool_first else n
        total = (
            n * d * c + projected * c * d + (0 if self.query is None else (n + projected) * c * d)
        )
        linear = self._linear(n, m)
        if self.pair is not None:
            return total + (n + m) * d + (0 if linear else n * m * d)
        return total + (
            (n + m) * d * d if linear else n * m * d + n * m * (c if self.query is None else d)
        )

    def _window(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The pooling window on a map of that size, all ones without sub-sampling."""
        if not self.sub_sample:
            return (1,) * len(spatial)
        window = self.pool_size or _POOL[len(spatial)]
        if len(window) != len(spatial):
            raise _error(
                f"pool_size is {window}, the map has size {tuple(spatial)}; expected one number "
                "per spatial axis"
            )
        return tuple(min(p, s) for p, s in zip(window, spatial, strict=True))

    def _linear(self, n: int, m: int) -> bool:
        """Whether the N x M map is gone round."""
        if self.order != "auto" or self.mode in _SOFTMAX:
            return self.order == "linear"
        return (
            (n + m) * self.inner < 2 * n * m
            if self.mode == "dot_product"
            else (n + m) * 2 * self.inner < n * m
        )

    def _chunk(self, batch: Any, n: int, m: int) -> int:
        """Queries per step."""
        if self.query_chunk != "auto":
            return self.query_chunk or n
        allowed = _CHUNK_BYTES.get(jax.default_backend(), _CHUNK_BYTES_ELSEWHERE)
        largest = max(1, allowed // (4 * m * static_batch(batch)))
        return -(-n // -(-n // largest))


def _direct(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The direct order of concatenation, whose queries and keys are scalars, or of dot_product:
    mixed values, and weights f / Z.
    """
    if query.ndim == 2:
        weights = jax.nn.relu(query[:, :, None] + key[:, None, :]) / key.shape[1]
    else:
        weights = attention_logits(query, key, scale=1.0) / key.shape[1]
    return jnp.einsum("bnm,bmd->bnd", weights.astype(value.dtype), value), weights


def _in_chunks(attend: Callable[[jax.Array], jax.Array], query: jax.Array, chunk: int) -> jax.Array:
    """attend(query) for `chunk` queries at a time, the last ones as a shorter chunk, each
    recomputed for its gradient; all at once if there are no more.
    """
    n = query.shape[1]
    if chunk >= n:
        return attend(query)
    attend = jax.checkpoint(attend)
    whole = n // chunk * chunk
    chunks = rearrange(query[:, :whole], "b (i n) ... -> i b n ...", n=chunk)
    y = rearrange(jax.lax.map(attend, chunks), "i b n d -> b (i n) d")
    return y if whole == n else jnp.concatenate([y, attend(query[:, whole:])], axis=1)


def _linear_dot(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """theta (phi^T g) / M: the products of dot_product in the other order."""
    mixed = wide_einsum("bmd,bme->bde", key, value) / key.shape[1]
    return jnp.einsum("bnd,bde->bne", query, mixed.astype(query.dtype))


def _linear_concatenation(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """sum_j relu(a_i + b_j) g_j / M from sums over the keys in the order of b; query and key are a
    and b.
    """
    m = key.shape[1]
    order = jnp.argsort(key, axis=1)
    key, value = jax.vmap(lambda b, g, i: (b[i], g[i]))(key, value.astype(key.dtype), order)
    terms = jnp.concatenate([value, key[..., None] * value], axis=-1) / m
    # Row i of `above` sums the terms of key i and all larger ones; row M is empty.
    above = jnp.pad(jax.lax.cumsum(terms, axis=1, reverse=True), ((0, 0), (0, 1), (0, 0)))
    first = jax.vmap(partial(jnp.searchsorted, side="right"))(key, -query)
    sums, key_sums = jnp.split(jax.vmap(lambda rows, i: rows[i])(above, first), 2, axis=-1)
    return query[..., None] * sums + key_sums


def _grid(spatial: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    return tuple(s // p for s, p in zip(spatial, window, strict=True))


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _nearest_multiple(value: float, divisor: int) -> int:
    """timm's rounding: the nearest multiple, at least one and never more than a tenth below the
    value.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _initialisers(init: str, features_in: int) -> tuple[Callable, Callable]:
    """Initialisers of kernel and bias."""
    if init == "torch":
        bound = features_in**-0.5
        return 2 * (partial(jax.random.uniform, minval=-bound, maxval=bound),)
    kernel = (
        nnx.initializers.normal(0.01)
        if init == "normal"
        else nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    )
    return kernel, nnx.initializers.zeros_init()


def _error(text: str) -> ValueError:
    return ValueError(f"non-local: {text}")


registry.register("nonlocal_fair", NonLocal, scale="inner", pool_first=True, init="normal")
registry.register("nonlocal_paper", NonLocal, scale="none", pool_first=False, init="he")
registry.register("nonlocal_alexhex7", NonLocal, scale="none", pool_first=False, init="torch")
registry.register(
    "nonlocal_cgnl_repo", NonLocal, scale="inner", sub_sample=False, use_bias=False, init="normal"
)
registry.register(
    "nonlocal_mmcv",
    NonLocal,
    scale="inner",
    sub_sample=False,
    norm="none",
    zero_init="conv",
    init="normal",
    pool_first=False,
)
registry.register(
    "nonlocal_timm", NonLocal, scale="input", inner_dim="eighth", sub_sample=False, init="he"
)

TORCH_NAMES = (
    # Names of AlexHex7 (theta, phi, g, W; in a Sequential with the pooling: g.0), PySlowFast
    # (conv_theta, ...), the CGNL authors and timm (t, p, g, z) and mmcv (theta.conv, ...).
    *prefixed(POINTWISE, r"(?:conv_theta|t|theta(?:\.conv)?)\.", "query"),
    *prefixed(POINTWISE, r"(?:conv_phi|p|phi(?:\.0)?(?:\.conv)?)\.", "key"),
    *prefixed(POINTWISE, r"(?:conv_g|g(?:\.0)?(?:\.conv)?)\.", "value"),
    *prefixed(POINTWISE, r"(?:W(?:\.0)?|conv_out(?:\.conv)?|z)\.", "out"),
    *prefixed(BATCH_NORM, r"(?:W\.1|bn|norm|conv_out\.[bg]n)\.", "norm"),
    *prefixed(POINTWISE, r"concat_project\.(?:0|conv)\.", "pair"),
)
