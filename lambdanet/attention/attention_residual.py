"""Attention residual (Zhang et al. 2024): the logits of a stage's last layer, down-sampled for the
next stage's first.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.interop.names import BATCH_NORM, POINTWISE, Rule, prefixed
from lambdanet.layers import LayerScale, Linear, batch_norm

KERNELS = ("full", "separable")
MODES = ("square", "query_only")
NORMS = ("batch", "instance", "none")


class AttentionResidual(nnx.Module):
    """What is added to the logits of the first layer of a stage:

        addition = gamma heads(norm(D(A)))
        D(A)[c, (i,j), (k,l)] = b_c + sum_{p,q,s,t in {0,1}} W_c[p,q,s,t] A[c, (2i+p,2j+q),
        (2k+s,2l+t)]

    A [b, heads_in, N, N] are the logits of the last layer of the stage before, `heads` is a linear
    map from its heads to this stage's, gamma one factor per head. Every 2x2 cell of queries meets
    every 2x2 cell of keys with sixteen weights per head: what merging tokens by 2x2 convolutions
    would do to q . k. With W = 1/16 it is the logits of the mean queries and keys of the cells. An
    odd last row or column of the map is left out, as by a 2x2 convolution without padding. Logits
    are float32 throughout; the cost is 16 heads (N / 4)^2 multiply-adds and one reading of A.

    Source: Zhang et al. 2024 (see `LessAttention`), equations 6 and 7. The paper's: a depthwise
    convolution with stride and kernel 2, a norm, a 1x1 convolution, layer scale, at the first layer
    of a stage only. On the flat axis its stride gives N / 2 where the tokens are N / 4; ours is the
    reading on the 2-D grids of queries and keys, which fits. Ours, too: the norm over samples and
    positions per head (a layer norm over one or two heads would leave nothing), the factor on this
    branch, its start.

    Args:
        heads_in: heads of A.
        heads_out: heads of the result.
        kernel: 'full', W_c of 16 weights | 'separable', W_c[p,q,s,t] = U_c[p,q] G_c[s,t] of 8.
        mode: 'square', queries and keys are down-sampled | 'query_only', queries alone, for reduced
            keys: A [b, heads_in, N, M] where both stages have the same M keys; W_c[p,q] has 4
            weights, and `kernel` must be 'full'.
        norm: 'batch' | 'instance' (per sample and head over the map; for small batches) | 'none'.
        class_token_in: A has a class token before the positions; it is left out.
        class_token_out: the result has one; its row and column are zero.
        scale_init: value that gamma starts with.
        norm_momentum: decay of the running statistics.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. W starts at the mean of a cell plus normal(0, 0.02^2), `heads`
            with variance 1 / heads_in, so that gamma alone says how much is added at first.

    Raises:
        ValueError: an unknown choice, or options that exclude each other.
    """

    def __init__(
        self,
        heads_in: int,
        heads_out: int,
        *,
        kernel: str = "full",
        mode: str = "square",
        norm: str = "batch",
        class_token_in: bool = False,
        class_token_out: bool = False,
        scale_init: float = 0.1,
        norm_momentum: float = 0.9,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, allowed in (
            ("kernel", kernel, KERNELS),
            ("mode", mode, MODES),
            ("norm", norm, NORMS),
        ):
            if value not in allowed:
                raise _error(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
        if mode == "query_only":
            if kernel != "full":
                raise _error(
                    f"kernel is {kernel!r}; allowed: 'full' with mode 'query_only', whose kernel "
                    "has one side only"
                )
            if class_token_in or class_token_out:
                raise _error(
                    "there is a class token; allowed: none with mode 'query_only', as with reduced "
                    "keys"
                )
        self.heads_in, self.heads_out, self.mode = heads_in, heads_out, mode
        self.class_token_in, self.class_token_out = class_token_in, class_token_out

        def cell(*window):
            noise = 0.02 * jax.random.normal(rngs.params(), (heads_in, *window), param_dtype)
            return nnx.Param(noise + 0.5 ** len(window))

        if kernel == "separable":
            self.downsample_query_kernel, self.downsample_key_kernel = cell(2, 2), cell(2, 2)
        else:
            self.downsample_kernel = cell(*(2,) * (4 if mode == "square" else 2))
        self.downsample_bias = nnx.Param(jnp.zeros((heads_in,), param_dtype))
        stored = dict(param_dtype=param_dtype, rngs=rngs)
        if norm == "batch":
            self.norm = batch_norm(heads_in, momentum=norm_momentum, **stored)
        elif norm == "instance":
            self.norm = nnx.InstanceNorm(heads_in, epsilon=1e-5, use_fast_variance=False, **stored)
        else:
            self.norm = None
        self.heads = Linear(
            heads_in, heads_out, kernel_init=nnx.initializers.lecun_normal(), **stored
        )
        self.layer_scale = LayerScale(heads_out, scale_init, param_dtype=param_dtype)

    def __call__(
        self, logits: Float[Array, "b heads_in n m"], grid: tuple[int, int]
    ) -> Float[Array, "b heads_out n4 m4"]:
        """Returns the addition for the next stage.

        Args:
            logits: of the stage before, on a map of size `grid`.
            grid: its (height, width).

        Raises:
            ValueError: logits that do not fit the grid, or a grid with less than one 2x2 cell.
        """
        residual = self.layer_scale(self.project(self.normalise(self.downsample(logits, grid))))
        residual = rearrange(residual, "b n m c -> b c n m")
        first = int(self.class_token_out)
        return jnp.pad(residual, ((0, 0), (0, 0), (first, 0), (first, 0)))

    def downsample(
        self, logits: Float[Array, "b heads_in n m"], grid: tuple[int, int]
    ) -> Float[Array, "b n4 m4 heads_in"]:
        """Returns D(A), the heads last."""
        first = int(self.class_token_in)
        h, w = grid
        tokens = h * w + first
        square = self.mode == "square"
        expected = (self.heads_in, tokens, tokens if square else logits.shape[-1])
        if logits.ndim != 4 or logits.shape[1:] != expected:
            raise _error(
                f"the logits have shape {logits.shape}; expected [batch, "
                f"{', '.join(map(str, expected))}] for a {h}x{w} map"
            )
        if min(grid) < 2:
            raise _error(f"the map is {h}x{w}; allowed: 2x2 or more, so that there is a cell")
        a = logits[:, :, first:, first:].astype(jnp.promote_types(logits.dtype, jnp.float32))
        rows, columns = 2 * (h // 2), 2 * (w // 2)
        bias = self.downsample_bias[...].astype(a.dtype)
        if not square:
            a = rearrange(a, "b c (h w) m -> b c h w m", h=h)[:, :, :rows, :columns]
            cells = rearrange(a, "b c (i p) (j q) m -> b c i p j q m", p=2, q=2)
            kernel = self.downsample_kernel[...].astype(a.dtype)
            down = jnp.einsum("bcipjqm,cpq->bijmc", cells, kernel)
            return rearrange(down, "b i j m c -> b (i j) m c") + bias
        a = rearrange(a, "b c (h w) (H W) -> b c h w H W", h=h, H=h)
        a = a[:, :, :rows, :columns, :rows, :columns]
        halves = dict(p=2, q=2, s=2, t=2)
        cells = rearrange(a, "b c (i p) (j q) (k s) (l t) -> b c i p j q k s l t", **halves)
        down = jnp.einsum("bcipjqkslt,cpqst->bijklc", cells, self._cell_kernel().astype(a.dtype))
        return rearrange(down, "b i j k l c -> b (i j) (k l) c") + bias

    def normalise(self, x: Float[Array, "b n m heads_in"]) -> Float[Array, "b n m heads_in"]:
        """Applies the norm, if there is one."""
        return x if self.norm is None else self.norm(x)

    def project(self, x: Float[Array, "b n m heads_in"]) -> Float[Array, "b n m heads_out"]:
        """Maps the heads of one stage to those of the next."""
        return self.heads(x)

    def macs(self, h: int, w: int, keys: int | None = None) -> int:
        """Multiply-accumulates of one sample.

        Args:
            h: height of the finer map.
            w: width of the finer map.
            keys: number of keys with mode 'query_only'.
        """
        queries = (h // 2) * (w // 2)
        pairs, taps = (queries**2, 16) if self.mode == "square" else (queries * keys, 4)
        return pairs * self.heads_in * (taps + self.heads_out)

    def _cell_kernel(self) -> jax.Array:
        """Returns W [heads_in, 2, 2, 2, 2]."""
        if hasattr(self, "downsample_kernel"):
            return self.downsample_kernel[...]
        return (
            self.downsample_query_kernel[...][:, :, :, None, None]
            * self.downsample_key_kernel[...][:, None, None]
        )


def _error(text: str) -> ValueError:
    return ValueError(f"attention residual: {text}")


TORCH_NAMES = (
    Rule(r"dw\.weight", "downsample_kernel"),
    Rule(r"dw\.bias", "downsample_bias"),
    *prefixed(BATCH_NORM, r"norm\.", "norm"),
    *prefixed(POINTWISE, r"pw\.", "heads"),
    Rule(r"ls\.gamma", "layer_scale/gamma"),
)
"""Names of one module with kernel 'full' and a batch norm, as the fixtures have them; there is no
public code.
"""
