"""LambdaResNets: the paper's families and ablations, timm's three variants, and a small one for
digits.

Source: Bello 2021, "LambdaNetworks: Modeling Long-Range Interactions Without Attention", table 13
and appendix E; timm's byobnet.
"""

from __future__ import annotations

from ..registration import registry
from .resnet import ResNet
from .resnet_rs import BLOCKS

HYBRID_C4_BLOCKS = {
    50: (3,),
    101: (6, 12, 18),
    152: (5, 10, 15, 20, 25, 30),
    200: (5, 10, 15, 20, 25, 30),
    270: (8, 16, 24, 32, 40, 48),
    350: (10, 20, 30, 40, 50, 60),
    420: (10, 20, 30, 40, 50, 60, 70, 80),
}
"""Blocks of c4 with a lambda layer, by depth (table 13), counted from 1; the paper does not say
where it starts.
"""

# 350-epoch family: c2, c3 convolutional with squeeze-excite; all of c5 lambda; of c4 some blocks
# (hybrid) or all ("-C4"). The paper's parameter counts hold only if no block of c4 and c5 has
# squeeze-excite, the convolutional ones included.
for _depth, _blocks in BLOCKS.items():
    for _suffix, _c4 in (("", HYBRID_C4_BLOCKS[_depth]), ("_c4", "all")):
        registry.register(
            f"lambda_resnet{_depth}{_suffix}",
            ResNet,
            blocks=_blocks,
            stem="resnet_rs",
            shortcut="avg",
            context=dict(name="se", after="stage[12].*", placement="standard", ratio=4),
            attention="lambda",
            attention_blocks=((), (), _c4, "all"),
        )

# 90-epoch ablations on the plain ResNet-50: c(onvolution) or l(ambda) in each of c2 to c5.
for _pattern in ("llll", "lccc", "llcc", "lllc", "clll", "ccll", "cccl"):
    registry.register(
        f"lambda_resnet50_{_pattern}",
        ResNet,
        blocks=BLOCKS[50],
        attention="lambda",
        attention_blocks=tuple("all" if letter == "l" else () for letter in _pattern),
    )
registry.register(
    "lambda_resnet50_llll_u4",
    ResNet,
    blocks=BLOCKS[50],
    attention=dict(name="lambda", intra_depth=4, scope=7),
)

# timm's networks (byobnet): tiered stem, 2x2 pooling, torch-style bias of the position convolution.
_TIMM = dict(stem="tiered", pool="avg2", image_size=(256, 256))
registry.register(
    "lambda_resnet26t",
    ResNet,
    blocks=(2, 2, 2, 2),
    attention=dict(name="lambda", scope=9, pos_bias=True, init="timm"),
    attention_blocks=((), (), (2,), "all"),
    **_TIMM,
)
registry.register(
    "lambda_resnet26rpt_256",
    ResNet,
    blocks=(2, 2, 2, 2),
    attention=dict(name="lambda", scope=None, init="timm"),
    attention_blocks=((), (), (2,), "all"),
    **_TIMM,
)
registry.register(
    "lambda_resnet50ts",
    ResNet,
    blocks=(3, 4, 6, 3),
    activation="silu",
    attention=dict(name="lambda", scope=9, pos_bias=True, init="timm"),
    attention_blocks=((), (4,), (2, 4, 6), (2,)),
    **_TIMM,
)

# Scope 15 reaches every position of the first stage's map of 8x8. The control is resnet_digits.
registry.register(
    "lambda_resnet_digits",
    ResNet,
    **registry.lookup("resnet_digits")[1],
    attention=dict(name="lambda", key_depth=8, num_heads=4, scope=15),
)
