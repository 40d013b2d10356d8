"""Feature pyramid: the maps of a backbone, all with as many channels, each with what the coarser
ones know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.interop.names import CONV, POINTWISE, prefixed
from lambdanet.layers.conv import Conv2d
from lambdanet.layers.linear import Linear
from lambdanet.layers.resize import resize_nearest

EXTRAS = ("pool", "on_input", "on_output")
"""How levels beyond the backbone's are made; the first is the default."""

_XAVIER = nnx.initializers.xavier_uniform()


class FeaturePyramid(nnx.Module):
    """P_i = smooth_i(M_i),  M_i = C_i W_i + b_i + nearest(M_(i+1)),  the last without the sum.

    `smooth` is a 3x3 convolution. There are biases and neither norms nor activations. A coarser map
    is brought to the exact size of the finer one, so that odd sizes work. Levels beyond the
    backbone's halve the map each:

        pool        every second position of the level before (Mask R-CNN)
        on_input    a 3x3 convolution with stride 2 on the backbone's last map, then on the level
                    before (RetinaNet)
        on_output   the same, the first on the last smoothed level

    Source: Lin et al. 2017, "Feature Pyramid Networks for Object Detection", as in mmdetection
    (the same code as mmsegmentation's). Kernels start Xavier-uniform.

    Args:
        dims: channels of the backbone's maps, finest first.
        dim: channels of every level.
        num_levels: levels in all; None means as many as there are maps from `start` on.
        start: first of the maps that gets a level, from 0.
        extra: 'pool' | 'on_input' | 'on_output'.
        extra_relu: a ReLU between the levels beyond (the RetinaNet paper and detectron2 have it).
        dtype: activation dtype; None follows the input and the parameters.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: a start without maps, fewer levels than maps, or an unknown `extra`.
    """

    def __init__(
        self,
        dims: Sequence[int],
        dim: int = 256,
        *,
        num_levels: int | None = None,
        start: int = 0,
        extra: str = "pool",
        extra_relu: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= start < len(dims):
            raise ValueError(f"pyramid: start is {start}; allowed: 0 to {len(dims) - 1}")
        if extra not in EXTRAS:
            raise ValueError(f"pyramid: extra is {extra!r}; allowed: {', '.join(EXTRAS)}")
        used = tuple(dims[start:])
        levels = len(used) if num_levels is None else num_levels
        if levels < len(used):
            raise ValueError(
                f"pyramid: num_levels is {levels}; allowed: {len(used)} or more, one per map"
            )
        self.dims, self.dim, self.start, self.extra = used, dim, start, extra
        self.num_levels, self.extra_relu = levels, extra_relu
        shared = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def conv(dim_in: int, stride: int = 1) -> Conv2d:
            options = dict(stride=(stride, stride), padding=(1, 1), kernel_init=_XAVIER)
            return Conv2d(dim_in, dim, (3, 3), **options, **shared)

        self.laterals = nnx.List(
            Linear(width, dim, kernel_init=_XAVIER, **shared) for width in used
        )
        self.smooth = nnx.List(conv(dim) for _ in used)
        first = used[-1] if extra == "on_input" else dim
        beyond = 0 if extra == "pool" else levels - len(used)
        self.beyond = nnx.List(conv(first if n == 0 else dim, stride=2) for n in range(beyond))

    def __call__(
        self, maps: Sequence[Float[Array, "b _h _w _c"]]
    ) -> list[Float[Array, "b _oh _ow d"]]:
        """Maps those of the backbone, finest first, to `num_levels` maps with `dim` channels.

        Raises:
            ValueError: another number of maps or channels than the pyramid was built for.
        """
        used = list(maps[self.start :])
        if tuple(x.shape[-1] for x in used) != self.dims:
            raise ValueError(
                f"pyramid: the maps have {tuple(x.shape[-1] for x in used)} channels; expected "
                f"{self.dims}"
            )
        merged = [lateral(x) for lateral, x in zip(self.laterals, used, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            size = merged[finer].shape[1:3]
            merged[finer] = merged[finer] + resize_nearest(merged[finer + 1], size)
        levels = [conv(x) for conv, x in zip(self.smooth, merged, strict=True)]
        if self.extra == "pool":
            while len(levels) < self.num_levels:
                levels.append(levels[-1][:, ::2, ::2])
        source = used[-1] if self.extra == "on_input" else levels[-1]
        for number, conv in enumerate(self.beyond):
            source = conv(jax.nn.relu(source) if number and self.extra_relu else source)
            levels.append(source)
        return levels

    def rows(self, sizes: Sequence[tuple[int, int]]) -> list[tuple]:
        """Returns the summary for maps of these sizes: (name, type, output shape, multiply-adds) of
        every layer.
        """
        used, rows = list(sizes[self.start :]), []
        for number, ((h, w), width) in enumerate(zip(used, self.dims, strict=True)):
            shape, area = (h, w, self.dim), h * w * self.dim
            rows.append((f"laterals/{number}", "linear", shape, area * width))
            rows.append((f"smooth/{number}", "conv 3x3", shape, 9 * area * self.dim))
        h, w = used[-1]
        for number, conv in enumerate(self.beyond):
            h, w = -(-h // 2), -(-w // 2)
            macs = 9 * h * w * conv.in_features * self.dim
            rows.append((f"beyond/{number}", "conv 3x3/2", (h, w, self.dim), macs))
        return rows

    def macs(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Multiply-accumulates of one sample with maps of these sizes."""
        return sum(row[-1] for row in self.rows(sizes))


def torch_names(levels: int) -> tuple:
    """Returns the names of mmdetection's and mmsegmentation's `FPN` with a number of levels that
    have laterals; its convolutions beyond them are counted on.
    """
    return (
        *prefixed(POINTWISE, r"lateral_convs\.(\d+)\.conv\.", r"laterals/\1"),
        *(
            rule
            for number in range(levels + 8)
            for rule in prefixed(
                CONV,
                rf"fpn_convs\.{number}\.conv\.",
                f"smooth/{number}" if number < levels else f"beyond/{number - levels}",
            )
        ),
    )
