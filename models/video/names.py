"""Name tables of PyTorch networks of clips: what their checkpoints call the parameters of
`models.video.VideoResNet`.
"""

from __future__ import annotations

from collections.abc import Mapping

from lambdanet.interop.names import LINEAR, Rule, prefixed

from ..resnet import names as image_names
from ..resnet.names import conv_norm


def tables(stem: str, shortcut: str, *, second_pool: bool) -> Mapping[str, tuple[Rule, ...]]:
    """Returns the tables by grammar.

    Args:
        stem: of the network.
        shortcut: of the network.
        second_pool: whether there is a pooling before the second stage, which pytorchvideo counts
            among its blocks.

    Raises:
        ValueError: no PyTorch network with this stem and shortcut is known.
    """
    found = image_names.tables(stem, shortcut)
    if (stem, shortcut) == ("resnet", "conv"):
        return {"pytorchvideo": _pytorchvideo(second_pool), **found}
    return found


def _pytorchvideo(second_pool: bool) -> tuple[Rule, ...]:
    """The grammar of pytorchvideo's `create_resnet`: c2d_r50, i3d_r50 and slow_r50."""
    rules = list(conv_norm(r"blocks\.0\.conv", r"blocks\.0\.norm", "stem/conv1"))
    for stage in range(4):
        number = stage + 1 + (second_pool and stage > 0)
        block, ours = rf"blocks\.{number}\.res_blocks\.(\d+)\.", rf"stages/{stage}/blocks/\1"
        for letter, name in (("a", "conv1"), ("b", "conv2"), ("c", "conv3")):
            branch = rf"{block}branch2\."
            rules += conv_norm(
                rf"{branch}conv_{letter}", rf"{branch}norm_{letter}", f"{ours}/{name}"
            )
        rules += conv_norm(rf"{block}branch1_conv", rf"{block}branch1_norm", f"{ours}/shortcut")
    head = rf"blocks\.{5 + second_pool}\.proj\."
    return (*rules, *prefixed(LINEAR, head, "head/fc"))
