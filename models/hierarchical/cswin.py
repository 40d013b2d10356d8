"""CSWin and Slide-CSwin: attention in horizontal and vertical stripes, side by side, with a local
position encoding.

Sources: Dong et al. 2022, "CSWin Transformer: A General Vision Transformer Backbone with
Cross-Shaped Windows" (arXiv 2107.00652), as in the authors' code; Pan et al. 2023,
"Slide-Transformer" (arXiv 2304.04237), of which no CSWin code is public: slide attention with 3x3
windows in the first two stages, whose blocks then have no position encoding of CSWin's. The
multiply-adds of Small and Base are the reported ones; those of Tiny would fit one block less in the
third stage.

Stripes are 1, 2 and 7 wide in the first three stages and the last stage is global, as for 224x224
images (the authors use 1, 2 and 12 at 384: `attention=cross_shaped(1, 2, 12)` in Python).
Deviation: the authors' classification code takes square maps that the stripes divide; here maps of
any shape, padded as in their code for dense tasks. Drop path is that of the authors' code: 0.2, 0.4
and 0.5; of the Slide forms none is reported, they have that of their baseline.
"""

from __future__ import annotations

from ..registration import registry
from .digits import register_digits
from .hierarchical import HierarchicalTransformer

_TABLE = (
    ("tiny", (1, 2, 21, 1), 64, (2, 4, 8, 16), 0.2),
    ("small", (2, 4, 32, 2), 64, (2, 4, 8, 16), 0.4),
    ("base", (2, 4, 32, 2), 96, (4, 8, 16, 32), 0.5),
)
"""(size, blocks, first width, heads, drop path)."""


def cross_shaped(*widths: int) -> tuple[dict, ...]:
    """Returns the attention of each stage: stripes of these widths, and a global last stage."""
    stripes = tuple(dict(name="cross_shaped_window", stripe_width=width) for width in widths)
    return (*stripes, dict(name="cross_shaped_window", stripe_width=None))


_COMMON = dict(
    stem=dict(name="conv", kernel_size=7, stride=4, padding=2),
    downsample=dict(name="conv", kernel_size=3, stride=2, padding=1),
    family="cswin",
)
_STRIPES = cross_shaped(1, 2, 7)

for _size, _blocks, _width, _heads, _rate in _TABLE:
    for _name, _attention in (
        ("cswin", _STRIPES),
        ("slide_cswin", ("slide", "slide", *_STRIPES[2:])),
    ):
        registry.register(
            f"{_name}_{_size}",
            HierarchicalTransformer,
            blocks=_blocks,
            widths=tuple(_width * 2**stage for stage in range(4)),
            num_heads=_heads,
            mlp_ratios=(4, 4, 4, 4),
            attention=_attention,
            drop_path_rate=_rate,
            **_COMMON,
        )

_LAST = cross_shaped()[-1]
register_digits(
    {"cswin_digits": (cross_shaped(2)[0], _LAST), "slide_cswin_digits": ("slide", _LAST)}, _COMMON
)
