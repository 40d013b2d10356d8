"""The published sizes of the hierarchical Transformers: parameters to the integer and
multiply-accumulates.
"""

import functools

import jax
import pytest
from covering import part
from flax import nnx

import models
from lambdanet.attention import slide
from models.hierarchical import HierarchicalTransformer

COUNTS = {
    "cswin_base": 77382184,
    "cswin_small": 34643304,
    "cswin_tiny": 22320552,
    "nat_base": 89769652,
    "nat_mini": 19984174,
    "nat_small": 50743297,
    "nat_tiny": 27901582,
    "pvt_large": 61369320,
    "pvt_medium": 44208104,
    "pvt_small": 24485864,
    "pvt_tiny": 13229288,
    "pvt_v2_b0": 3666760,
    "pvt_v2_b1": 14009000,
    "pvt_v2_b2": 25362856,
    "pvt_v2_b2_li": 22553512,
    "pvt_v2_b3": 45238696,
    "pvt_v2_b4": 62556072,
    "pvt_v2_b5": 81956008,
    "slide_cswin_base": 77387200,
    "slide_cswin_small": 34656092,
    "slide_cswin_tiny": 22326946,
    "slide_nat_base": 89784788,
    "slide_nat_mini": 20002830,
    "slide_nat_small": 50760193,
    "slide_nat_tiny": 27920238,
    "slide_pvt_large": 58551955,
    "slide_pvt_medium": 42415435,
    "slide_pvt_small": 22693195,
    "slide_pvt_tiny": 12204958,
    "slide_pvt_v2_b0": 3416766,
    "slide_pvt_v2_b1": 12984670,
    "slide_pvt_v2_b2": 23570187,
    "slide_pvt_v2_b3": 43446027,
    "slide_pvt_v2_b4": 59738707,
    "slide_pvt_v2_b5": 79650991,
    "slide_swin_base": 87777056,
    "slide_swin_small": 49616050,
    "slide_swin_tiny": 28298146,
    "swin_base": 87768224,
    "swin_small": 49606258,
    "swin_tiny": 28288354,
}
# The same with slide attention re-parameterised.
MERGED = {
    "slide_cswin_base": 77385904,
    "slide_cswin_small": 34654364,
    "slide_cswin_tiny": 22326082,
    "slide_nat_base": 89782772,
    "slide_nat_mini": 20000814,
    "slide_nat_small": 50758177,
    "slide_nat_tiny": 27918222,
    "slide_pvt_large": 58545619,
    "slide_pvt_medium": 42411403,
    "slide_pvt_small": 22689163,
    "slide_pvt_tiny": 12202654,
    "slide_pvt_v2_b0": 3415614,
    "slide_pvt_v2_b1": 12982366,
    "slide_pvt_v2_b2": 23566155,
    "slide_pvt_v2_b3": 43441995,
    "slide_pvt_v2_b4": 59732371,
    "slide_pvt_v2_b5": 79645807,
    "slide_swin_base": 87775904,
    "slide_swin_base_release": 87937184,
    "slide_swin_small": 49614898,
    "slide_swin_small_release": 49735858,
    "slide_swin_tiny": 28296994,
    "slide_swin_tiny_release": 28337314,
}
# Multiply-adds of the reference programs on 224x224; of NAT without neighborhood attention itself,
# which is a program of its own there; of the Slide networks in billions to three digits, after
# merging.
MACS = {
    "cswin_base": 14955348480,
    "cswin_small": 6800714752,
    "cswin_tiny": 4324203008,
    "pvt_large": 9813765632,
    "pvt_medium": 6659175424,
    "pvt_small": 3815701504,
    "pvt_tiny": 1932911616,
    "pvt_v2_b0": 566065664,
    "pvt_v2_b1": 2108355584,
    "pvt_v2_b2": 4026734592,
    "pvt_v2_b2_li": 3888850944,
    "pvt_v2_b3": 6897303552,
    "pvt_v2_b4": 10101116416,
    "pvt_v2_b5": 11717260288,
    "swin_base": 15430946816,
    "swin_small": 8740875264,
    "swin_tiny": 4490566656,
}
NAT_MACS = {
    "nat_mini": 2554671104,
    "nat_tiny": 4096077824,
    "nat_small": 7473580032,
    "nat_base": 13278797824,
}
SLIDE_GMACS = {
    "slide_nat_base": 13.842,
    "slide_nat_mini": 2.777,
    "slide_nat_small": 7.896,
    "slide_nat_tiny": 4.378,
    "slide_pvt_large": 10.056,
    "slide_pvt_medium": 6.824,
    "slide_pvt_small": 3.980,
    "slide_pvt_tiny": 2.030,
    "slide_pvt_v2_b0": 0.603,
    "slide_pvt_v2_b1": 2.205,
    "slide_pvt_v2_b2": 4.191,
    "slide_pvt_v2_b3": 7.062,
    "slide_pvt_v2_b4": 10.344,
    "slide_pvt_v2_b5": 11.921,
    "slide_swin_base": 15.530,
    "slide_swin_base_release": 16.06,
    "slide_swin_small": 8.815,
    "slide_swin_small_release": 9.21,
    "slide_swin_tiny": 4.565,
    "slide_swin_tiny_release": 4.70,
}


@functools.cache
def full_size(name):
    return nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0)))


def smallest(name):
    """One network of each family, and of each way to write it; the rest are deeper and wider."""
    sizes = ("tiny", "mini", "b0", "li", "tiny_release")
    return name.endswith(sizes) and name not in ("nat_tiny", "slide_nat_tiny")


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", part(COUNTS, smallest))
def test_parameter_count(name):
    assert parameters(full_size(name)) == COUNTS[name]


@pytest.mark.parametrize("name", part(MERGED, smallest))
def test_parameter_count_after_merging(name):
    assert parameters(nnx.eval_shape(slide.reparameterise, full_size(name))) == MERGED[name]


def test_a_merged_network_can_also_be_built():
    _, preset = models.registry.lookup("slide_nat_mini")
    merged = dict(name="slide", merged=True)
    specs = (merged, merged, *preset["attention"][2:])
    model = nnx.eval_shape(
        lambda: models.create_model("slide_nat_mini", attention=specs, rngs=nnx.Rngs(0))
    )
    assert parameters(model) == MERGED["slide_nat_mini"]


def test_every_network_of_this_class_is_counted():
    ours = {
        name
        for name in models.list_models()
        if models.registry.lookup(name)[0] is HierarchicalTransformer
    }
    assert {name for name in ours if not name.endswith("_digits")} == {*COUNTS, *MERGED}


@pytest.mark.parametrize("name", part(MACS, smallest))
def test_macs(name):
    assert full_size(name).macs(224, 224) == pytest.approx(MACS[name], rel=1e-3)


@pytest.mark.parametrize("name", part(NAT_MACS, smallest))
def test_macs_of_nat(name):
    model = full_size(name)
    shapes = [
        (56 // 2**stage, model.stage_info[stage][0], len(model.stages[stage].blocks))
        for stage in range(4)
    ]
    core = sum(blocks * 2 * 49 * side**2 * width for side, width, blocks in shapes)
    assert model.macs(224, 224) == pytest.approx(NAT_MACS[name] + core, rel=1e-3)


@pytest.mark.parametrize("name", part(SLIDE_GMACS, smallest))
def test_macs_of_slide_networks(name):
    assert full_size(name).macs(224, 224) / 1e9 == pytest.approx(SLIDE_GMACS[name], rel=1e-3)
