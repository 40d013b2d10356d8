"""Name tables of PyTorch ResNets: what their checkpoints call the parameters of
`models.resnet.ResNet`.
"""

from __future__ import annotations

from lambdanet.attention import cbam, lambda_layer, se
from lambdanet.interop.names import BATCH_NORM, CONV, LINEAR, Rule, prefixed


def _conv_norm(conv: str, norm: str, path: str) -> tuple[Rule, ...]:
    """A convolution and its batch norm, whose PyTorch names (regular expressions) have the same
    groups.
    """
    return (
        *prefixed(CONV, conv + r"\.", f"{path}/conv"),
        *prefixed(BATCH_NORM, norm + r"\.", f"{path}/norm"),
    )


def _byobnet() -> tuple[Rule, ...]:
    """timm's byobnet grammar, that of lambda_resnet26t, lambda_resnet26rpt_256 and
    lambda_resnet50ts.
    """
    block, ours = r"stages\.(\d+)\.(\d+)\.", r"stages/\1/blocks/\2"
    rules = list(_conv_norm(r"stem\.conv(\d)\.conv", r"stem\.conv(\d)\.bn", r"stem/conv\1"))
    for theirs, name in (
        ("conv1_1x1", "conv1"),
        ("conv2_kxk", "conv2"),
        ("conv3_1x1", "conv3"),
        ("shortcut", "shortcut"),
    ):
        rules += _conv_norm(rf"{block}{theirs}\.conv", rf"{block}{theirs}\.bn", f"{ours}/{name}")
    rules += prefixed(lambda_layer.TORCH_NAMES, rf"{block}self_attn\.", f"{ours}/attention")
    rules += prefixed(BATCH_NORM, rf"{block}post_attn\.", f"{ours}/norm_attention")
    return (*rules, *prefixed(LINEAR, r"head\.fc\.", "head/fc"))


def _resnet(stem: tuple[tuple[str, str, str], ...], shortcut: tuple[str, str]) -> tuple[Rule, ...]:
    """The grammar of torchvision's ResNet, which timm's ResNet and SE-ResNet and the authors' CBAM
    networks follow.

    Args:
        stem: (their convolution, their norm, our name) of every stem convolution.
        shortcut: positions of convolution and norm in `downsample`.
    """
    rules = []
    for conv, norm, name in stem:
        rules += _conv_norm(conv, norm, f"stem/{name}")
    for stage in range(1, 5):
        block, ours = rf"layer{stage}\.(\d+)\.", rf"stages/{stage - 1}/blocks/\1"
        for number in (1, 2, 3):
            rules += _conv_norm(
                rf"{block}conv{number}", rf"{block}bn{number}", f"{ours}/conv{number}"
            )
        conv, norm = shortcut
        rules += _conv_norm(
            rf"{block}downsample\.{conv}", rf"{block}downsample\.{norm}", f"{ours}/shortcut"
        )
        for gate, names in (("se", se.TORCH_NAMES), ("cbam", cbam.TORCH_NAMES)):
            rules += prefixed(names, rf"{block}{gate}\.", f"{ours}/context/standard/0")
    return (*rules, *prefixed(LINEAR, r"fc\.", "head/fc"))


TORCH_NAMES: dict[tuple[str, str], dict[str, tuple[Rule, ...]]] = {
    ("tiered", "conv"): {"timm": _byobnet()},
    ("resnet", "conv"): {"torchvision": _resnet(((r"conv1", r"bn1", "conv1"),), ("0", "1"))},
    # mmsegmentation's ResNetV1c, of which its segmenters are made
    ("resnet_c", "conv"): {
        "mmseg": _resnet(
            tuple((rf"stem\.{3 * i}", rf"stem\.{3 * i + 1}", f"conv{i + 1}") for i in range(3)),
            ("0", "1"),
        )
    },
    # CCNet's network, and others that follow PSPNet's
    ("deep", "conv"): {
        "ccnet": _resnet(tuple((f"conv{i}", f"bn{i}", f"conv{i}") for i in range(1, 4)), ("0", "1"))
    },
    # timm's resnetrs: the strided convolution that replaces the max-pool is called maxpool.
    ("resnet_rs", "avg"): {
        "timm": _resnet(
            (
                (r"conv1\.0", r"conv1\.1", "conv1"),
                (r"conv1\.3", r"conv1\.4", "conv2"),
                (r"conv1\.6", r"bn1", "conv3"),
                (r"maxpool\.0", r"maxpool\.1", "conv4"),
            ),
            ("1", "2"),
        )
    },
}
"""Name tables by (stem, shortcut) and grammar: timm's byobnet, torchvision's ResNet, timm's
ResNet-RS.
"""
