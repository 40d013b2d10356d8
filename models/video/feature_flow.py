"""Deep Feature Flow: features of a key frame, warped along a flow."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.warp import warp

from ..backbone import Row
from .flownet import FlowNetS
from .frames import Frame, Propagation
from .registration import registry

FROZEN = (r".*flow_net/scale/bias",)
"""For `optim.frozen`: the bias of the scale map, whose learning rate is 0 in the reference."""


@registry.register("deep_feature_flow")
class DeepFeatureFlow(Propagation):
    """F_i = warp(F_k, M) * S, with (M, S) = FlowNetS(I_i, I_k): the flow goes from the current
    frame i to the key frame k.

    S starts at 1 everywhere; the reference then trains its weights and leaves its bias at 1, which
    is `optim.frozen=FROZEN` here.

    Source: Deep Feature Flow for Video Recognition (Zhu et al., 2017), and its code.

    Args:
        channels: of the features.
        stride: pixels per cell of the features.
        in_channels: of the image.
        scale: whether there is a scale map.
        width: of the flow network, see `FlowNetS`.
        levels: see `FlowNetS`.
        half: see `FlowNetS`.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    key_needs = ("image", "features")
    needs = ("image",)

    def __init__(
        self,
        *,
        channels: int,
        stride: int,
        in_channels: int,
        scale: bool = True,
        width: float = 1.0,
        levels: int = 6,
        half: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: Any,
    ):
        self.flow_net = FlowNetS(
            in_channels=in_channels,
            stride=stride,
            scale_channels=channels if scale else 0,
            width=width,
            levels=levels,
            half=half,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, key: Frame, current: Frame) -> Float[Array, "b h w c"]:
        """Returns the key's features where the current frame has them; reads `features` and `image`
        of the key, `image` of the current frame.
        """
        motion = self.flow_net(current.image, key.image, key.features.shape[1:3])
        features = warp(key.features, motion.flow)
        return features if motion.scale is None else features * motion.scale

    def rows(
        self, image: tuple[int, int], low: tuple[int, int], features: tuple[int, int]
    ) -> list[Row]:
        """See `Propagation`; those of the flow network."""
        return self.flow_net.rows("flow_net", image, features)
