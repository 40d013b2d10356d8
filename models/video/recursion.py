"""Features that key frames hand on to each other, and frames that are computed again in part."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambdanet.ops.frame_mean import unit
from lambdanet.ops.warp import warp

from ..backbone import Row
from .aggregation import Embedding
from .flownet import FlowNetS
from .frames import Frame, Propagation
from .registration import registry


@registry.register("sparse_recursion")
class SparseRecursion(Propagation):
    """Sparsely recursive feature aggregation with partial updates, as far as it is known.

        key frame to key frame   F'_k' = w warp(F'_k) + (1 - w) F_k'          (`renew`)
        to a frame between       F_i = warp(F'_k), and with partial updates
                                 F'_i = w warp(F'_k) + (1 - w) (U F_i + (1 - U) warp(F'_k))

    where F without a prime are a frame's own features, U = 1 where the flow network's quality map Q
    is at most the threshold, and w, 1 - w are the softmax of the cosines of the two embeddings with
    the second one's. Memory is one map.

    A frame becomes a key frame where U covers more than a share of the map: `becomes_key`, which
    the host asks, since compiled code cannot leave work out.

    Source: Towards High Performance Video Object Detection (Zhu et al., 2018). There is no public
    code; this follows other people's notes of the paper, and differs from it where they do:
    partial updates choose between whole feature maps, computed densely, where the paper takes them
    layer by layer; the paper's random U in training is not here; Q gets its gradient straight
    through the threshold, as of a logistic function, which is our choice, as is any penalty on
    `updated`.

    Args:
        channels: of the features.
        stride: pixels per cell of the features.
        in_channels: of the image.
        partial: whether frames between key frames are updated in part; that needs their own
            features.
        threshold: of Q.
        key_share: U's share of a frame from which on it becomes a key frame.
        hidden_channels: of the embedding's first layers.
        embedding_channels: of the embeddings.
        width: of the flow network, see `FlowNetS`.
        levels: see `FlowNetS`.
        half: see `FlowNetS`.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.
    """

    key_needs = ("image", "features")
    recursive = True

    def __init__(
        self,
        *,
        channels: int,
        stride: int,
        in_channels: int,
        partial: bool = True,
        threshold: float = 0.0,
        key_share: float = 0.2,
        hidden_channels: int = 512,
        embedding_channels: int = 2048,
        width: float = 1.0,
        levels: int = 6,
        half: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: Any,
    ):
        self.partial, self.threshold, self.key_share = partial, threshold, key_share
        self.needs = ("image", "features") if partial else ("image",)
        host = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.flow_net = FlowNetS(
            in_channels=in_channels,
            stride=stride,
            quality=True,
            width=width,
            levels=levels,
            half=half,
            **host,
        )
        self.embed = Embedding(channels, hidden_channels, embedding_channels, **host)

    def __call__(self, key: Frame, current: Frame) -> Float[Array, "b h w c"]:
        """Returns features of a frame between key frames; reads `image` and `features` of the key,
        `image` and, with partial updates, `features` of the current frame.
        """
        motion = self.flow_net(current.image, key.image, key.features.shape[1:3])
        warped = warp(key.features, motion.flow)
        if not self.partial:
            return warped
        chosen = self._chosen(motion.quality)[..., None].astype(warped.dtype)
        return self._joined(warped, chosen * current.features + (1 - chosen) * warped)

    def renew(self, old: Frame, new: Frame) -> Frame:
        """Returns the new key frame with what the old one hands on."""
        motion = self.flow_net(new.image, old.image, old.features.shape[1:3])
        features = self._joined(warp(old.features, motion.flow), new.features)
        return new._replace(features=features)

    def updated(self, key: Frame, current: Frame) -> Float[Array, " b"]:
        """Returns U's share of each frame; reads the images, and of the key `features` for their
        size.
        """
        motion = self.flow_net(current.image, key.image, key.features.shape[1:3])
        return jnp.mean(self._chosen(motion.quality), (1, 2))

    def becomes_key(self, key: Frame, current: Frame) -> jax.Array:
        """Returns bool [b]: whether each frame should be a key frame; reads what `updated` does."""
        return self.updated(key, current) > self.key_share

    def _chosen(self, quality):
        """U as 0 and 1, with the gradient of a logistic function."""
        soft = jax.nn.sigmoid(self.threshold - quality)
        hard = (quality <= self.threshold).astype(soft.dtype)
        return hard + soft - jax.lax.stop_gradient(soft)

    def _joined(self, warped, own):
        """The two maps, each weighted by the likeness of its embedding to that of the second."""
        alike = jnp.sum(unit(self.embed(warped)) * unit(self.embed(own)), -1, keepdims=True)
        weight = jax.nn.sigmoid(alike - 1).astype(own.dtype)  # the second is like itself
        return weight * warped + (1 - weight) * own

    def rows(
        self, image: tuple[int, int], low: tuple[int, int], features: tuple[int, int]
    ) -> list[Row]:
        """See `Propagation`; of one frame, its own features left out."""
        rows = self.flow_net.rows("flow_net", image, features)
        return rows + self.embed.rows("embed", features)
