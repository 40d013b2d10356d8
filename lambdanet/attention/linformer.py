"""Linformer (Wang et al. 2020, arXiv 2006.04768): attention to a fixed number of learned mixtures
of the keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.grids import Grid
from lambdanet.interop.names import LINEAR, Rule, prefixed
from lambdanet.layers import Captures, Linear, check_map
from lambdanet.layers.token_compression import (
    PROJECTIONS,
    TokenCompression,
    default_slots,
    used_slots,
)
from lambdanet.ops.softmax_attention import dot_attention

_ALLOWED = {
    "sharing": ("none", "headwise", "key_value", "layerwise"),
    "order": ("project_then_compress", "compress_then_project"),
    "projection": PROJECTIONS,
}


@registry.register("linformer")
class Linformer(Captures, nnx.Module):
    """Multi-head attention whose keys and values are k learned mixtures of all n tokens: linear in
    n.

        head_h = softmax(Q_h (E_h K_h)^T / sqrt(d)) (F_h V_h),  Q, K, V = x W_q, x W_k, x W_v;  y =
        concat(head_h) W_o

    E and F are k x n (`compress_key`, `compress_value`). A mixer: no residual, no norm; with the
    output projection. Maps of one to three spatial axes are read as row-major lists of tokens.
    Logits and softmax are computed in float32, O(n k) time and memory. There is no causal form:
    a slot mixes all tokens, so no mask on the weights keeps a query from seeing its future.

    n is fixed. With `size` the map must have that size. With `max_length` it may be any shape of n'
    <= n tokens, which use the first n' columns of E and F. With `context` all of this is about the
    context.

    With the view attribute `capture` a call sows `attention_map` [b, heads, *query positions, k, 1,
    ...], the weights of the slots, with as many context axes as the map has.

    Source: Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity", section 4. The
    authors' code (fairseq) compresses the layer's input and then projects it,
    `order='compress_then_project'`; without `qkv_bias` the two orders give the same result at
    different cost (`macs`), with it they differ. It never has E and F per head. Biases of E and F
    and the convolution are those of tatp22/linformer-pytorch, one head of keys and values and
    shared projections of lucidrains/linformer.

    Args:
        dim: channels of the input and of the output.
        num_heads: heads.
        head_dim: depth per head, d; None means dim / num_heads.
        size: map size that E and F are tied to.
        max_length: largest number of tokens, n, for inputs of varying size; takes the place of
            `size`.
        num_projected: k, at most n; None means min(128, ceil(n / 4)): the ratio of the authors'
            code, up to the k that the paper uses for n = 512. A 'convolution' has windows of ceil(n
            / k) tokens, so it may have fewer slots.
        sharing: 'none': E and F per head; 'headwise': one E and one F; 'key_value': E = F;
            'layerwise': E = F, not stored here but given at every call as `compression`, so that a
            network has one for all its layers.
        order: 'project_then_compress' (the paper) or 'compress_then_project' (the authors' code,
            not with 'none').
        projection: 'linear'; 'convolution' (over windows of tokens, mixing the features of a head);
            'fixed' (random N(0, 1/k), stored beside the running statistics, never trained).
        qkv_bias: biases in the projections of queries, keys and values.
        compress_bias: biases of E and F, one per slot; of a 'convolution', one per feature.
        output_bias: bias of W_o.
        one_kv_head: one head of keys and values for all heads of queries.
        share_kv: no W_v; values are the projected keys (compressed by F, which is E with
            `sharing='key_value'`).
        context_dim: channels of `context`; None means `dim`.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an option outside its allowed values, or options that do not go together.
    """

    kind: ClassVar[str] = "mixer"

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        size: tuple[int, ...] | None = None,
        max_length: int | None = None,
        num_projected: int | None = None,
        sharing: str = "headwise",
        order: str = "project_then_compress",
        projection: str = "linear",
        qkv_bias: bool = False,
        compress_bias: bool = False,
        output_bias: bool = True,
        one_kv_head: bool = False,
        share_kv: bool = False,
        context_dim: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value in dict(sharing=sharing, order=order, projection=projection).items():
            if value not in _ALLOWED[name]:
                raise _error(
                    f"{name} is {value!r}; allowed: {', '.join(map(repr, _ALLOWED[name]))}"
                )
        if num_heads < 1 or (head_dim is None and dim % num_heads):
            raise _error(
                f"num_heads is {num_heads}; allowed: divisors of dim={dim}, or set head_dim"
            )
        if head_dim is not None and head_dim < 1:
            raise _error(f"head_dim is {head_dim}; allowed: 1 or more, or None")
        length = math.prod(size or (0,)) if max_length is None else max_length
        if length < 1:
            raise _error(
                f"size is {size}, max_length is {max_length}; one of them must say how many tokens "
                "E and F take"
            )
        if sharing == "none" and (order == "compress_then_project" or one_kv_head):
            why = (
                "order='compress_then_project'"
                if order == "compress_then_project"
                else "one_kv_head=True"
            )
            raise _error(
                f"sharing is 'none' with {why}, where there are no heads to compress one by one; "
                "use 'headwise'"
            )
        if sharing == "layerwise" and compress_bias:
            raise _error(
                "sharing is 'layerwise' with compress_bias=True; the bias is the given "
                "TokenCompression's business"
            )
        self.dim, self.num_heads, self.dtype = dim, num_heads, dtype
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        self.context_dim = dim if context_dim is None else context_dim
        self.size = None if max_length is not None else tuple(size)
        self.length, self.sharing, self.order, self.share_kv = length, sharing, order, share_kv
        self.kv_heads = 1 if one_kv_head else num_heads
        wanted = default_slots(length) if num_projected is None else num_projected
        if not 1 <= wanted <= length:
            raise _error(f"num_projected is {wanted}; allowed: 1 to the number of tokens, {length}")
        self.num_projected, self.projection = (
            used_slots(length, wanted, projection, length),
            projection,
        )
        # What a compression sees: heads of a depth, or the whole input.
        self.compress_features = (
            self.head_dim if order == "project_then_compress" else self.context_dim
        )

        def linear(features_in, features, bias):
            init = nnx.initializers.xavier_uniform()
            options = dict(use_bias=bias, kernel_init=init, dtype=dtype, param_dtype=param_dtype)
            return Linear(features_in, features, **options, rngs=rngs)

        def compression():
            return TokenCompression(
                length,
                self.num_projected,
                features=self.compress_features,
                projection=projection,
                heads=num_heads if sharing == "none" else None,
                bias=compress_bias,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        inner, kv_inner = num_heads * self.head_dim, self.kv_heads * self.head_dim
        self.query = linear(dim, inner, qkv_bias)
        self.key = linear(self.context_dim, kv_inner, qkv_bias)
        self.value = None if share_kv else linear(self.context_dim, kv_inner, qkv_bias)
        self.compress_key = None if sharing == "layerwise" else compression()
        self.compress_value = compression() if sharing in ("none", "headwise") else None
        self.output = linear(inner, dim, output_bias)

    def __call__(
        self,
        x: Float[Array, "b *s c"],
        *,
        context: Float[Array, "b *m e"] | None = None,
        mask: Bool[Array, "b ..."] | None = None,
        compression: TokenCompression | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b *s c"]:
        """Applies the layer.

        Args:
            x: [batch, *spatial, dim], one to three spatial axes.
            context: [batch, *any, context_dim], where keys and values come from; None means `x`.
            mask: [b, *positions of the context], False where a token is padding. Its key and value
                (with 'compress_then_project' the token itself) are zeroed before they are
                compressed; after that no weight belongs to one token.
            compression: E = F of a layer with `sharing='layerwise'`.
            rngs: not read, the layer is deterministic; here because every block is called alike.

        Returns:
            [batch, *spatial, dim] in the layer's dtype.

        Raises:
            ValueError: shapes or arguments that do not fit the layer.
        """
        check_map("linformer", x, self.dim)
        source = x if context is None else context
        self._check(x, source, mask, compression)
        compress_key = self.compress_key if compression is None else compression
        batch, spatial = x.shape[0], x.shape[1:-1]
        x, tokens = (
            a.astype(self.dtype or a.dtype).reshape(batch, -1, a.shape[-1]) for a in (x, source)
        )
        keep = None if mask is None else mask.reshape(batch, -1, 1, 1)

        def heads(linear, tokens):
            return linear(tokens).reshape(batch, tokens.shape[1], -1, self.head_dim)

        def hide(tokens):
            return tokens if keep is None else jnp.where(keep, tokens, 0)

        same = self.compress_value is None  # E = F
        if self.order == "project_then_compress":
            keys = hide(heads(self.key, tokens))
            k = compress_key(keys)
            if self.share_kv:
                v = k if same else self.compress_value(keys)
            else:
                values = hide(heads(self.value, tokens))
                v = compress_key(values) if same else self.compress_value(values)
        else:
            hidden = hide(tokens[:, :, None])
            key_slots = compress_key(hidden)[:, :, 0]
            value_slots = key_slots if same else self.compress_value(hidden)[:, :, 0]
            k = heads(self.key, key_slots)
            if self.share_kv:
                v = k if same else heads(self.key, value_slots)
            else:
                v = heads(self.value, value_slots)
        q = heads(self.query, x)
        y, weights = dot_attention(q, k, v, scale=self.head_dim**-0.5, return_weights=self.capture)
        if self.capture:
            shape = (batch, self.num_heads, *spatial, k.shape[1], *[1] * (len(spatial) - 1))
            self.sow(nnx.Intermediate, "attention_map", weights.reshape(shape))
        return self.output(y.reshape(batch, *spatial, -1))

    def table_grids(self) -> dict[str, Grid]:
        """Returns the map that E and F are tied to by their entries, if they are to one."""
        parts = dict(compress_key=self.compress_key, compress_value=self.compress_value)
        tied = [
            name for name, part in parts.items() if part is not None and part.kernel is not None
        ]
        return {f"{name}/kernel": Grid("map", self.size) for name in tied if self.size is not None}

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample with itself as context: projections, E and F, both
        products with the slots.
        """
        n, inner, kv_inner = (
            math.prod(spatial),
            self.num_heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        slots = used_slots(self.length, self.num_projected, self.projection, n)
        project_first = self.order == "project_then_compress"
        compressed = kv_inner if project_first else self.context_dim  # channels
        if self.projection == "convolution":
            window = -(-self.length // self.num_projected)
            compress = slots * window * compressed * self.compress_features
        else:
            compress = n * slots * compressed
        project = (n if project_first else slots) * self.context_dim * kv_inner
        same = self.sharing in ("key_value", "layerwise")
        once = same and self.share_kv
        if project_first:
            times_compress, times_project = 1 if once else 2, 1 if self.share_kv else 2
        else:
            times_compress, times_project = 1 if same else 2, 1 if once else 2
        return (
            n * inner * 2 * (self.dim + slots) + times_compress * compress + times_project * project
        )

    def _check(self, x, source, mask, compression) -> None:
        """Raises ValueError for arguments that do not fit."""
        tokens = source.shape[1:-1]
        if source.ndim < 3 or source.shape[0] != x.shape[0] or source.shape[-1] != self.context_dim:
            expected = f"[{x.shape[0]}, positions, {self.context_dim}]"
            raise _error(
                f"keys and values come from an array of shape {source.shape}; expected {expected}"
            )
        if self.size is not None and tokens != self.size:
            raise _error(
                f"the map has size {tokens}, E and F are for size {self.size}; build the layer "
                f"with size={tokens} and "
                "convert its weights with resize_params, or with max_length for inputs of varying "
                "size"
            )
        if math.prod(tokens) > self.length:
            raise _error(
                f"{math.prod(tokens)} tokens of a map of size {tokens}; allowed: up to "
                f"max_length={self.length}"
            )
        if mask is not None and (mask.shape != source.shape[:-1] or mask.dtype != jnp.bool_):
            raise _error(
                f"the mask has shape {mask.shape}, dtype {mask.dtype}; expected "
                f"{source.shape[:-1]}, bool"
            )
        if (compression is None) == (self.sharing == "layerwise"):
            given = "no compression" if compression is None else "a compression"
            raise _error(
                f"{given} given to a layer with sharing={self.sharing!r}; 'layerwise' alone takes "
                "one"
            )
        if compression is not None:
            features = self.compress_features if self.projection == "convolution" else None
            wanted = (self.length, self.num_projected, self.projection, None, features)
            names = ("length", "slots", "projection", "heads", "features")
            given = tuple(getattr(compression, name) for name in names)
            if given != wanted:
                raise _error(
                    f"the compression has ({', '.join(names)}) = {given}; this layer needs {wanted}"
                )


def resize_params(
    params: Mapping[str, Any], old: Sequence[int], new: Sequence[int]
) -> dict[str, Any]:
    """Converts a layer's parameters to another map size; not part of the paper.

    Every column of E and F is a picture of the map: it is resized linearly along each axis
    (`jax.image.resize`, which averages when it shrinks) and scaled by n / n', so that a smooth map
    gives about the same slots. k stays, so build the other layer with that `num_projected`.

    Args:
        params: the layer's parameters by name, as `nnx.to_pure_dict` gives them.
        old: size per axis that they belong to; (n,) for a `max_length`.
        new: size wanted.

    Returns:
        The same parameters with kernels [(h,) n', k] of E and F.

    Raises:
        ValueError: no E for that many tokens among the parameters (a convolution's depends on n by
            its window).
    """
    resized = dict(params)
    for name in ("compress_key", "compress_value"):
        kernel = params.get(name, {}).get("kernel")
        if kernel is None and name == "compress_value":  # E = F
            continue
        if kernel is None or kernel.shape[-2] != math.prod(old) or len(old) != len(new):
            found = "no kernel" if kernel is None else f"a kernel {kernel.shape}"
            raise _error(
                f"cannot resize from {tuple(old)} to {tuple(new)}: {name} has {found} among the "
                "parameters"
            )
        own, slots = kernel.shape[:-2], kernel.shape[-1]
        image = jax.image.resize(kernel.reshape(*own, *old, slots), (*own, *new, slots), "linear")
        resized[name] = {
            **params[name],
            "kernel": image.reshape(*own, -1, slots) * (math.prod(old) / math.prod(new)),
        }
    return resized


def _error(text: str) -> ValueError:
    return ValueError(f"linformer: {text}")


TORCH_NAMES = (
    # lucidrains: E and F are [n, k]
    *prefixed(LINEAR, r"to_q\.", "query"),
    *prefixed(LINEAR, r"to_k\.", "key"),
    *prefixed(LINEAR, r"to_v\.", "value"),
    *prefixed(LINEAR, r"to_out\.", "output"),
    Rule(r"proj_k", "compress_key/kernel"),
    Rule(r"proj_v", "compress_value/kernel"),
    # fairseq: linear layers [k, n]
    *prefixed(LINEAR, r"q_proj\.", "query"),
    *prefixed(LINEAR, r"k_proj\.", "key"),
    *prefixed(LINEAR, r"v_proj\.", "value"),
    *prefixed(LINEAR, r"out_proj\.", "output"),
    *prefixed(LINEAR, r"compress_k\.", "compress_key"),
    *prefixed(LINEAR, r"compress_v\.", "compress_value"),
)
"""Names of lucidrains' `LinformerSelfAttention` and of fairseq's `MultiheadLinearAttention`."""
