"""CCNet's head: criss-cross attention, several passes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from lambdanet.attention import criss_cross
from lambdanet.interop.names import POINTWISE, Rule, prefixed
from lambdanet.layers import Linear

from ..backbone import Row
from .context import ContextHead
from .parts import Activation, FeatureInfo, Maps, Sizes, sequential
from .registration import registry


@registry.register("criss_cross")
class CrissCrossHead(ContextHead):
    """h = attention(reduce(x)), R passes;  logits = classify(bottleneck([x, mix(h)])).

    A `ContextHead` with criss-cross attention and `mix`. For the category-consistent loss of the
    journal version (`lambdanet.attention.category_consistent_loss`) the output of the attention can
    be reduced to few channels by a 1x1 convolution: the map 'embedding' of `return_auxiliary`.

    Source: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation" (ICCV 2019; TPAMI
    2020), the RCCAModule of their code; the paper has 1x1 in place of 3x3 convolutions. Its norms
    are InPlace-ABN: leaky ReLU with slope 0.01 after the norm (`activation='leaky_relu_0.01'`) and
    |weight| + 1e-5 in place of the norm's weight, which the name table 'ccnet' brings in. 'relu' is
    what mmsegmentation trains with. The number of the embedding's channels, 16, is from memory: the
    loss's code was never released.

    Args:
        feature_info: channels and stride of the backbone's maps.
        num_classes: classes of the logits.
        stage: which map it reads, from 1; None is the last.
        channels: inside the attention; None means a quarter of the map's.
        dim_out: channels in front of the classifier; None means `channels`.
        recurrence: passes, R.
        share_weights: all passes use the same weights.
        reduction: queries and keys have channels // reduction channels.
        embedding_channels: of the map for the category-consistent loss, 16 in the paper; 0 for
            none.
        activation: after each norm, a name of `lambdanet.layers.ACTIVATIONS`.
        dropout: rate at which whole channels are dropped in front of the classifier.
        norm_momentum: decay of the running statistics.
        dtype: activation dtype; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source.

    Raises:
        ValueError: a stage that the backbone does not have, or what `CrissCross` refuses.
    """

    def __init__(
        self,
        feature_info: FeatureInfo,
        num_classes: int,
        *,
        stage: int | None = None,
        channels: int | None = None,
        dim_out: int | None = None,
        recurrence: int = 2,
        share_weights: bool = True,
        reduction: int = 8,
        embedding_channels: int = 0,
        activation: Activation = "relu",
        dropout: float = 0.1,
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        passes = dict(recurrence=recurrence, share_weights=share_weights, reduction=reduction)
        super().__init__(
            feature_info,
            num_classes,
            block=dict(name="criss_cross", **passes),
            stage=stage,
            channels=channels,
            dim_out=dim_out,
            mix=True,
            activation=activation,
            dropout=dropout,
            norm_momentum=norm_momentum,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.embed = (
            Linear(
                self.attention.dim,
                embedding_channels,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            if embedding_channels
            else None
        )

    def __call__(
        self, maps: Maps, *, rngs: nnx.Rngs | None = None, return_auxiliary: bool = False
    ) -> Any:
        """Maps the backbone's maps to logits [b, h, w, num_classes]; with `return_auxiliary` and
        `embedding_channels` also to {'embedding': [b, h, w, embedding_channels]}, float32.
        """
        x = self._chosen_map("criss-cross", maps)
        h = self.context(x)
        logits = self.classify(self._fuse(x, h), rngs=rngs)
        if not return_auxiliary:
            return logits
        embedded = {} if self.embed is None else {"embedding": self.embed(h).astype(jnp.float32)}
        return logits, embedded

    def rows(self, sizes: Sizes) -> list[Row]:
        """Returns the summary for maps of these sizes; the embedding, which evaluation leaves out,
        has no multiply-adds.
        """
        rows = super().rows(sizes)
        if self.embed is not None:
            h, w = sizes[self.index]
            rows.append(("embed", "linear", (h, w, self.embed.out_features), 0))
        return rows

    @property
    def torch_names(self) -> Mapping[str, tuple[Rule, ...]]:
        """Names of CCNet's RCCAModule with its in-place norms and of mmsegmentation's CCHead."""
        return {**super().torch_names, "ccnet": _rcca(inplace=True)}


def _rcca(*, inplace: bool) -> tuple[Rule, ...]:
    return (
        *sequential(r"conva\.", "reduce", inplace=inplace),
        *prefixed(criss_cross.TORCH_NAMES, r"cca\.", "attention"),
        *sequential(r"convb\.", "mix", inplace=inplace),
        *sequential(r"bottleneck\.", "bottleneck", inplace=inplace),
        *prefixed(POINTWISE, r"bottleneck\.3\.", "classify"),
    )


OFFICIAL_NAMES = _rcca(inplace=False)
"""Names of CCNet's RCCAModule with plain batch norms."""
