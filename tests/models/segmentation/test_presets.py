"""Parameter counts of every segmentation network by name, and what their parts are."""

import functools

import jax
import pytest
from covering import part
from flax import nnx

import models
from models.segmentation import Segmenter

# With the auxiliary head. torchvision gives 35,322,218 and 54,314,346 for its own (fcn_*);
# mmsegmentation 60 and 81 million for UPerNet on Swin-T and Swin-S.
COUNTS = {
    "ccnet_resnet101": 71287911,
    "ccnet_resnet50": 52295783,
    "danet_resnet101": 68819470,
    "danet_resnet50": 49827342,
    "fcn_resnet101": 54314346,
    "fcn_resnet50": 35322218,
    "isanet_resnet101": 59168230,
    "isanet_resnet50": 40176102,
    "nonlocal_resnet101": 69015942,
    "nonlocal_resnet50": 50023814,
    "ocnet_asp_resnet101": 62542182,
    "ocnet_asp_resnet50": 43550054,
    "ocnet_base_resnet101": 57722854,
    "ocnet_base_resnet50": 38730726,
    "ocnet_pyramid_resnet101": 62584294,
    "ocnet_pyramid_resnet50": 43592166,
    "semantic_fpn_lambda_resnet50": 21901814,
    "semantic_fpn_lavit_base": 38122413,
    "semantic_fpn_lavit_small": 24937645,
    "semantic_fpn_lavit_tiny": 16747821,
    "semantic_fpn_nat_base": 93242466,
    "semantic_fpn_nat_mini": 23722332,
    "semantic_fpn_nat_small": 54348783,
    "semantic_fpn_nat_tiny": 31639740,
    "semantic_fpn_pvt_large": 66763670,
    "semantic_fpn_pvt_medium": 49602454,
    "semantic_fpn_pvt_small": 29880214,
    "semantic_fpn_pvt_tiny": 18623638,
    "semantic_fpn_pvt_v2_b0": 7545334,
    "semantic_fpn_pvt_v2_b1": 17762646,
    "semantic_fpn_pvt_v2_b2": 29116502,
    "semantic_fpn_pvt_v2_b3": 48992342,
    "semantic_fpn_pvt_v2_b4": 66309718,
    "semantic_fpn_pvt_v2_b5": 85709654,
    "semantic_fpn_resnet101": 47506934,
    "semantic_fpn_resnet50": 28514806,
    "semantic_fpn_slide_pvt_large": 63946305,
    "semantic_fpn_slide_pvt_medium": 47809785,
    "semantic_fpn_slide_pvt_small": 28087545,
    "semantic_fpn_slide_pvt_tiny": 17599308,
    "upernet_cswin_base": 109035692,
    "upernet_cswin_small": 64438828,
    "upernet_cswin_tiny": 52116076,
    "upernet_lambda_resnet50": 59903116,
    "upernet_lavit_base": 64345667,
    "upernet_lavit_small": 51160899,
    "upernet_lavit_tiny": 42971075,
    "upernet_nat_base": 123281144,
    "upernet_nat_mini": 49779698,
    "upernet_nat_small": 82396805,
    "upernet_nat_tiny": 57697106,
    "upernet_resnet101": 85508236,
    "upernet_resnet50": 66516108,
    "upernet_slide_cswin_base": 109040708,
    "upernet_slide_cswin_small": 64451616,
    "upernet_slide_cswin_tiny": 52122470,
    "upernet_slide_swin_base": 121288548,
    "upernet_slide_swin_small": 81269558,
    "upernet_slide_swin_tiny": 59951654,
    "upernet_swin_base": 121279716,
    "upernet_swin_small": 81259766,
    "upernet_swin_tiny": 59941862,
}
# Every head once, and one backbone of each kind; tests/models has the counts of the others.
COVERING = (
    *("ccnet_resnet50", "danet_resnet50", "fcn_resnet50", "isanet_resnet50", "nonlocal_resnet50"),
    *("ocnet_pyramid_resnet50", "semantic_fpn_lavit_tiny", "semantic_fpn_nat_mini"),
    *("semantic_fpn_pvt_v2_b0", "semantic_fpn_resnet50", "upernet_lambda_resnet50"),
    *("upernet_slide_cswin_tiny", "upernet_swin_tiny"),
)
SEGMENTERS = {n for n in models.list_models() if models.registry.lookup(n)[0] is Segmenter}
SMALL = sorted(n for n in SEGMENTERS if n.startswith("small_"))


@functools.cache
def abstract(name):
    return nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0)))


def parameters(module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize("name", part(COUNTS, COVERING))
def test_parameter_count(name):
    assert parameters(abstract(name)) == COUNTS[name]


def test_every_segmenter_is_counted():
    assert SEGMENTERS - set(COUNTS) == {"segmenter", *SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_are_for_pictures_of_96(name):
    model = abstract(name)
    assert parameters(model) < 1_200_000 and model.num_classes == 11
    pyramid = name in ("small_upernet", "small_semantic_fpn")
    sides = [48, 24, 12, 6] if pyramid else [48, 24, 24, 24]
    assert model.feature_sizes(96, 96) == [(side, side) for side in sides]
    assert model.macs(96, 96) > 0


def test_output_strides():
    for name, strides in (
        ("ccnet_resnet50", [4, 8, 8, 8]),
        ("upernet_resnet50", [4, 8, 16, 32]),
        ("upernet_swin_tiny", [4, 8, 16, 32]),
    ):
        assert [info["stride"] for info in abstract(name).feature_info] == strides


def test_multiply_adds_of_the_papers():
    """Swin-T with UPerNet at 512 x 512: mmsegmentation counts 236 GMACs with the auxiliary head,
    ours are those of evaluation without it.
    """
    model = abstract("upernet_swin_tiny")
    assert 225e9 < model.macs(512, 512) < 240e9


def test_the_lists_of_torch_names():
    for name, frameworks in (
        ("ccnet_resnet50", {"ccnet", "mmsegmentation"}),
        ("danet_resnet50", {"danet", "mmsegmentation"}),
        ("ocnet_base_resnet50", {"ocnet"}),
        ("upernet_swin_tiny", {"mmsegmentation", "transformers"}),
        ("semantic_fpn_pvt_small", {"mmsegmentation"}),
    ):
        assert set(abstract(name).torch_names) == frameworks
    assert "torchvision" in abstract("fcn_resnet50").torch_names
    with pytest.raises(ValueError, match="no PyTorch name table for stem='strided'"):
        _ = abstract("small_lambda").torch_names
