"""C2D and I3D by name, and the video networks of the papers that insert context blocks: one table.

Sources: Wang et al. 2018, "Non-local Neural Networks" (C2D and I3D, tables 1 and 2; blocks as in
`models.resnet.context_resnet`, five in ResNet-101 as in the authors' code: after every seventh
block of res4); Yue et al. 2018, "Compact Generalized Non-local Network"; Chen et al. 2018,
"A^2-Nets" (places and ratio as in `a2_resnet50`; the paper's own are not known). Names with `_8x8`
are for clips of 8 frames, one in 8: the authors' released models and pytorchvideo's c2d_r50 and
i3d_r50.
slow_resnet50 is pytorchvideo's slow_r50 (Feichtenhofer et al. 2019, "SlowFast Networks").
"""

from __future__ import annotations

from typing import Any

from ..registration import registry
from .video_resnet import VideoResNet

_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_SPARSE = dict(frames=8, stem_frame_stride=1, pooling="sparse")
_I3D = dict(stem_frames=5, inflation="3x1x1")
_BEFORE_LAST = {50: "stage3.5", 101: "stage3.22"}
_FIVE = {
    50: ("stage2.2", "stage2.4", "stage3.2", "stage3.4", "stage3.6"),
    101: ("stage2.2", "stage2.4", "stage3.7", "stage3.14", "stage3.21"),
}


def _with(name: str, after: str | tuple[str, ...]) -> dict[str, Any]:
    return dict(context=dict(name=name, after=after))


_TABLE: list[tuple[str, int, dict[str, Any]]] = []
for _depth in _BLOCKS:
    _TABLE += [
        (f"c2d_resnet{_depth}", _depth, {}),
        (f"i3d_resnet{_depth}", _depth, _I3D),
        (f"i3d_resnet{_depth}_3x3x3", _depth, {**_I3D, "inflation": "3x3x3"}),
        (f"nl_c2d_resnet{_depth}", _depth, _with("nonlocal", _BEFORE_LAST[_depth])),
        (f"nl5_c2d_resnet{_depth}", _depth, _with("nonlocal", _FIVE[_depth])),
        (f"nl5_i3d_resnet{_depth}", _depth, {**_I3D, **_with("nonlocal", _FIVE[_depth])}),
        (f"cgnl_c2d_resnet{_depth}", _depth, _with("cgnl", _BEFORE_LAST[_depth])),
        (f"cgnl5_c2d_resnet{_depth}", _depth, _with("cgnl", _FIVE[_depth])),
    ]
_TABLE += [
    ("c2d_resnet50_8x8", 50, _SPARSE),
    ("i3d_resnet50_8x8", 50, {**_I3D, **_SPARSE}),
    ("nl5_c2d_resnet50_8x8", 50, {**_SPARSE, **_with("nonlocal", _FIVE[50])}),
    ("nl5_i3d_resnet50_8x8", 50, {**_I3D, **_SPARSE, **_with("nonlocal", _FIVE[50])}),
    ("nl10_c2d_resnet50", 50, _with("nonlocal", "stage[23].*")),
    ("a2_c2d_resnet50_8x8", 50, {**_SPARSE, **_with("double_attention", _FIVE[50])}),
    (
        "slow_resnet50",
        50,
        dict(
            frames=8,
            stem_frame_stride=1,
            pooling="space",
            inflation="3x1x1",
            inflated_blocks=((), (), "all", "all"),
        ),
    ),
]
"""(name, depth, options beside its own)."""

for _name, _depth, _options in _TABLE:
    registry.register(_name, VideoResNet, blocks=_BLOCKS[_depth], **_options)
