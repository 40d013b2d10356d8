"""Swin and Slide-Swin: attention in windows that shift from block to block, patch merging.

Sources: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
(arXiv 2103.14030), as in the authors' code and timm; Pan et al. 2023, "Slide-Transformer" (arXiv
2304.04237), as in its public code: slide attention with 3x3 windows in the first two stages, window
attention with shifts in the other two. `slide_swin_*` have the window of 7 whose multiply-adds are
the paper's; `slide_swin_*_release` the window of 56 of the released configuration, which on 224x224
images leaves global attention without shifts in the last two stages.

Deviations: maps that the patches, the merging or the windows do not divide are padded with zeros at
the bottom and the right, as in the authors' code for dense tasks, whose windows also keep their
size and shift on small maps: `attention=(windows(7, fit=False),) * 4` in Python. Slide-Swin runs on
maps of any shape, the public code on square ones. Drop path is that of the authors' code: 0.2, 0.3
and 0.5 for Tiny, Small and Base, in both papers.
"""

from __future__ import annotations

from typing import Any

from ..registration import registry
from .digits import register_digits
from .hierarchical import HierarchicalTransformer

_TABLE = (
    ("tiny", (2, 2, 6, 2), 96, (3, 6, 12, 24), 0.2),
    ("small", (2, 2, 18, 2), 96, (3, 6, 12, 24), 0.3),
    ("base", (2, 2, 18, 2), 128, (4, 8, 16, 32), 0.5),
)
"""(size, blocks, first width, heads, drop path)."""


def windows(side: int | tuple[int, int], **options: Any) -> tuple[dict, dict]:
    """Returns the attention of a stage: windows of that side as they lie, then shifted by half;
    with further options of both. Networks for dense tasks have `fit=False`.
    """
    return (
        dict(name="window", window_size=side, **options),
        dict(name="shifted_window", window_size=side, **options),
    )


_COMMON = dict(
    stem=dict(name="conv", kernel_size=4, remainder="pad"),
    downsample="patch_merging",
    family="swin",
)

for _size, _blocks, _width, _heads, _rate in _TABLE:
    for _name, _attention in (
        (f"swin_{_size}", (windows(7),) * 4),
        (f"slide_swin_{_size}", ("slide", "slide", windows(7), windows(7))),
        (f"slide_swin_{_size}_release", ("slide", "slide", windows(56), windows(56))),
    ):
        registry.register(
            _name,
            HierarchicalTransformer,
            blocks=_blocks,
            widths=tuple(_width * 2**stage for stage in range(4)),
            num_heads=_heads,
            mlp_ratios=(4, 4, 4, 4),
            attention=_attention,
            drop_path_rate=_rate,
            **_COMMON,
        )

# Four windows of 4x4 on the first map, one on the second.
register_digits(
    {"swin_digits": (windows(4), windows(4)), "slide_swin_digits": ("slide", windows(4))}, _COMMON
)
