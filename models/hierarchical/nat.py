"""NAT and Slide-NAT: neighborhood attention, convolutional tokenizer and downsampling.

Sources: Hassani et al. 2023, "Neighborhood Attention Transformer" (arXiv 2204.07143), as in the
authors' code; Pan et al. 2023, "Slide-Transformer" (arXiv 2304.04237), of which no NAT code is
public: slide attention with 3x3 windows in the first two stages and all else as it was, layer scale
included. The multiply-adds of these networks come out up to 0.1 G above the printed ones.
Slide-NAT-Base is not in the paper.

Layer scale (1e-5) is in Small and Base alone. Drop path is that of the authors' code: 0.2, 0.2, 0.3
and 0.5; of the Slide forms none is reported, they have that of their baseline.
"""

from __future__ import annotations

from ..registration import registry
from .digits import register_digits
from .hierarchical import HierarchicalTransformer

_TABLE = (
    ("mini", (3, 4, 6, 5), 64, (2, 4, 8, 16), 3, None, 0.2),
    ("tiny", (3, 4, 18, 5), 64, (2, 4, 8, 16), 3, None, 0.2),
    ("small", (3, 4, 18, 5), 96, (3, 6, 12, 24), 2, 1e-5, 0.3),
    ("base", (3, 4, 18, 5), 128, (4, 8, 16, 32), 2, 1e-5, 0.5),
)
"""(size, blocks, first width, heads, MLP ratio, layer scale, drop path)."""

_COMMON = dict(
    stem="double_conv",
    downsample=dict(name="conv", kernel_size=3, stride=2, padding=1, bias=False),
    family="nat",
)
_OWN = dict(name="neighborhood", kernel_size=7)

for _size, _blocks, _width, _heads, _ratio, _scale, _rate in _TABLE:
    for _name, _attention in (("nat", (_OWN,) * 4), ("slide_nat", ("slide", "slide", _OWN, _OWN))):
        registry.register(
            f"{_name}_{_size}",
            HierarchicalTransformer,
            blocks=_blocks,
            widths=tuple(_width * 2**stage for stage in range(4)),
            num_heads=_heads,
            mlp_ratios=(_ratio,) * 4,
            attention=_attention,
            layer_scale=_scale,
            drop_path_rate=_rate,
            **_COMMON,
        )

# Windows of 3x3, which do not cover the maps of 8x8 and 4x4.
_SMALL = dict(name="neighborhood", kernel_size=3)
register_digits(
    {"nat_digits": (_SMALL, _SMALL), "slide_nat_digits": ("slide", _SMALL)},
    _COMMON,
    mlp_ratio=3,
    stem=dict(name="double_conv", stride=1),
)
