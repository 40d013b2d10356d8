"""PVT and Slide-PVT: spatial-reduction attention, learned positions, a class token in the last
stage.

Sources: Wang et al. 2021, "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction
without Convolutions" (arXiv 2102.12122), as in the authors' code; Pan et al. 2023,
"Slide-Transformer" (arXiv 2304.04237), of which no PVT code is public: slide attention with 3x3
windows in the first two stages gives the parameters and multiply-adds that are reported.
Slide-PVT-Large is not in the paper.

Deviations. The authors' code compares a map with the grid of stage one before it resizes any
stage's positions; here each stage is compared with its own grid, so that a resized input can never
meet a table that does not fit. On maps for dense tasks (`features`) the class token and its
position are left out, as in the authors' code for these tasks. Drop path is that of the authors'
code: 0.1 for Tiny and Small, 0.3 for Medium and Large; of the Slide forms none is reported, they
have that of their baseline.
"""

from __future__ import annotations

from typing import Any

from ..registration import registry
from .digits import register_digits
from .hierarchical import HierarchicalTransformer

REDUCTIONS = (8, 4, 2, 1)

_TABLE = (
    ("tiny", (2, 2, 2, 2), 0.1),
    ("small", (3, 4, 6, 3), 0.1),
    ("medium", (3, 4, 18, 3), 0.3),
    ("large", (3, 8, 27, 3), 0.3),
)
"""(size, blocks, drop path)."""


def reductions(*ratios: int, **options: Any) -> tuple[dict[str, Any], ...]:
    """Returns the attention of each stage from the ratios by which it shortens keys and values, and
    further options.
    """
    return tuple(dict(name="spatial_reduction", sr_ratio=ratio, **options) for ratio in ratios)


_COMMON = dict(
    stem=dict(name="conv", kernel_size=4),
    downsample=dict(name="conv", kernel_size=2),
    position_embedding=True,
    pool="cls",
    norm_epsilon=1e-6,
    family="pvt",
)

for _size, _blocks, _rate in _TABLE:
    for _name, _attention in (
        ("pvt", reductions(*REDUCTIONS)),
        ("slide_pvt", ("slide", "slide", *reductions(*REDUCTIONS[2:]))),
    ):
        registry.register(
            f"{_name}_{_size}",
            HierarchicalTransformer,
            blocks=_blocks,
            widths=(64, 128, 320, 512),
            num_heads=(1, 2, 5, 8),
            mlp_ratios=(8, 8, 4, 4),
            attention=_attention,
            drop_path_rate=_rate,
            **_COMMON,
        )

register_digits(
    {"pvt_digits": reductions(2, 1), "slide_pvt_digits": ("slide", *reductions(1))}, _COMMON
)
