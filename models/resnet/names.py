"""Name tables of PyTorch ResNets: what their checkpoints call the parameters of
`models.resnet.ResNet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lambdanet.attention import cbam, lambda_layer, se
from lambdanet.interop.names import BATCH_NORM, CONV, LINEAR, Rule, abn_scale, prefixed


def conv_norm(conv: str, norm: str, path: str) -> tuple[Rule, ...]:
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
    rules = list(conv_norm(r"stem\.conv(\d)\.conv", r"stem\.conv(\d)\.bn", r"stem/conv\1"))
    for theirs, name in (
        ("conv1_1x1", "conv1"),
        ("conv2_kxk", "conv2"),
        ("conv3_1x1", "conv3"),
        ("shortcut", "shortcut"),
    ):
        rules += conv_norm(rf"{block}{theirs}\.conv", rf"{block}{theirs}\.bn", f"{ours}/{name}")
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
        rules += conv_norm(conv, norm, f"stem/{name}")
    for stage in range(1, 5):
        block, ours = rf"layer{stage}\.(\d+)\.", rf"stages/{stage - 1}/blocks/\1"
        for number in (1, 2, 3):
            rules += conv_norm(
                rf"{block}conv{number}", rf"{block}bn{number}", f"{ours}/conv{number}"
            )
        conv, norm = shortcut
        rules += conv_norm(
            rf"{block}downsample\.{conv}", rf"{block}downsample\.{norm}", f"{ours}/shortcut"
        )
        for gate, names in (("se", se.TORCH_NAMES), ("cbam", cbam.TORCH_NAMES)):
            rules += prefixed(names, rf"{block}{gate}\.", f"{ours}/context/standard/0")
    return (*rules, *prefixed(LINEAR, r"fc\.", "head/fc"))


def _in_place(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The same table where all norms are InPlace-ABN."""
    return tuple(
        replace(rule, transform=abn_scale)
        if isinstance(rule.target, str) and rule.target.endswith("/norm/scale")
        else rule
        for rule in rules
    )


_SEQUENCE = (
    (r"conv1\.0", r"conv1\.1", "conv1"),
    (r"conv1\.3", r"conv1\.4", "conv2"),
    (r"conv1\.6", r"bn1", "conv3"),
)
"""Deep stems of timm and PyTorch-Encoding (DANet): one sequence, whose last norm is outside."""

_NUMBERED = tuple((rf"conv{n}", rf"bn{n}", f"conv{n}") for n in (1, 2, 3))
"""Deep stem of CCNet and OCNet."""

_STEM = tuple((rf"stem\.{3 * n}", rf"stem\.{3 * n + 1}", f"conv{n + 1}") for n in range(3))
"""Deep stem of mmsegmentation's ResNetV1c and ResNetV1d."""

TORCH_NAMES: dict[tuple[str, str], dict[str, tuple[Rule, ...]]] = {
    ("tiered", "conv"): {"timm": _byobnet()},
    ("resnet", "conv"): {"torchvision": _resnet(((r"conv1", r"bn1", "conv1"),), ("0", "1"))},
    ("deep", "conv"): {
        "timm": _resnet(_SEQUENCE, ("0", "1")),
        "official": _in_place(_resnet(_NUMBERED, ("0", "1"))),
        "mmseg": _resnet(_STEM, ("0", "1")),
    },
    ("deep_narrow", "conv"): {
        "timm": _resnet(_SEQUENCE, ("0", "1")),
        "mmseg": _resnet(_STEM, ("0", "1")),
    },
    ("deep_narrow", "avg"): {
        "timm": _resnet(_SEQUENCE, ("1", "2")),
        "mmseg": _resnet(_STEM, ("1", "2")),
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
"""Name tables by (stem, shortcut) and grammar: timm's byobnet, ResNet and ResNet-RS; torchvision's
ResNet; CCNet's and OCNet's (official); mmsegmentation's. In the official files the norms are
InPlace-ABN, which scales by |weight| + 1e-5: see `lambdanet.interop.names.abn_scale`.
"""


def tables(stem: str, shortcut: str) -> Mapping[str, tuple[Rule, ...]]:
    """Returns the tables of a network with this stem and shortcut.

    Raises:
        ValueError: no PyTorch network with this stem and shortcut is known.
    """
    if (stem, shortcut) not in TORCH_NAMES:
        known = ", ".join(f"stem={one!r} with shortcut={other!r}" for one, other in TORCH_NAMES)
        raise ValueError(
            f"no PyTorch name table for stem={stem!r} with shortcut={shortcut!r}; there is one "
            f"for {known}"
        )
    return TORCH_NAMES[stem, shortcut]
