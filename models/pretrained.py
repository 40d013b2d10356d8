"""Public weights by model: where they are, how their pictures are prepared, what they are said to
reach.

    python -m models --pretrained

One table, `TABLE`. Facts about timm's weights are those of its default configurations; its numbers
are those of its file results/results-imagenet.csv, which evaluates at the size and with the crop
given here. Of everything else the page that each number was read from is named. A number that no
source was found for is left out. The repositories have not been read from here: what is tested is
that timm's networks with random weights, served by a hub on this machine, give the same logits, and
that pictures are prepared as timm does.

Repositories of the hub are read by `create_model(NAME, pretrained=True)`; what stands under another
address has to be fetched by hand, and the file named in its place (files of before PyTorch 1.6 have
to be saved anew, as the message says that refuses them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lambdanet.registry import suggest

from .registration import registry

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, per channel, of images scaled to [0, 1]."""

TIMM = "timm, results/results-imagenet.csv"
NAT = "SHI-Labs/Neighborhood-Attention-Transformer, NAT.md"
_TORCHVISION = "https://download.pytorch.org/models"
_MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5"
_MMDET = "https://download.openmmlab.com/mmdetection/v2.0"
_NAT = "https://shi-labs.com/projects/nat/checkpoints"


@dataclass(frozen=True)
class Pretrained:
    """Public weights of a model.

    Attributes:
        source: 'hf:OWNER/NAME' of a repository of the hub, or the address of a file.
        image_size: (height, width) at which they were evaluated.
        data: what they were trained and evaluated on.
        crop: side of the picture over the side that it is resized to before it is cropped.
        interpolation: 'bilinear' | 'bicubic'.
        metric: what `value` is: a metric of the model's task, see `lambdanet.tasks`.
        value: as published, in [0, 1]; None where no source was found.
        cited: where `value` was read.
        mean, std: of the normalisation, per channel, of images scaled to [0, 1].
    """

    source: str
    image_size: tuple[int, int]
    data: str = "ImageNet-1k"
    crop: float = 1.0
    interpolation: str = "bilinear"
    metric: str = "accuracy"
    value: float | None = None
    cited: str = ""
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @property
    def on_hub(self) -> bool:
        """Whether `source` can be read as it is."""
        return self.source.startswith("hf:")


def _timm(name: str, side: int, crop: float, top1: float) -> Pretrained:
    """Weights of timm's repositories, all of which are for bicubic pictures; `top1` in per cent."""
    return Pretrained(
        f"hf:timm/{name}",
        (side, side),
        crop=crop,
        interpolation="bicubic",
        value=round(top1 / 100, 5),
        cited=TIMM,
    )


def _pvt(name: str, top1: float) -> Pretrained:
    """Weights of the authors of PVT."""
    return Pretrained(
        f"https://github.com/whai362/PVT/releases/download/v2/{name}.pth",
        (224, 224),
        crop=0.875,
        interpolation="bicubic",
        value=round(top1 / 100, 5),
        cited="whai362/PVT, classification/README.md",
    )


def _page(folder: str) -> str:
    """Where mmsegmentation publishes the numbers of a folder of configurations."""
    return f"mmsegmentation, configs/{folder}/README.md"


def _ade20k(source: str, cited: str, mean_iou: float) -> Pretrained:
    """Weights of mmsegmentation, those on the hub converted for transformers, and of authors."""
    return Pretrained(
        source,
        (512, 512),
        data="ADE20K",
        metric="mean_iou",
        value=round(mean_iou / 100, 5),
        cited=cited,
    )


def _cityscapes(config: str, made: str, mean_iou: float) -> Pretrained:
    """Weights of mmsegmentation's non-local networks, evaluated in sliding windows."""
    return Pretrained(
        f"{_MMSEG}/nonlocal_net/{config}/{config}_{made}.pth",
        (769, 769),
        data="Cityscapes",
        metric="mean_iou",
        value=round(mean_iou / 100, 5),
        cited=_page("nonlocal_net"),
    )


def _coco(source: str, box_ap: float, cited: str) -> Pretrained:
    """Weights of detectors of torchvision, mmdetection and authors."""
    return Pretrained(
        source,
        (800, 1344),
        data="COCO 2017",
        metric="box_ap",
        value=round(box_ap / 100, 5),
        cited=cited,
    )


def _kinetics(name: str, top1: float) -> Pretrained:
    """Weights of pytorchvideo; `top1` of 30 views."""
    return Pretrained(
        f"https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/{name}.pyth",
        (256, 256),
        data="Kinetics-400",
        value=round(top1 / 100, 5),
        cited="pytorchvideo, docs/source/model_zoo.md",
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
    )


TABLE: dict[str, Pretrained] = {
    "lambda_resnet26t": _timm("lambda_resnet26t.c1_in1k", 256, 0.94, 79.088),
    "lambda_resnet26rpt_256": _timm("lambda_resnet26rpt_256.c1_in1k", 256, 0.94, 78.968),
    "lambda_resnet50ts": _timm("lambda_resnet50ts.a1h_in1k", 256, 0.95, 81.156),
    "resnet18": _timm("resnet18.a1_in1k", 288, 1.0, 73.158),
    "resnet34": _timm("resnet34.a1_in1k", 288, 1.0, 77.918),
    "resnet50": _timm("resnet50.a1_in1k", 288, 1.0, 81.214),
    "resnet101": _timm("resnet101.a1h_in1k", 288, 1.0, 82.778),
    "resnet152": _timm("resnet152.a1h_in1k", 288, 1.0, 83.450),
    "resnet_rs50": _timm("resnetrs50.tf_in1k", 224, 0.91, 79.896),
    "resnet_rs101": _timm("resnetrs101.tf_in1k", 288, 0.94, 82.284),
    "resnet_rs152": _timm("resnetrs152.tf_in1k", 320, 1.0, 83.702),
    "resnet_rs200": _timm("resnetrs200.tf_in1k", 320, 1.0, 84.444),
    "resnet_rs270": _timm("resnetrs270.tf_in1k", 352, 1.0, 84.428),
    "resnet_rs350": _timm("resnetrs350.tf_in1k", 384, 1.0, 84.714),
    "resnet_rs420": _timm("resnetrs420.tf_in1k", 416, 1.0, 85.006),
    "se_resnet50": _timm("seresnet50.ra2_in1k", 288, 0.95, 81.284),
    "swin_tiny": _timm("swin_tiny_patch4_window7_224.ms_in1k", 224, 0.9, 81.376),
    "swin_small": _timm("swin_small_patch4_window7_224.ms_in1k", 224, 0.9, 83.208),
    "swin_base": _timm("swin_base_patch4_window7_224.ms_in1k", 224, 0.9, 83.606),
    "pvt_v2_b0": _timm("pvt_v2_b0.in1k", 224, 0.9, 70.660),
    "pvt_v2_b1": _timm("pvt_v2_b1.in1k", 224, 0.9, 78.702),
    "pvt_v2_b2": _timm("pvt_v2_b2.in1k", 224, 0.9, 82.086),
    "pvt_v2_b2_li": _timm("pvt_v2_b2_li.in1k", 224, 0.9, 82.194),
    "pvt_v2_b3": _timm("pvt_v2_b3.in1k", 224, 0.9, 83.120),
    "pvt_v2_b4": _timm("pvt_v2_b4.in1k", 224, 0.9, 83.710),
    "pvt_v2_b5": _timm("pvt_v2_b5.in1k", 224, 0.9, 83.742),
    "pvt_tiny": _pvt("pvt_tiny", 75.1),
    "pvt_small": _pvt("pvt_small", 79.8),
    "pvt_medium": _pvt("pvt_medium", 81.2),
    "pvt_large": _pvt("pvt_large", 81.7),
    "upernet_swin_tiny": _ade20k("hf:openmmlab/upernet-swin-tiny", _page("swin"), 44.41),
    "upernet_swin_small": _ade20k("hf:openmmlab/upernet-swin-small", _page("swin"), 47.72),
    "upernet_swin_base": _ade20k(
        f"{_MMSEG}/swin/upernet_swin_base_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K/"
        "upernet_swin_base_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210526_192340"
        "-b786336e.pth",
        _page("swin"),
        47.99,
    ),
    "upernet_resnet50": _ade20k(
        f"{_MMSEG}/upernet/upernet_r50_512x512_160k_ade20k/"
        "upernet_r50_512x512_160k_ade20k_20200615_184328-8534de8d.pth",
        _page("upernet"),
        42.05,
    ),
    "upernet_resnet101": _ade20k(
        f"{_MMSEG}/upernet/upernet_r101_512x512_160k_ade20k/"
        "upernet_r101_512x512_160k_ade20k_20200615_161951-91b32684.pth",
        _page("upernet"),
        43.82,
    ),
    "semantic_fpn_resnet50": _ade20k(
        f"{_MMSEG}/sem_fpn/fpn_r50_512x512_160k_ade20k/"
        "fpn_r50_512x512_160k_ade20k_20200718_131734-5b5a6ab9.pth",
        _page("sem_fpn"),
        37.49,
    ),
    "semantic_fpn_resnet101": _ade20k(
        f"{_MMSEG}/sem_fpn/fpn_r101_512x512_160k_ade20k/"
        "fpn_r101_512x512_160k_ade20k_20200718_131734-306b5004.pth",
        _page("sem_fpn"),
        39.35,
    ),
    **{
        f"upernet_cswin_{size}": _ade20k(
            "https://github.com/microsoft/CSWin-Transformer/releases/download/v0.2.0/"
            f"upernet_cswin_{size}.pth",
            "microsoft/CSWin-Transformer, segmentation/README.md",
            mean_iou,
        )
        for size, mean_iou in (("tiny", 49.3), ("small", 50.4), ("base", 51.1))
    },
    **{
        f"upernet_nat_{size}": _ade20k(f"{_NAT}/SEG/nat_{size}_upernet.pth", NAT, mean_iou)
        for size, mean_iou in (("mini", 45.1), ("tiny", 47.1), ("small", 48.0), ("base", 48.5))
    },
    "nonlocal_resnet50": _cityscapes(
        "nonlocal_r50-d8_769x769_80k_cityscapes", "20200607_193506-1f9792f6", 79.05
    ),
    "nonlocal_resnet101": _cityscapes(
        "nonlocal_r101-d8_769x769_80k_cityscapes", "20200607_183428-0e1fa4f9", 79.40
    ),
    "fcn_resnet50": Pretrained(
        f"{_TORCHVISION}/fcn_resnet50_coco-1167a1af.pth",
        (520, 520),
        data="COCO with the classes of Pascal VOC",
        metric="mean_iou",
        value=0.605,
        cited="torchvision, FCN_ResNet50_Weights",
    ),
    "fcn_resnet101": Pretrained(
        f"{_TORCHVISION}/fcn_resnet101_coco-7ecb50ca.pth",
        (520, 520),
        data="COCO with the classes of Pascal VOC",
        metric="mean_iou",
        value=0.637,
        cited="torchvision, FCN_ResNet101_Weights",
    ),
    "retinanet_resnet50_torchvision": _coco(
        f"{_TORCHVISION}/retinanet_resnet50_fpn_coco-eeacb38b.pth",
        36.4,
        "torchvision, RetinaNet_ResNet50_FPN_Weights",
    ),
    "faster_rcnn_resnet50_torchvision": _coco(
        f"{_TORCHVISION}/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        37.0,
        "torchvision, FasterRCNN_ResNet50_FPN_Weights",
    ),
    "mask_rcnn_resnet50_torchvision": _coco(
        f"{_TORCHVISION}/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        37.9,
        "torchvision, MaskRCNN_ResNet50_FPN_Weights",
    ),
    "retinanet_resnet50_mmdet": _coco(
        f"{_MMDET}/retinanet/retinanet_r50_fpn_1x_coco/"
        "retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth",
        36.5,
        "mmdetection, configs/retinanet/README.md",
    ),
    "retinanet_resnet101": _coco(
        f"{_MMDET}/retinanet/retinanet_r101_fpn_1x_coco/"
        "retinanet_r101_fpn_1x_coco_20200130-7a93545f.pth",
        38.5,
        "mmdetection, configs/retinanet/README.md",
    ),
    "faster_rcnn_resnet50_mmdet": _coco(
        f"{_MMDET}/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/"
        "faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth",
        37.4,
        "mmdetection, configs/faster_rcnn/README.md",
    ),
    "mask_rcnn_resnet50_mmdet": _coco(
        f"{_MMDET}/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/"
        "mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth",
        38.2,
        "mmdetection, configs/mask_rcnn/README.md",
    ),
    "mask_rcnn_resnet101": _coco(
        f"{_MMDET}/mask_rcnn/mask_rcnn_r101_fpn_1x_coco/"
        "mask_rcnn_r101_fpn_1x_coco_20200204-1efe0ed5.pth",
        40.0,
        "mmdetection, configs/mask_rcnn/README.md",
    ),
    "mask_rcnn_swin_tiny": _coco(
        f"{_MMDET}/swin/mask_rcnn_swin-t-p4-w7_fpn_1x_coco/"
        "mask_rcnn_swin-t-p4-w7_fpn_1x_coco_20210902_120937-9d6b7cfa.pth",
        42.7,
        "mmdetection, configs/swin/README.md",
    ),
    "mask_rcnn_swin_small": _coco(
        f"{_MMDET}/swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco/"
        "mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth",
        48.2,
        "mmdetection, configs/swin/README.md",
    ),
    **{
        f"mask_rcnn_nat_{size}": _coco(f"{_NAT}/DET/nat_{size}_maskrcnn.pth", box_ap, NAT)
        for size, box_ap in (("mini", 46.5), ("tiny", 47.7), ("small", 48.4))
    },
    "c2d_resnet50_8x8": _kinetics("C2D_8x8_R50", 71.46),
    "i3d_resnet50_8x8": _kinetics("I3D_8x8_R50", 73.27),
    "slow_resnet50": _kinetics("SLOW_8x8_R50", 74.58),
}
"""Our name -> its public weights."""


def lookup(name: str) -> Pretrained:
    """Returns the public weights of a model.

    Raises:
        ValueError: unknown model, with the nearest; a model that none are known of.
    """
    registry.lookup(name)
    if name not in TABLE:
        raise ValueError(
            f"no public weights are known of model {name!r}.{suggest(name, list(TABLE))} `python "
            "-m models --pretrained` lists those that are; name a file, a folder or "
            "'hf:OWNER/NAME' otherwise"
        )
    return TABLE[name]


def source_of(name: str) -> str:
    """Returns the repository that the public weights of a model are read from, 'hf:OWNER/NAME'.

    Raises:
        ValueError: as `lookup`; weights that are not on the hub, with their address.
    """
    found = lookup(name)
    if not found.on_hub:
        raise ValueError(
            f"the public weights of model {name!r} are not on the hub; fetch {found.source} and "
            "name the file"
        )
    return found.source


SAME_ARRAYS = {
    *("name", "output_stride", "first_dilation", "multi_grid", "drop_path_rate", "output_norm")
}
"""Options of a backbone with which public weights of its name fit, but for norms on its outputs."""


def for_backbone(model: Any) -> str:
    """Returns the repository whose weights fit the backbone of a network, 'hf:OWNER/NAME'; '' where
    none is known, or the network has no backbone.

    Args:
        model: the section of a config, right or wrong: `name`, perhaps `backbone`.
    """
    try:
        preset = registry.lookup(model["name"])[1]
        spec = model.get("backbone", preset.get("backbone", ""))
        spec = {"name": spec} if isinstance(spec, str) else dict(spec)
        found = TABLE.get(spec.get("name"))
    except (ValueError, KeyError, TypeError, AttributeError):  # which other checks say
        return ""
    return found.source if found and found.on_hub and SAME_ARRAYS >= set(spec) else ""


def normalisation(source: str) -> dict[str, tuple[float, ...]]:
    """Returns `mean` and `std` of the pictures of a source of public weights, 'hf:OWNER/NAME'; {}
    for one that is not in the table.
    """
    named = source.partition("@")[0]
    for found in TABLE.values():
        if found.on_hub and (named == found.source or named.startswith(f"{found.source}/")):
            return {"mean": found.mean, "std": found.std}
    return {}


def preprocessing(name: str) -> dict[str, Any]:
    """Returns how pictures are prepared for the public weights of a model: values of the config's
    section `data`, by key.

    Raises:
        ValueError: as `lookup`.
    """
    found = lookup(name)
    return {
        "image_size": found.image_size,
        "channels": len(found.mean),
        "mean": found.mean,
        "std": found.std,
        "eval_crop": found.crop,
        "eval_keep_aspect": True,
        "interpolation": found.interpolation,
    }
