"""The layers of C2D and I3D before the first stage."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from ..backbone import Recompute, Row
from ..resnet.blocks import STEMS, Stem, stem_stride
from .poolings import POOLINGS, frames_out, pool_frames, pool_space, space_out


class ClipStem(Recompute, Stem):
    """The stem of `models.resnet`, its first kernel over several frames, and the max-pool over time
    and space if that stem has one.

    Args:
        kind: a key of `STEMS`.
        in_channels: channels of the frames.
        width: of the first stage's blocks.
        frames: (frames under the first kernel, its step over time).
        pooling: a key of `POOLINGS`.
        remat: recompute the inner activations in the backward pass.
        activation: see `Stem`.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Attributes:
        strides: in space and in time.
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        width: int,
        *,
        frames: tuple[int, int],
        pooling: str,
        remat: bool,
        activation: str,
        norm_momentum: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            kind,
            in_channels,
            width,
            frames=frames,
            activation=activation,
            norm_momentum=norm_momentum,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        pool = STEMS[kind][1]
        self.pooling, self.remat = pooling if pool else None, remat
        self.strides = (
            stem_stride(kind),
            frames[1] * (min(POOLINGS[pooling][0], 2) if pool else 1),
        )

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b ot oh ow d"]:
        """Maps [b, t, h, w, in_channels] to the input of the first stage; its size is in the last
        of `rows`.
        """
        return (nnx.remat(_run) if self.remat else _run)(self, x)

    def rows(self, *size: int) -> list[Row]:
        """Returns the summary of one clip (t, h, w); the last line has the output shape."""
        rows = super().rows(*size)
        if self.pooling is not None:
            (t, h, w, channels), (window, padded, _) = rows[-1][2], POOLINGS[self.pooling]
            shape = (frames_out(t, window), space_out(h, padded), space_out(w, padded), channels)
            rows.append(("max_pool", f"max_pool {window}x3x3", shape, 0))
        return rows


def _run(stem: ClipStem, x: jax.Array) -> jax.Array:
    x = Stem.__call__(stem, x)
    if stem.pooling is None:
        return x
    window, padded, _ = POOLINGS[stem.pooling]
    return pool_frames(pool_space(x, padded), window)
