"""Batch and layer normalisation with the conventions of this project."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lambdanet.ops.batch_statistics import normalise_batch
from lambdanet.ops.layer_statistics import normalise_features


class RunningStatistic(nnx.BatchStat):
    """A batch statistic that is always replaced whole.

    flax 0.12.8 compares shardings when `variable[...] = value` is assigned, which under tracing
    builds an error message over the whole program traced so far: tracing a deep network takes time
    quadratic in its depth. Plain replacement stores the same value.
    """

    def set_value(self, value: jax.Array, **options: Any) -> None:
        """Replaces the value; an index of `...` is dropped, any other goes to flax."""
        if options.get("index") is ...:
            options = {}
        super().set_value(value, **options)


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` over the last axis, in training on CPU by `lambdanet.ops.batch_statistics`:
    about half the time.
    """

    def __call__(
        self,
        x: Float[Array, "*b c"],
        use_running_average: bool | None = None,
        *,
        mask: Bool[Array, "..."] | None = None,
    ) -> Float[Array, "*b c"]:
        """Normalises [..., features]; see `nnx.BatchNorm`. A mask is broadcast to `x`."""
        running = self.use_running_average if use_running_average is None else use_running_average
        if running or mask is not None or jax.default_backend() != "cpu":
            return super().__call__(x, use_running_average, mask=mask)
        x, scale, bias = self.promote_dtype((x, self.scale[...], self.bias[...]), dtype=self.dtype)
        y, statistics = normalise_batch(x, scale, bias, self.epsilon)
        for kept, now in zip((self.mean, self.var), statistics, strict=True):
            kept[...] = self.momentum * kept[...] + (1 - self.momentum) * now
        return y.astype(x.dtype)


def batch_norm(
    features: int,
    *,
    momentum: float = 0.9,
    zero_init: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> BatchNorm:
    """Builds a batch norm over the last axis with epsilon 1e-5 and float32 statistics.

    Under a mesh it sees the global batch without an axis name. Running variance is the biased one;
    torch stores the unbiased one.

    Args:
        features: channels of the last axis.
        momentum: decay of the running statistics (0.9 here is torch's 0.1).
        zero_init: start the scale at zero, so that a residual block starts as the identity.
        dtype: activation dtype.
        param_dtype: dtype of scale and bias.
        rngs: initialisation source.
    """
    scale_init = nnx.initializers.zeros_init() if zero_init else nnx.initializers.ones_init()
    norm = BatchNorm(
        features,
        momentum=momentum,
        epsilon=1e-5,
        scale_init=scale_init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
    norm.mean, norm.var = RunningStatistic(norm.mean[...]), RunningStatistic(norm.var[...])
    return norm


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` over the last axis with scale and bias, on CPU by
    `lambdanet.ops.layer_statistics`; statistics in float32, of the centred values.

    Args:
        dim: channels of the last axis.
        epsilon: added to the variance.
        dtype: activation dtype.
        param_dtype: dtype of scale and bias.
        rngs: initialisation source.
    """

    def __init__(
        self,
        dim: int,
        *,
        epsilon: float,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        stored = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        super().__init__(dim, epsilon=epsilon, use_fast_variance=False, **stored)

    def __call__(
        self, x: Float[Array, "*b c"], *, mask: Bool[Array, "..."] | None = None
    ) -> Float[Array, "*b c"]:
        """Normalises [..., dim]; see `nnx.LayerNorm`. A mask is broadcast to `x`."""
        if mask is not None or jax.default_backend() != "cpu":
            return super().__call__(x, mask=mask)
        x, scale, bias = self.promote_dtype((x, self.scale[...], self.bias[...]), dtype=self.dtype)
        return normalise_features(x, scale, bias, self.epsilon).astype(x.dtype)
