"""ResNet-RS 50 to 420, with and without squeeze-excite: base and baseline of the LambdaResNets.

Source: Bello et al. 2021, "Revisiting ResNets: Improved Training and Scaling Strategies".
"""

from __future__ import annotations

from ..registration import registry
from .resnet import ResNet

BLOCKS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}
"""Blocks per stage by depth."""

for _depth, _blocks in BLOCKS.items():
    _options = dict(blocks=_blocks, stem="resnet_rs", shortcut="avg")
    _squeeze = dict(name="se", after="stage*.*", placement="standard", ratio=4)
    registry.register(f"resnet_rs{_depth}_nose", ResNet, **_options)
    registry.register(f"resnet_rs{_depth}", ResNet, **_options, context=_squeeze)
