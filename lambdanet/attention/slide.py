"""Slide attention (Pan et al. 2023): local attention by depthwise shifts, with a deformed path that
is learned.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import Rule
from lambdanet.layers import Captures, Linear, check_map, is_count, trunc_normal
from lambdanet.ops.slide_mix import IMPLS, shift_weight, slide_mix

POSITION_BIASES = ("key", "logit", "none")
PATHS = ("deformed", "fixed", "learned")


@registry.register("slide")
class SlideAttention(Captures, nnx.Module):
    """Softmax over the k x k window around a position, whose slots are learned mixtures of the
    window.

        q, k, v = x W_qkv,  q scaled by s
        key_o   = sum_t (E_o[t] + W_o[t]) k[x + t] + b0_o + b1_o + r_{h,o}    per channel; value_o likewise, without r
        y       = concat over heads (sum_o softmax_o(q . key_o) value_o) W_output

    E_o is the fixed shift, one at tap o and zero elsewhere; W is learned; both are depthwise, and
    one pair of them serves keys, values and all heads. A mixer: no residual and no norm, with an
    output projection. Any map size. E is a constant of the program and no parameter: nothing can
    train, decay or average it, and parameter counts are without it. Its bias b0 is a parameter. E +
    W is formed before it is applied, in training too, so that the shift costs nothing extra.

    Outside the map keys and values are zero before the mixing, and nothing is masked: the key of a
    slot there is what W mixes in from inside and the biases, and it takes its share of the softmax.
    The position bias r on keys makes its logit depend on the query, s sum(q) r.

    With the view attribute `capture` a call sows `slot_weights` [b, heads, slots, H, W], the
    softmax, and `attention_map` [b, heads, H, W, H, W], the same at the places that E shifts from;
    slots outside the map are left out there.

    Source: Pan et al. 2023, "Slide-Transformer: Hierarchical Vision Transformer with Local
    Self-Attention" (arXiv 2304.04237), as its public code has it. From the code are: the trained
    bias of the fixed convolution, the one pair of convolutions for keys, values and heads, r on the
    keys, the head-major qkv, the initial values. `merged` is the paper's inference form; the public
    code cannot merge. `dim_reduction`, `share_qkv` and `share_kernel` are from the variant in the
    authors' DAT++ code, whose scale keeps the head depth before the reduction.

    Args:
        dim: channels, C.
        num_heads: heads; divides the inner channels C / dim_reduction.
        kernel_size: side of the window, k; odd.
        qkv_bias: bias of the qkv projection.
        scale: factor of the queries, s; None means (dim / num_heads)^-0.5.
        position_bias: where the bias per head and slot is added: 'key' as in the paper's code,
            'logit', or 'none'.
        path: 'deformed', both E and W; 'fixed', E alone, which is plain local attention; 'learned',
            W alone.
        fixed_bias: with the bias b0 of the fixed path, where there is one; b1 makes it redundant.
        dim_reduction: q, k and v have dim / dim_reduction channels.
        share_qkv: one projection is q, k and v.
        share_kernel: W and b1 serve keys and values; else values have their own,
            `deformed_value_kernel` and `_bias`.
        merged: store E + W and b0 + b1 as `deformed_kernel` and `deformed_bias`. The same function,
            but in training E is then part of the parameter and trains and decays with it.
        impl: lowering, see `lambdanet.ops.slide_mix`.
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Kernels and biases of the paths start uniform in +-1/k, as the
            code's convolutions.

    Raises:
        ValueError: options that do not fit, an even window among them.
    """  # noqa: E501

    kind: ClassVar[str] = "mixer"
    spatial_axes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        kernel_size: int = 3,
        qkv_bias: bool = True,
        scale: float | None = None,
        position_bias: str = "key",
        path: str = "deformed",
        fixed_bias: bool = True,
        dim_reduction: int = 1,
        share_qkv: bool = False,
        share_kernel: bool = True,
        merged: bool = False,
        impl: str = "auto",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, allowed in (
            ("position_bias", position_bias, POSITION_BIASES),
            ("path", path, PATHS),
            ("impl", impl, IMPLS),
        ):
            if value not in allowed:
                raise ValueError(f"slide: {name} is {value!r}; allowed: {', '.join(allowed)}")
        if not is_count(kernel_size) or kernel_size % 2 == 0:
            raise ValueError(
                f"slide: kernel_size is {kernel_size}; allowed: odd numbers, so that a window has "
                "a centre"
            )
        if not is_count(dim_reduction) or dim % dim_reduction:
            raise ValueError(
                f"slide: dim_reduction is {dim_reduction}; allowed: divisors of dim={dim}"
            )
        inner = dim // dim_reduction
        if not is_count(num_heads) or inner % num_heads:
            raise ValueError(
                f"slide: num_heads is {num_heads}; allowed: divisors of dim / dim_reduction = "
                f"{inner}"
            )
        if path == "fixed" and not share_kernel:
            raise ValueError(
                "slide: share_kernel is False with path 'fixed'; allowed: True, keys and values "
                "share the shifts"
            )
        self.dim, self.num_heads, self.kernel_size, self.dtype = dim, num_heads, kernel_size, dtype
        self.inner, self.head_dim = inner, inner // num_heads
        self.scale = (dim / num_heads) ** -0.5 if scale is None else scale
        self.position_bias_on, self.path, self.share_qkv = position_bias, path, share_qkv
        self.share_kernel, self.merged, self.impl, self.param_dtype = (
            share_kernel,
            False,
            impl,
            param_dtype,
        )
        self.slots = kernel_size**2

        def linear(features_in, features, bias):
            init = trunc_normal(0.02)
            options = dict(use_bias=bias, kernel_init=init, dtype=dtype, param_dtype=param_dtype)
            return Linear(features_in, features, **options, rngs=rngs)

        def uniform(*shape):
            bound = 1 / kernel_size
            return nnx.Param(jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound))

        channels = self.head_dim * self.slots
        kernel = (kernel_size, kernel_size, 1, channels)
        self.qkv = linear(dim, inner if share_qkv else 3 * inner, qkv_bias)
        self.output = linear(inner, dim, True)
        table = trunc_normal(0.02)
        shape = (num_heads, self.slots)
        self.position_bias = (
            None if position_bias == "none" else nnx.Param(table(rngs.params(), shape, param_dtype))
        )
        self.fixed_bias = uniform(channels) if fixed_bias and path != "learned" else None
        learned, separate = path != "fixed", not share_kernel
        self.deformed_kernel = uniform(*kernel) if learned else None
        self.deformed_bias = uniform(channels) if learned else None
        self.deformed_value_kernel = uniform(*kernel) if separate else None
        self.deformed_value_bias = uniform(channels) if separate else None
        if merged:
            _merge(self)

    def __call__(
        self, x: Float[Array, "b h w c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h w c"]:
        """Maps [batch, H, W, dim] to the same shape; `rngs` is not read."""
        check_map("slide attention", x, self.dim, self.spatial_axes)
        qkv = self.qkv(x.astype(self.dtype or x.dtype))
        spatial = qkv.shape[:3]
        if self.share_qkv:
            q = k = v = qkv.reshape(*spatial, self.num_heads, self.head_dim)
        else:
            qkv = qkv.reshape(*spatial, self.num_heads, 3, self.head_dim)
            q, k, v = (qkv[..., i, :] for i in range(3))
        sums = [
            (self._split(kernel, q.dtype), self._split(bias, q.dtype))
            for kernel, bias in self.path_sums()
        ]
        (key_weight, key_bias), (value_weight, value_bias) = sums[0], sums[-1]
        y, weights = slide_mix(
            q * self.scale,
            k,
            v,
            key_weight=key_weight,
            value_weight=value_weight,
            key_bias=key_bias,
            value_bias=value_bias,
            position_bias=None if self.position_bias is None else self.position_bias[...],
            position_bias_on="logit" if self.position_bias_on == "logit" else "key",
            impl=self.impl,
        )
        if self.capture:
            self.sow(nnx.Intermediate, "slot_weights", jnp.moveaxis(weights, (3, 4), (1, 2)))
            self.sow(nnx.Intermediate, "attention_map", self._scatter(weights))
        return self.output(y.reshape(*spatial, self.inner))

    def path_sums(self) -> list[tuple[jax.Array, jax.Array | None]]:
        """Returns (kernel, bias) of the fixed and the learned path together, the values' own after
        the keys' if they differ.

        Kernels are [k, k, 1, head depth * slots], biases [head depth * slots], None where no path
        has one.
        """
        shifts = []
        if not self.merged and self.path != "learned":
            size = self.kernel_size
            one_hot = np.broadcast_to(shift_weight(size), (size, size, self.head_dim, self.slots))
            shifts = [jnp.asarray(one_hot.reshape(size, size, 1, -1), self.param_dtype)]
        learned = [(self.deformed_kernel, self.deformed_bias)]
        if not self.share_kernel:
            learned.append((self.deformed_value_kernel, self.deformed_value_bias))
        sums = []
        for kernel, bias in learned:
            kernels = shifts + ([] if kernel is None else [kernel[...]])
            biases = [one[...] for one in (self.fixed_bias, bias) if one is not None]
            sums.append((sum(kernels), sum(biases) if biases else None))
        return sums

    def macs(self, *spatial: int) -> int:
        """Multiply-accumulates of one sample, those of the merged form: the projections, both maps
        of the window (2 C k^4 per position) and the products with queries and weights (2 C k^2).
        Every lowering takes as many; without any bias of the paths 'shift' saves the last part."""
        positions, slots = spatial[0] * spatial[1], self.slots
        projections = self.dim * self.inner * (2 if self.share_qkv else 4)
        return positions * (projections + 2 * self.inner * slots**2 + 2 * self.inner * slots)

    def _split(self, array: jax.Array | None, dtype: Any) -> jax.Array | None:
        """[..., head depth * slots] -> [..., head depth, slots]; kernels lose the axis that a
        depthwise kernel has as 1.
        """
        if array is None:
            return None
        taps = array.shape[:2] if array.ndim == 4 else ()
        return array.reshape(*taps, self.head_dim, self.slots).astype(dtype)

    def _scatter(self, weights: Float[Array, "b h w n o"]) -> Float[Array, "b n h w y x"]:
        """Puts the weight of slot o at tap o's position."""
        (height, width), side = weights.shape[1:3], self.kernel_size
        places = []  # [position, tap, place]: one where they meet
        for length in (height, width):
            place = np.arange(length)[:, None] + np.arange(side) - side // 2
            places.append((place[..., None] == np.arange(length)).astype(weights.dtype))
        weights = weights.reshape(*weights.shape[:-1], side, side)
        return jnp.einsum("bxynij,xiX,yjY->bnxyXY", weights, *places)


def reparameterise(model: nnx.Module) -> nnx.Module:
    """Returns a copy of a model, in which every `SlideAttention` has one kernel and one bias: the
    inference form.

    E + W and b0 + b1 are stored where W and b1 were and `fixed_bias` is gone; the function is the
    same. Layers that are merged already stay as they are. The model given is not changed; arrays
    that stay are shared with it. Such a model can be trained on, but E is a part of the parameter
    then.

    Args:
        model: any NNX module, a `SlideAttention` itself, too.
    """
    model = nnx.merge(*nnx.split(model))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, SlideAttention) and not module.merged:
            _merge(module)
    return model


def _merge(layer: SlideAttention):
    sums = [
        (kernel, jnp.zeros(kernel.shape[-1], kernel.dtype) if bias is None else bias)
        for kernel, bias in layer.path_sums()
    ]
    # nnx.data, because an attribute that was None may become a parameter here.
    layer.deformed_kernel, layer.deformed_bias = (nnx.data(nnx.Param(array)) for array in sums[0])
    if not layer.share_kernel:
        layer.deformed_value_kernel, layer.deformed_value_bias = (
            nnx.data(nnx.Param(array)) for array in sums[1]
        )
    layer.fixed_bias, layer.merged = None, True


def head_major_qkv(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders a qkv projection from [.., (q|k|v)(head)(depth)], as in window attention, to [..,
    (head)(q|k|v)(depth)].

    So a slide block starts from the weights of a window block. Fits kernels [dim, 3 dim] and biases
    [3 dim].
    """
    return array.reshape(*array.shape[:-1], 3, num_heads, -1).swapaxes(-3, -2).reshape(array.shape)


def _table(array: np.ndarray) -> np.ndarray:
    """[1, heads, 1, slots, 1, 1] -> [heads, slots]."""
    if array.ndim != 6 or any(array.shape[axis] != 1 for axis in (0, 2, 4, 5)):
        raise ValueError(
            f"a bias table has the shape (1, heads, 1, slots, 1, 1), this has {array.shape}"
        )
    return array.reshape(array.shape[1], array.shape[3])


def _is_shift(array: np.ndarray) -> None:
    """Refuses a kernel of the fixed path, [depth * slots, 1, k, k], that is not the shift."""
    side, slots = array.shape[-1], array.shape[-1] ** 2
    shifts = np.tile(np.eye(slots), (len(array) // slots, 1)).reshape(-1, 1, side, side)
    if array.shape != shifts.shape or not np.array_equal(array, shifts):
        raise ValueError(
            "this kernel is not the fixed shift: it holds the sums of a merged layer, or was "
            "trained"
        )


_COMMON = (
    Rule(r"qkv\.weight", "qkv/kernel", "pointwise"),
    Rule(r"qkv\.bias", "qkv/bias"),
    Rule(r"proj\.weight", "output/kernel", "pointwise"),
    Rule(r"proj\.bias", "output/bias"),
    Rule(r"relative_position_bias_table", "position_bias", _table),
    Rule(r"dep_conv2\.weight", "deformed_value_kernel", "conv"),
    Rule(r"dep_conv2\.bias", "deformed_value_bias"),
)

TORCH_NAMES = (
    *_COMMON,
    Rule(r"dep_conv\.weight", None, _is_shift),  # no parameter here
    Rule(r"dep_conv\.bias", "fixed_bias"),
    Rule(r"dep_conv1\.weight", "deformed_kernel", "conv"),
    Rule(r"dep_conv1\.bias", "deformed_bias"),
)
"""Names of `SlideAttention` in the public code, and of the variant in DAT++ (`dep_conv2`)."""

MERGED_TORCH_NAMES = (
    *_COMMON,
    Rule(r"dep_conv\.weight", "deformed_kernel", "conv"),
    Rule(r"dep_conv\.bias", "deformed_bias"),
)
"""Names of the merged form: one convolution, which holds the sums, for a layer with `merged`."""
