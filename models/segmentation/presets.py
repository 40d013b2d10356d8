"""Published segmentation networks by name, and small ones for pictures of 96 x 96.

The options of the parts are those of the sources that the heads name; where they leave something
open, or where nobody has published a network (LaViT, the lambda networks), they follow
mmsegmentation's configurations. Classes: 19 for the networks of the Cityscapes papers, 150 (ADE20K)
for the others, 21 for torchvision's. `align_corners` is True where crops of 769 x 769 are used.

- ccnet, ocnet, isanet: ResNets with the wide three-convolution stem and output stride 8; nonlocal
  with mmsegmentation's narrow one; danet with the plain stem and dilations 4, 8, 16 in the last
  blocks, as in its released evaluation. The auxiliary head is on the third stage.
- fcn: torchvision's.
- upernet: norms on the backbone's maps where it has none of its own, an auxiliary head on the third
  stage. Swin's windows are those of its code for dense tasks: shifted also where one window covers
  the map.
- semantic_fpn: no auxiliary head; PVT without its class token.
- LaViT with factored transforms, whose full ones would hold heads x N^2 numbers per layer at the
  sizes of this task.
"""

from __future__ import annotations

from typing import Any

from ..hierarchical.swin import windows
from ..registration import registry
from .segmenter import Segmenter

CITYSCAPES = dict(num_classes=19, image_size=(769, 769), align_corners=True)
ADE20K = dict(num_classes=150, image_size=(512, 512))

OFFICIAL = dict(channels=512, bias=True)
"""Of the auxiliary heads of the CCNet and OCNet code."""

LEAKY = dict(activation="leaky_relu_0.01")

OPENMM = dict(stem="deep_narrow")
"""Of mmsegmentation's ResNets."""


def _auxiliary(**options: Any) -> dict[str, Any]:
    return dict(name="fcn", stage=3, **{"channels": 256, **options})


def _dilated() -> None:
    """ResNets with output stride 8 under the heads with attention."""
    deep = dict(output_stride=8, stem="deep")
    own = dict(deep, first_dilation="own")
    heads = {
        "ccnet": (
            own,
            dict(name="criss_cross", channels=512, **LEAKY),
            _auxiliary(**OFFICIAL, **LEAKY),
        ),
        "danet": (dict(output_stride=8, multi_grid=(1, 2, 4)), dict(name="danet"), _auxiliary()),
        **{
            f"ocnet_{variant}": (
                own,
                dict(name="ocnet", variant=variant),
                _auxiliary(**OFFICIAL, **LEAKY, dropout=0.05),
            )
            for variant in ("base", "pyramid", "asp")
        },
        "isanet": (
            deep,
            dict(name="isa", block_dropout=0.05, dropout=0.0),
            _auxiliary(**OFFICIAL, dropout=0.05),
        ),
        "nonlocal": (dict(output_stride=8, **OPENMM), dict(name="nonlocal"), _auxiliary()),
    }
    for depth in ("resnet50", "resnet101"):
        for name, (backbone, head, auxiliary) in heads.items():
            parts = dict(backbone=dict(name=depth, **backbone), head=head, auxiliary=auxiliary)
            registry.register(f"{name}_{depth}", Segmenter, **parts, **CITYSCAPES)
        registry.register(
            f"fcn_{depth}",
            Segmenter,
            backbone=dict(name=depth, output_stride=8),
            head="fcn",
            auxiliary=_auxiliary(),
            num_classes=21,
            image_size=(520, 520),
        )


def _upernet() -> None:
    dense = windows(7, fit=False)
    swin = (dense,) * 4
    slide_swin = ("slide", "slide", dense, dense)
    normed = dict(output_norm=True)
    backbones: dict[str, dict[str, Any]] = {
        "resnet50": OPENMM,
        "resnet101": OPENMM,
        "lambda_resnet50": {},
    }
    for size, rate in (("tiny", 0.3), ("small", 0.3), ("base", 0.5)):
        rates = dict(drop_path_rate=rate, **normed)
        backbones[f"swin_{size}"] = dict(attention=swin, **rates)
        backbones[f"slide_swin_{size}"] = dict(attention=slide_swin, **rates)
        backbones[f"cswin_{size}"] = dict(rates)
        backbones[f"slide_cswin_{size}"] = dict(rates)
    for size in ("mini", "tiny", "small", "base"):
        backbones[f"nat_{size}"] = dict(normed)
    for size in ("tiny", "small", "base"):
        backbones[f"lavit_{size}"] = dict(transform="kron", **normed)
    for name, options in backbones.items():
        registry.register(
            f"upernet_{name}",
            Segmenter,
            backbone=dict(name=name, **options),
            head="upernet",
            auxiliary=_auxiliary(),
            **ADE20K,
        )


def _semantic_fpn() -> None:
    backbones: dict[str, dict[str, Any]] = {
        "resnet50": OPENMM,
        "resnet101": OPENMM,
        "lambda_resnet50": {},
    }
    for size in ("tiny", "small", "medium", "large"):
        backbones[f"pvt_{size}"] = backbones[f"slide_pvt_{size}"] = dict(pool="mean")
    for number in range(6):
        backbones[f"pvt_v2_b{number}"] = {}
    for size in ("mini", "tiny", "small", "base"):
        backbones[f"nat_{size}"] = dict(output_norm=True)
    for size in ("tiny", "small", "base"):
        backbones[f"lavit_{size}"] = dict(transform="kron")
    for name, options in backbones.items():
        backbone = dict(name=name, **options)
        registry.register(
            f"semantic_fpn_{name}", Segmenter, backbone=backbone, head="semantic_fpn", **ADE20K
        )


def _small() -> None:
    """For 96 x 96: ResNets of basic blocks. Strokes are 2 to 8 pixels wide, so a pyramid's maps
    have 48, 24, 12 and 6 positions a side, and a single map 24. For trainings of minutes: no norm
    starts at zero, nothing is dropped, the classifiers start with larger weights, and semantic FPN
    adds up the backbone's maps themselves (under a neck, which has no norms, it learns slower).
    """
    resnet = dict(name="resnet18", stem="strided", zero_init_last=False)
    pyramid = dict(resnet, blocks=(1, 1, 2, 1), widths=(16, 48, 96, 128))
    single = dict(resnet, blocks=(1, 1, 1, 1), widths=(24, 48, 64, 64), output_stride=4)
    wide = dict(channels=64, dropout=0.0)
    heads: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "upernet": (pyramid, dict(channels=32, dropout=0.0)),
        "semantic_fpn": (pyramid, dict(neck_channels=None, channels=32, dropout=0.0)),
        "fcn": (single, wide),
        "criss_cross": (single, wide),
        "danet": (single, wide),
        "ocnet": (single, dict(channels=64, block_dropout=0.0)),
        "isa": (single, dict(wide, group_size=(4, 4))),
        "nonlocal": (single, wide),
        "lambda": (single, dict(wide, name="context", block=dict(name="lambda", scope=7))),
    }
    common = dict(classifier_std=0.15, num_classes=11, image_size=(96, 96))
    for name, (backbone, options) in heads.items():
        head = {"name": name, **options}
        registry.register(f"small_{name}", Segmenter, backbone=backbone, head=head, **common)


_dilated()
_upernet()
_semantic_fpn()
_small()
