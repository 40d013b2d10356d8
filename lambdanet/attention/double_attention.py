"""Double attention of A2-Nets: gather a few global descriptors, then hand every position its own
mixture of them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import POINTWISE, prefixed
from lambdanet.layers import Captures, Linear, batch_norm, check_map
from lambdanet.ops.wide_einsum import wide_einsum


@registry.register("double_attention")
class DoubleAttention(Captures, nnx.Module):
    r"""y = x + norm(W_o Z), global descriptors G distributed to all positions; residual and
    projection are inside.

        A = x W_A in R^{N x m},   B = softmax_N(x W_B) in R^{N x n},   V = softmax_n(x W_V) in R^{N x n}
        gather      G = A^T B in R^{m x n}      descriptor j is the mean of A under map j; the N weights of a map sum to 1
        distribute  Z = V G^T in R^{N x m}      each position mixes the n descriptors with weights that sum to 1

    The gather runs over all N positions of a sample: over the frames, too, where the map is a clip.
    G is made first, so time and memory are linear in the map and there is no N x N array. W_A, W_B
    and W_V have biases; W_o has one where no norm follows it. The norm after W_o is a batch norm
    whose scale starts at zero: the block starts as the identity, with `norm='none'` it does not.

    Shapes: [b, *spatial, dim] with one to three spatial axes to the same; with `project_out=False`
    to [b, *spatial, feature_dim]. With the view attribute `capture`, a call sows `attention_map`
    [b, 1, *spatial, *spatial] = V B^T, the weight with which the feature at a position enters the
    output at another; quadratic in the map, its rows sum to 1.

    Source: Chen et al. 2018, "A^2-Nets: Double Attention Networks"; there is no code by the
    authors. m = n = dim / 2 is not printed there: with five blocks in a ResNet-50 it reconstructs
    the parameters and the multiply-adds of the paper's ImageNet network, while the ablation has m =
    n = dim / 4. Batch norm and its start at zero are ours, too. Copies in circulation take one of
    the two softmaxes over another axis, even over the batch.

    Args:
        dim: channels.
        feature_dim: channels of the features, m; None means dim / 2.
        num_descriptors: descriptors, n; None means dim / 2.
        project_out: with W_o; without it, Z itself is the output, which needs `norm='none'` and
            `residual=False`.
        norm: 'batch' | 'none', after W_o.
        residual: adds x.
        norm_momentum: decay of the running statistics.
        dtype: dtype of activations and output; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: an option outside its allowed values, or options that do not go together.
    """  # noqa: E501

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        feature_dim: int | None = None,
        num_descriptors: int | None = None,
        project_out: bool = True,
        norm: str = "batch",
        residual: bool = True,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        features = dim // 2 if feature_dim is None else feature_dim
        descriptors = dim // 2 if num_descriptors is None else num_descriptors
        if norm not in ("batch", "none"):
            raise ValueError(f"double attention: norm is {norm!r}; allowed: 'batch', 'none'")
        if features < 1 or descriptors < 1:
            raise ValueError(
                f"double attention: feature_dim is {features}, num_descriptors is {descriptors} "
                f"for {dim} channels; "
                "allowed: 1 or more"
            )
        if not project_out and (norm != "none" or residual):
            raise ValueError(
                f"double attention: norm is {norm!r}, residual is {residual} with "
                "project_out=False; "
                "allowed: norm='none' and residual=False"
            )
        self.dim, self.feature_dim, self.num_descriptors = dim, features, descriptors
        self.residual, self.dtype = residual, dtype
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.feature = Linear(dim, features, **options)
        self.gather = Linear(dim, descriptors, **options)
        self.distribute = Linear(dim, descriptors, **options)
        self.out = (
            Linear(features, dim, use_bias=norm == "none", **options) if project_out else None
        )
        self.norm = (
            batch_norm(dim, momentum=norm_momentum, zero_init=True, **options)
            if norm == "batch"
            else None
        )

    def __call__(
        self, x: Float[Array, "b *s c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s o"]:
        """Maps [b, *spatial, dim] to the same shape, or to [b, *spatial, feature_dim]; `rngs` is
        not read.
        """
        check_map("double attention", x, self.dim)
        x = x.astype(self.dtype or x.dtype)
        gather, distribute = self.maps(x)
        features = self.feature(x).reshape(*gather.shape[:2], self.feature_dim)
        descriptors = wide_einsum("bpm,bpn->bmn", features, gather.astype(features.dtype))
        y = jnp.einsum(
            "bpn,bmn->bpm", distribute.astype(features.dtype), descriptors.astype(features.dtype)
        )
        if self.capture:
            spatial = x.shape[1:-1]
            weights = jnp.einsum("bqn,bkn->bqk", distribute, gather)
            self.sow(
                nnx.Intermediate,
                "attention_map",
                weights.reshape(x.shape[0], 1, *spatial, *spatial),
            )
        y = y.reshape(*x.shape[:-1], self.feature_dim)
        if self.out is not None:
            y = self.out(y)
        if self.norm is not None:
            y = self.norm(y)
        y = y.astype(x.dtype)
        return x + y if self.residual else y

    def maps(
        self, x: Float[Array, "b *s c"]
    ) -> tuple[Float[Array, "b p n"], Float[Array, "b p n"]]:
        """Returns the gather maps B, which sum to 1 over the positions p, and the distribute
        vectors V, over n; float32.
        """

        def logits(layer):
            y = layer(x).reshape(x.shape[0], -1, self.num_descriptors)
            return y.astype(jnp.promote_types(y.dtype, jnp.float32))

        return jax.nn.softmax(logits(self.gather), axis=1), jax.nn.softmax(
            logits(self.distribute), axis=2
        )

    def macs(self, *spatial: int) -> int:
        """Returns the multiply-adds of the projections, of gathering and of distributing for one
        sample.
        """
        m, n = self.feature_dim, self.num_descriptors
        projected = m * (1 if self.out is None else 2) + 2 * n
        return math.prod(spatial) * (self.dim * projected + 2 * m * n)


TORCH_NAMES = (
    *prefixed(POINTWISE, r"convA\.", "feature"),
    *prefixed(POINTWISE, r"convB\.", "gather"),
    *prefixed(POINTWISE, r"convV\.", "distribute"),
    *prefixed(POINTWISE, r"conv_reconstruct\.", "out"),
)
"""Names of the two PyTorch layers that have the softmax axes of the paper (nguyenvo09, gjylt)."""
