"""ResNets of the papers that insert context blocks, and BoT50, whose last stage attends: one table.

Sources: Wang et al. 2018, "Non-local Neural Networks" (one block before the last of res4; five,
every other block of res3 and res4; ten, every block of both), in the form of the authors' code,
with biases; Yue et al. 2018, "Compact Generalized Non-local Network" (same place as one non-local
block); Hu et al. 2018, "Squeeze-and-Excitation Networks" (released networks; `_nobias` as in the
ablations of the journal version); Woo et al. 2018, "CBAM"; Chen et al. 2018, "A^2-Nets" (a
reconstruction: there is no code by the authors, but five blocks at the places of the five non-local
ones give the parameters and multiply-adds that are reported); Cao et al. 2019, "GCNet"; Srinivas et
al. 2021, "Bottleneck Transformers" (all 3x3 convolutions of c5, 2x2 average pooling in the strided
block).
"""

from __future__ import annotations

from typing import Any

from ..registration import registry
from .resnet import ResNet

_FIVE = ("stage2.2", "stage2.4", "stage3.2", "stage3.4", "stage3.6")
_BEFORE_LAST = {50: "stage3.5", 101: "stage3.22", 152: "stage3.35"}
_EVERY_BRANCH = dict(after="stage*.*", placement="standard")

_TABLE: list[tuple[str, str, dict[str, Any]]] = [
    ("nl_resnet50", "resnet50", dict(context=dict(name="nonlocal", after=_BEFORE_LAST[50]))),
    ("nl_resnet101", "resnet101", dict(context=dict(name="nonlocal", after=_BEFORE_LAST[101]))),
    ("nl5_resnet50", "resnet50", dict(context=dict(name="nonlocal", after=_FIVE))),
    ("nl10_resnet50", "resnet50", dict(context=dict(name="nonlocal", after="stage[23].*"))),
    *(
        (f"cgnl_resnet{d}", f"resnet{d}", dict(context=dict(name="cgnl", after=place)))
        for d, place in _BEFORE_LAST.items()
    ),
    *(
        (f"se_resnet{d}", f"resnet{d}", dict(context=dict(name="se", ratio=16, **_EVERY_BRANCH)))
        for d in (50, 101, 152)
    ),
    (
        "se_resnet50_nobias",
        "resnet50",
        dict(context=dict(name="se", ratio=16, bias=False, **_EVERY_BRANCH)),
    ),
    *(
        (f"cbam_resnet{d}", f"resnet{d}", dict(context=dict(name="cbam", **_EVERY_BRANCH)))
        for d in (18, 34, 50, 101)
    ),
    ("a2_resnet50", "resnet50", dict(context=dict(name="double_attention", after=_FIVE))),
    (
        "gc_resnet50",
        "resnet50",
        dict(context=dict(name="gc", reduction=16, after="stage[234].*", placement="standard")),
    ),
    (
        "bot_resnet50",
        "resnet50",
        dict(
            attention=dict(name="bottleneck_attention", num_heads=4),
            attention_blocks=((), (), (), "all"),
            pool="avg2",
        ),
    ),
]
"""(name, plain network, options beside its own)."""

for _name, _plain, _options in _TABLE:
    registry.register(_name, ResNet, **registry.lookup(_plain)[1], **_options)
