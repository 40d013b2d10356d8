"""Parameter counts of every detector by name, and the names of small ones."""

import functools

import jax
import pytest
from covering import part
from flax import nnx

import models
from models.detection import RCNN, RetinaNet

# torchvision gives 34,068,119, 41,808,406 and 44,454,513 for its own. mmdetection and the papers
# give 38 (RetinaNet) and 44 million (Mask R-CNN) for ResNet-50, 48 and 69 for Mask R-CNN on Swin-T
# and Swin-S, 23, 34 and 54 (RetinaNet) for PVT-Tiny, -Small and -Medium, 13 to 92 for PVTv2's.
COUNTS = {
    "faster_rcnn": 41753056,
    "faster_rcnn_resnet50_mmdet": 41753056,
    "faster_rcnn_resnet50_torchvision": 41808406,
    "mask_rcnn": 44396336,
    "mask_rcnn_lambda_resnet101": 55706224,
    "mask_rcnn_lambda_resnet50": 37802576,
    "mask_rcnn_nat_base": 109143228,
    "mask_rcnn_nat_mini": 39623094,
    "mask_rcnn_nat_small": 70249545,
    "mask_rcnn_nat_tiny": 47540502,
    "mask_rcnn_pvt_large": 81021680,
    "mask_rcnn_pvt_medium": 63860464,
    "mask_rcnn_pvt_small": 44138224,
    "mask_rcnn_pvt_tiny": 32881648,
    "mask_rcnn_pvt_v2_b0": 23446096,
    "mask_rcnn_pvt_v2_b1": 33663408,
    "mask_rcnn_pvt_v2_b2": 45017264,
    "mask_rcnn_pvt_v2_b3": 64893104,
    "mask_rcnn_pvt_v2_b4": 82210480,
    "mask_rcnn_pvt_v2_b5": 101610416,
    "mask_rcnn_resnet101": 63388464,
    "mask_rcnn_resnet50_mmdet": 44396336,
    "mask_rcnn_resnet50_torchvision": 44454513,
    "mask_rcnn_slide_pvt_large": 78204315,
    "mask_rcnn_slide_pvt_medium": 62067795,
    "mask_rcnn_slide_pvt_small": 42345555,
    "mask_rcnn_slide_pvt_tiny": 31857318,
    "mask_rcnn_slide_swin_small": 69122298,
    "mask_rcnn_slide_swin_tiny": 47804394,
    "mask_rcnn_swin_small": 69112506,
    "mask_rcnn_swin_tiny": 47794602,
    "retinanet": 37968692,
    "retinanet_lambda_resnet101": 49278580,
    "retinanet_lambda_resnet50": 31374932,
    "retinanet_nat_base": 100389056,
    "retinanet_nat_mini": 29705658,
    "retinanet_nat_small": 60913741,
    "retinanet_nat_tiny": 37623066,
    "retinanet_pvt_large": 71104244,
    "retinanet_pvt_medium": 53943028,
    "retinanet_pvt_small": 34220788,
    "retinanet_pvt_tiny": 22964212,
    "retinanet_pvt_v2_b0": 12947028,
    "retinanet_pvt_v2_b1": 23745972,
    "retinanet_pvt_v2_b2": 35099828,
    "retinanet_pvt_v2_b3": 54975668,
    "retinanet_pvt_v2_b4": 72293044,
    "retinanet_pvt_v2_b5": 91692980,
    "retinanet_resnet101": 56960820,
    "retinanet_resnet50_mmdet": 37968692,
    "retinanet_resnet50_torchvision": 34068119,
    "retinanet_slide_pvt_large": 68286879,
    "retinanet_slide_pvt_medium": 52150359,
    "retinanet_slide_pvt_small": 32428119,
    "retinanet_slide_pvt_tiny": 21939882,
    "retinanet_slide_swin_small": 59786494,
    "retinanet_slide_swin_tiny": 38468590,
    "retinanet_swin_small": 59776702,
    "retinanet_swin_tiny": 38458798,
    "small_faster_rcnn": 1192833,
    "small_mask_rcnn": 1225131,
    "small_retinanet": 999684,
    "small_faster_rcnn_lambda": 884761,
    "small_mask_rcnn_lambda": 917059,
    "small_retinanet_lambda": 691612,
    "small_faster_rcnn_slide": 1017957,
    "small_mask_rcnn_slide": 1050255,
    "small_retinanet_slide": 824808,
}

# Every detector and convention once, and backbones of several kinds; tests/models has the counts of
# the others.
COVERING = (
    *("faster_rcnn", "faster_rcnn_resnet50_torchvision", "mask_rcnn", "mask_rcnn_pvt_small"),
    *("mask_rcnn_slide_swin_tiny", "retinanet", "retinanet_lambda_resnet50"),
    *("retinanet_pvt_v2_b0", "retinanet_resnet50_torchvision", "retinanet_slide_pvt_tiny"),
    *("small_faster_rcnn", "small_mask_rcnn", "small_retinanet"),
)


@functools.cache
def abstract(name):
    return nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0)))


def count(name):
    leaves = jax.tree.leaves(nnx.state(abstract(name), nnx.Param))
    return sum(leaf.size for leaf in leaves)


def test_every_detector_is_counted():
    kinds = RCNN, RetinaNet  # that of videos is in tests/models/video
    own = {name for name in models.list_models() if models.registry.lookup(name)[0] in kinds}
    assert own == set(COUNTS)


@pytest.mark.parametrize("name", part(COUNTS, COVERING))
def test_counts(name):
    assert count(name) == COUNTS[name]


def test_published_totals():
    """dense.md, section 11, to the digit given."""
    assert round(COUNTS["retinanet_resnet50_mmdet"] / 1e6, 2) == 37.97
    assert round(COUNTS["mask_rcnn_resnet50_mmdet"] / 1e6, 2) == 44.40
    assert COUNTS["retinanet_resnet50_torchvision"] == 34_068_119
    assert COUNTS["faster_rcnn_resnet50_torchvision"] == 41_808_406
    assert COUNTS["mask_rcnn_resnet50_torchvision"] == 44_454_513
    # P6 on P5, 80 classes
    model = nnx.eval_shape(
        lambda: models.create_model("retinanet", extra="on_output", rngs=nnx.Rngs(0))
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert round(total / 1e6, 2) == 33.84


@pytest.mark.parametrize(
    ("name", "place", "millions"),
    [
        ("mask_rcnn", "neck", 3.34),
        ("mask_rcnn", "rpn", 0.594),
        ("mask_rcnn", "box_head", 14.31),
        ("mask_rcnn", "mask_head", 2.64),
        ("mask_rcnn_swin_tiny", "neck", 2.73),
        ("mask_rcnn_pvt_small", "neck", 2.62),
        ("retinanet", "neck", 8.00),
        ("retinanet", "head", 6.46),
        ("retinanet_pvt_small", "neck", 3.79),
    ],
)
def test_published_parts(name, place, millions):
    leaves = jax.tree.leaves(nnx.state(getattr(abstract(name), place), nnx.Param))
    digits = 3 if place == "rpn" else 2
    assert round(sum(leaf.size for leaf in leaves) / 1e6, digits) == millions


def test_classes():
    for name in COUNTS:
        expected = RetinaNet if "retinanet" in name else RCNN
        assert models.registry.lookup(name)[0] is expected
