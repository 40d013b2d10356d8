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
address has to be fetched by hand, and the file named in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lambdanet.registry import suggest

from .registration import registry

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, per channel, of images scaled to [0, 1]."""

TIMM = "timm, results/results-imagenet.csv"


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
