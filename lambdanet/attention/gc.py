"""Global context block: one attention map for all queries, its context added to (or gating) every
position.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import POINTWISE, Rule, prefixed
from lambdanet.layers import Captures, LayerNorm, Linear, check_map
from lambdanet.ops.wide_einsum import wide_einsum

_ALLOWED = {"fusion": ("add", "mul", "both"), "pooling": ("attention", "average")}


@registry.register("gc")
class GlobalContext(Captures, nnx.Module):
    r"""y = x + t(sum_p a_p x_p), a context of the whole map added to every position; the residual
    is inside.

        a = softmax over all positions of (x w + b)                     one map, the same for every query
        t(context) = W2 relu(LayerNorm(W1 context)),                   dim -> dim / reduction -> dim

    `fusion='mul'` gates instead: y = x * sigmoid(t'(context)), `'both'` does so first and then adds
    t; t' has weights of its own. W2 and its bias start at zero, so the block starts as the identity
    ('add') or as x / 2 ('mul', 'both'). Logits, softmax, context and t are in float32; time and
    memory are linear in the map.

    Shapes: [b, *spatial, dim] with one to three spatial axes to the same. With the view attribute
    `capture`, a call sows `attention_map` [b, 1, *ones, *spatial], the map a (1 / N with
    `pooling='average'`), and, if there is one, `gate` [b, *ones, dim].

    Source: Cao et al. 2019, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and
    Beyond"; layer norm epsilon 1e-5 as in the released code. `reduction=None` is the paper's
    simplified non-local block, t(context) = W context, whose W starts at zero here. `min_hidden` is
    ours: the released code has dim / reduction channels whatever they are, and a layer norm over
    one channel is constant.

    Args:
        dim: channels.
        reduction: dim / hidden channels of t, 1 / r of the paper (16 or 4); None: one matrix and no
            hidden layer.
        min_hidden: lower bound of the hidden channels, which acts below 64 channels at the default
            reduction.
        fusion: 'add' | 'mul' | 'both'.
        pooling: 'attention' | 'average' (a = 1 / N, no w).
        dtype: dtype of the output; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. w and W1 start He-normal.

    Raises:
        ValueError: an option outside its allowed values.
    """  # noqa: E501

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        reduction: int | None = 16,
        min_hidden: int = 4,
        fusion: str = "add",
        pooling: str = "attention",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value in (("fusion", fusion), ("pooling", pooling)):
            if value not in _ALLOWED[name]:
                raise ValueError(
                    f"gc: {name} is {value!r}; allowed: {', '.join(map(repr, _ALLOWED[name]))}"
                )
        if (reduction is not None and reduction < 1) or min_hidden < 1:
            raise ValueError(
                f"gc: reduction is {reduction}, min_hidden is {min_hidden}; allowed: 1 or more"
            )
        self.dim, self.dtype = dim, dtype
        self.hidden = 0 if reduction is None else max(dim // reduction, min_hidden)
        options = dict(param_dtype=param_dtype, rngs=rngs)
        he = nnx.initializers.he_normal()
        self.mask = (
            Linear(dim, 1, kernel_init=he, dtype=dtype, **options)
            if pooling == "attention"
            else None
        )
        self.mul = _Transform(dim, self.hidden, **options) if fusion in ("mul", "both") else None
        self.add = _Transform(dim, self.hidden, **options) if fusion in ("add", "both") else None

    def __call__(
        self, x: Float[Array, "b *s c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s c"]:
        """Maps [b, *spatial, dim] to the same shape; `rngs` is not read."""
        check_map("gc", x, self.dim)
        x = x.astype(self.dtype or x.dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        batch, spatial = x.shape[0], x.shape[1:-1]
        ones = (1,) * len(spatial)
        flat = x.reshape(batch, -1, self.dim)
        if self.mask is not None:
            weights = jax.nn.softmax(self.mask(flat)[..., 0].astype(wide), axis=1)
            context = wide_einsum("bp,bpc->bc", weights.astype(x.dtype), flat)
        else:
            weights = jnp.full(flat.shape[:2], 1 / flat.shape[1], wide)
            context = jnp.mean(flat, axis=1, dtype=wide)
        if self.capture:
            self.sow(nnx.Intermediate, "attention_map", weights.reshape(batch, 1, *ones, *spatial))
        if self.mul is not None:
            gate = jax.nn.sigmoid(self.mul(context)).reshape(batch, *ones, self.dim)
            if self.capture:
                self.sow(nnx.Intermediate, "gate", gate)
            x = x * gate.astype(x.dtype)
        if self.add is not None:
            x = x + self.add(context).astype(x.dtype).reshape(batch, *ones, self.dim)
        return x

    def macs(self, *spatial: int) -> int:
        """Returns the multiply-adds of logits, context and transforms for one sample; average
        pooling is not counted.
        """
        pooled = 2 * math.prod(spatial) * self.dim if self.mask is not None else 0
        return pooled + sum(t.macs() for t in (self.mul, self.add) if t is not None)


class _Transform(nnx.Module):
    """t(context): [b, dim] -> [b, dim] in float32, through a normalised hidden layer or, with
    hidden = 0, one matrix.
    """

    def __init__(self, dim: int, hidden: int, *, param_dtype: Any, rngs: nnx.Rngs):
        self.dim, self.hidden = dim, hidden
        zeros, he = nnx.initializers.zeros_init(), nnx.initializers.he_normal()
        options = dict(param_dtype=param_dtype, rngs=rngs)
        self.reduce = Linear(dim, hidden, kernel_init=he, **options) if hidden else None
        self.norm = LayerNorm(hidden, epsilon=1e-5, **options) if hidden else None
        self.expand = Linear(
            hidden or dim, dim, use_bias=bool(hidden), kernel_init=zeros, **options
        )

    def __call__(self, context: Float[Array, "b c"]) -> Float[Array, "b c"]:
        if self.reduce is not None:
            context = jax.nn.relu(self.norm(self.reduce(context)))
        return self.expand(context)

    def macs(self) -> int:
        return 2 * self.dim * self.hidden if self.hidden else self.dim**2


_BOTTLENECK = (
    *prefixed(POINTWISE, r"0\.", "reduce"),
    Rule(r"1\.weight", "norm/scale", "vector"),
    Rule(r"1\.bias", "norm/bias", "vector"),
    *prefixed(POINTWISE, r"3\.", "expand"),
)
TORCH_NAMES = (
    *prefixed(POINTWISE, r"conv_mask\.", "mask"),
    *prefixed(_BOTTLENECK, r"channel_add_conv\.", "add"),
    *prefixed(_BOTTLENECK, r"channel_mul_conv\.", "mul"),
)
"""Names of mmcv's `ContextBlock`, by the authors of the paper."""
