"""Flow-guided feature aggregation: the features of neighbouring frames, warped and averaged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.layers import Conv2d
from lambdanet.ops.frame_mean import frame_mean
from lambdanet.ops.warp import warp

from ..backbone import Row
from .flownet import FlowNetS, conv_row
from .frames import Frame, Propagation
from .registration import registry

_HE = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class Embedding(nnx.Module):
    """1x1, ReLU, 3x3, ReLU, 1x1: what the likeness of two frames is measured in.

    Args:
        channels: of the features.
        hidden_channels: of the first two layers.
        embedding_channels: of the result.
        dtype: activation dtype.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Kernels start He-normal.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        embedding_channels: int,
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: Any,
    ):
        widths = (channels, hidden_channels, hidden_channels, embedding_channels)
        self.layers = nnx.List(
            Conv2d(
                before,
                after,
                (side, side),
                padding=(side // 2,) * 2,
                kernel_init=_HE,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for side, before, after in zip((1, 3, 1), widths, widths[1:], strict=False)
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w e"]:
        """Maps [b, h, w, channels] to [b, h, w, embedding_channels]."""
        first, second, last = self.layers
        return last(jax.nn.relu(second(jax.nn.relu(first(x)))))

    def rows(self, name: str, size: tuple[int, int]) -> list[Row]:
        """Returns the lines of the summary for a map of that size."""
        return [
            conv_row(f"{name}/layers/{number}", layer, size)
            for number, layer in enumerate(self.layers)
        ]


@registry.register("flow_guided_aggregation")
class FlowGuidedAggregation(Propagation):
    """F_i = sum over t of w_t warp(F_t, M_t), with M_t = FlowNetS(I_i, I_t) and w = softmax over t
    of the cosine of two embeddings at each position.

    The caller chooses the frames. The reference trains with two others of the nine before and the
    nine behind, and evaluates with 2 K + 1, K = 9, the frame itself among them, which is then
    warped like the others; at the ends of a clip the first and the last are repeated. Frames are
    read one after the other and none of what is warped is kept, see `frame_mean`. There is no scale
    map.

    Embeddings are made of the warped features in the reference's training, and in its evaluation
    of each frame's own and then warped, once per frame instead of once per pair. The two are not
    equal.

    Source: Flow-Guided Feature Aggregation for Video Object Detection (Zhu et al., 2017), and its
    code.

    Args:
        channels: of the features.
        stride: pixels per cell of the features.
        in_channels: of the image.
        embed_before_warp: whether embeddings are made first and then warped; None is the
            reference's way, False in training and True in evaluation.
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
    needs = ("image", "features")
    many = True

    def __init__(
        self,
        *,
        channels: int,
        stride: int,
        in_channels: int,
        embed_before_warp: bool | None = None,
        hidden_channels: int = 512,
        embedding_channels: int = 2048,
        width: float = 1.0,
        levels: int = 6,
        half: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: Any,
    ):
        self.embed_before_warp, self.deterministic = embed_before_warp, False
        host = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.flow_net = FlowNetS(
            in_channels=in_channels, stride=stride, width=width, levels=levels, half=half, **host
        )
        self.embed = Embedding(channels, hidden_channels, embedding_channels, **host)

    def set_view(self, deterministic: bool | None = None):
        """Switches between training and evaluation, where `embed_before_warp` is None.

        Args:
          deterministic: True is evaluation; None leaves it as it is.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, key: Frame, current: Frame) -> Float[Array, "b h w c"]:
        """Returns the mean of frames [t, b, ...], `key`, placed as the current frame; reads `image`
        and `features` of all, and `embedding` where `prepare` has made it.
        """
        early = self._early()
        size = current.features.shape[1:3]

        def read(frame: Frame):
            flow = self.flow_net(current.image, frame.image, size).flow
            if not early:
                features = warp(frame.features, flow)
                return features, self.embed(features)
            embedding = self.embed(frame.features) if frame.embedding is None else frame.embedding
            both = warp(jnp.concatenate([frame.features, embedding], -1), flow)
            return both[..., : frame.features.shape[-1]], both[..., frame.features.shape[-1] :]

        own = self.embed(current.features) if current.embedding is None else current.embedding
        return frame_mean(read, key, own)[0]

    def prepare(self, frame: Frame) -> Frame:
        """Adds the frame's embedding, where embeddings are made before they are warped."""
        return frame._replace(embedding=self.embed(frame.features)) if self._early() else frame

    def _early(self) -> bool:
        return self.deterministic if self.embed_before_warp is None else self.embed_before_warp

    def rows(
        self, image: tuple[int, int], low: tuple[int, int], features: tuple[int, int]
    ) -> list[Row]:
        """See `Propagation`; those of one other frame."""
        rows = self.flow_net.rows("flow_net", image, features)
        return rows + self.embed.rows("embed", features)
