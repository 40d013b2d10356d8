"""PVTv2 and Slide-PVTv2: overlapping embeddings, a depthwise convolution in the MLP, a norm after
every stage.

Sources: Wang et al. 2022, "PVT v2: Improved Baselines with Pyramid Vision Transformer" (arXiv
2106.13797), as in the authors' code, B2 also with linear attention (keys and values pooled to 7x7
in every stage, ReLU in the MLP); Pan et al. 2023, "Slide-Transformer" (arXiv 2304.04237), of which
no PVTv2 code is public: slide attention with 3x3 windows in the first two stages. That gives the
reported parameters and multiply-adds of B1 and the multiply-adds of B2; the parameters printed for
B2 are those of Slide-PVT-Small and fit no such network. Slide-PVTv2-B0 and -B5 are not in the
paper.

Convolutions start normal over the outgoing fan. Drop path is that of the authors' code, 0.1 up to
B2 and 0.3 above; of the Slide forms none is reported, they have that of their baseline.
"""

from __future__ import annotations

from ..registration import registry
from .digits import register_digits
from .hierarchical import HierarchicalTransformer
from .pvt import REDUCTIONS, reductions

_TABLE = (
    ("b0", (2, 2, 2, 2), (32, 64, 160, 256), (8, 8, 4, 4), 0.1),
    ("b1", (2, 2, 2, 2), (64, 128, 320, 512), (8, 8, 4, 4), 0.1),
    ("b2", (3, 4, 6, 3), (64, 128, 320, 512), (8, 8, 4, 4), 0.1),
    ("b3", (3, 4, 18, 3), (64, 128, 320, 512), (8, 8, 4, 4), 0.3),
    ("b4", (3, 8, 27, 3), (64, 128, 320, 512), (8, 8, 4, 4), 0.3),
    ("b5", (3, 6, 40, 3), (64, 128, 320, 512), (4, 4, 4, 4), 0.3),
)
"""(size, blocks, widths, MLP ratios, drop path)."""

_CONV_INIT = "fan_out"
_OWN = reductions(*REDUCTIONS, conv_init=_CONV_INIT)
_COMMON = dict(
    stem=dict(name="conv", kernel_size=7, stride=4, padding=3),
    downsample=dict(name="conv", kernel_size=3, stride=2, padding=1),
    mlp="depthwise",
    stage_norm=True,
    conv_init=_CONV_INIT,
    norm_epsilon=1e-6,
    family="pvt_v2",
)


def _register(name, blocks, widths, ratios, rate, attention, **others):
    registry.register(
        name,
        HierarchicalTransformer,
        blocks=blocks,
        widths=widths,
        num_heads=(1, 2, 5, 8),
        mlp_ratios=ratios,
        attention=attention,
        drop_path_rate=rate,
        **{**_COMMON, **others},
    )


for _size, *_shape in _TABLE:
    _register(f"pvt_v2_{_size}", *_shape, _OWN)
    _register(f"slide_pvt_v2_{_size}", *_shape, ("slide", "slide", *_OWN[2:]))
    if _size == "b2":
        _linear = dict(name="spatial_reduction", linear=True, conv_init=_CONV_INIT)
        _register("pvt_v2_b2_li", *_shape, _linear, mlp="depthwise_linear")

_SMALL = reductions(2, 1, conv_init=_CONV_INIT)
register_digits(
    {"pvt_v2_digits": _SMALL, "slide_pvt_v2_digits": ("slide", _SMALL[1])}, _COMMON, mlp_ratio=3
)
