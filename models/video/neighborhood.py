"""Features carried by attention to a neighbourhood in the key frame: no flow network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers import Conv2d, avg_pool, resize_bilinear
from lambdanet.ops.carry import carry

from ..backbone import Row
from .flownet import conv_row
from .frames import Frame, Propagation
from .registration import registry

_DEFAULTS = {"radius": 4, "ring": 0, "ring_step": 2}


@registry.register("neighborhood_propagation")
class NeighborhoodPropagation(Propagation):
    """F_i(p) = sum over o of a_o(p) F_k(p + o), with a = softmax over o of e_i(p) e_k(p + o) /
    sqrt(d) + b_o: local attention with queries from the current frame, keys and values from the key
    frame.

    e is a 1x1 convolution, ReLU and a 3x3 of an early map of the backbone, averaged to the
    features' grid, which is all that a frame between key frames needs. The offsets o are a square
    of 2 radius + 1 cells, and perhaps a sparser ring around it; offsets that lead out of the map
    are left out.

    Our own, for the question what can replace flow; near to it are the weights of LWDN (Jiang et
    al., 2019) and the sampling of PSLA (Guo et al., 2019).

    Args:
        channels: of the features.
        stride: pixels per cell of the features.
        low_channels: of the early map.
        low_stride: its pixels per cell.
        embedding_channels: d.
        radius: of the square, in cells.
        ring: steps of the ring on each side of the middle; 0 for none. Its outermost offset is ring
            * ring_step, beyond the radius.
        ring_step: cells between offsets of the ring.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: features whose stride is no multiple of the early map's; see `carry`.
    """

    key_needs = ("low", "features")
    needs = ("low",)

    def __init__(
        self,
        *,
        channels: int,
        stride: int,
        low_channels: int,
        low_stride: int,
        embedding_channels: int = 256,
        radius: int = _DEFAULTS["radius"],
        ring: int = _DEFAULTS["ring"],
        ring_step: int = _DEFAULTS["ring_step"],
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: Any,
    ):
        if stride % low_stride:
            raise ValueError(
                f"the features have stride {stride}, the low map {low_stride}; allowed: a divisor"
            )
        self.channels, self.dim, self.window = channels, embedding_channels, stride // low_stride
        self.ring_step = ring_step
        host = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.reduce = Conv2d(low_channels, embedding_channels, (1, 1), **host)
        self.embed = Conv2d(embedding_channels, embedding_channels, (3, 3), padding=(1, 1), **host)
        self.sides = square, outer = 2 * radius + 1, 2 * ring + 1
        self.bias = nnx.Param(jnp.zeros((square, square), param_dtype))
        self.ring_bias = nnx.Param(jnp.zeros((outer, outer), param_dtype)) if ring else None

    @staticmethod
    def option_problems(options: Mapping[str, Any]) -> list[str]:
        """Refuses a ring within the square."""
        radius, ring, step = (options.get(name, n) for name, n in _DEFAULTS.items())
        if not ring or ring * step > radius:
            return []
        return [
            f"ring={ring} and ring_step={step} reach {ring * step} cells, radius is {radius}; "
            "allowed: a ring that reaches further, or ring=0"
        ]

    def __call__(self, key: Frame, current: Frame) -> Float[Array, "b h w c"]:
        """Returns the key's features where the current frame has them; reads `features` and `low`
        of the key, `low` of the current frame.
        """
        size = key.features.shape[1:3]
        keys = self._embedding(key.low, size) if key.embedding is None else key.embedding
        return carry(
            self._embedding(current.low, size),
            keys,
            key.features,
            self.bias[...],
            None if self.ring_bias is None else self.ring_bias[...],
            ring_step=self.ring_step,
        )

    def prepare(self, frame: Frame) -> Frame:
        """Adds the key's embedding."""
        return frame._replace(embedding=self._embedding(frame.low, frame.features.shape[1:3]))

    def _embedding(self, low: jax.Array, size: tuple[int, int]) -> jax.Array:
        x = avg_pool(low, self.window, self.window) if self.window > 1 else low
        return self.embed(jax.nn.relu(self.reduce(resize_bilinear(x, size))))

    def rows(
        self, image: tuple[int, int], low: tuple[int, int], features: tuple[int, int]
    ) -> list[Row]:
        """See `Propagation`; of the current frame's embedding, and of its attention."""
        rows = [conv_row("reduce", self.reduce, features), conv_row("embed", self.embed, features)]
        for name, side in zip(("bias", "ring_bias"), self.sides, strict=True):
            if getattr(self, name) is not None:
                macs = features[0] * features[1] * side**2 * (self.dim + self.channels)
                rows.append((name, "local attention", (*features, self.channels), macs))
        return rows
