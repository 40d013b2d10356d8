"""Backbones for dense prediction: no classifier, normed outputs, dilation in place of strides,
images of any size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from flax import nnx

import models
from lambdanet.analysis.summary import summarise
from lambdanet.training.state import flatten_names
from models.backbone import CLASSIFIER_PARTS
from models.resnet.blocks import STEMS
from models.resnet.dilation import block_steps

FOUR = dict(
    blocks=(1, 1, 1, 2),
    widths=(8, 8, 16, 16),
    num_heads=(2, 2, 2, 4),
    mlp_ratios=(1, 1, 1, 1),
    image_size=(64, 64),
)
SMALL = {
    "resnet50": dict(blocks=(1, 1, 2, 2), widths=(4, 8, 12, 16)),
    "resnet18": dict(blocks=(1, 1, 2, 2), widths=(4, 8, 12, 16)),
    **{name: FOUR for name in ("pvt_tiny", "swin_tiny", "cswin_tiny", "nat_mini", "pvt_v2_b0")},
    **{name: FOUR for name in ("slide_swin_tiny", "slide_pvt_tiny")},
    "lavit_tiny": dict(FOUR, vanilla_blocks=(1, 1, 1, 1), resize="interpolate"),
}
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def abstract(name, **options):
    options = {**SMALL.get(name, {}), **options}
    return nnx.eval_shape(lambda: models.create_model(name, **options, rngs=nnx.Rngs(0)))


def drawn(name, **options):
    """Evaluation view; the weights depend on their paths alone."""
    model = abstract(name, **options)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        draw = np.random.default_rng(list("/".join(map(str, path)).encode()))
        value = 0.2 * draw.standard_normal(variable.shape)
        value = value + 1.0 if path[-1] in ("scale", "gamma") else value
        value = np.exp(value) if path[-1] == "var" else value
        variable.set_value(jnp.asarray(value, jnp.float32))
    return evaluation(model)


def evaluation(model):
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def features(model, x):
    graphdef, state = nnx.split(model)
    return once(lambda state, x: nnx.merge(graphdef, state).features(x))(state, x)


def paths(model):
    return set(flatten_names(nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))))


def images(*size, batch=1):
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, *size, 3)), jnp.float32)


# --------------------------------------------------------------------------------------------------
# Classifier and norms
# --------------------------------------------------------------------------------------------------


# A class token beside the map, and layers that hand their logits on.
@pytest.mark.parametrize("name", part(SMALL, ["pvt_tiny", "lavit_tiny"]))
def test_without_classifier_what_is_left_is_features(name):
    full, bare = drawn(name), drawn(name, num_classes=0)
    assert paths(bare) == {path for path in paths(full) if not CLASSIFIER_PARTS.fullmatch(path)}
    assert paths(full) - paths(bare) >= {"head/fc/kernel", "head/fc/bias"}
    x = images(64, 64)
    for ours, theirs in zip(features(bare, x), features(full, x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"has no classifier \(num_classes is 0\); use features"):
        bare(x)
    covered = [row["path"] for row in bare.summary_rows(64, 64)]
    assert all(any((p + "/").startswith(row + "/") for row in covered) for p in paths(bare))
    assert bare.macs(64, 64) == full.macs(64, 64) - sum(
        row["macs"]
        for row in full.summary_rows(64, 64)
        if CLASSIFIER_PARTS.fullmatch(row["path"] + "/")
    ) or name in ("pvt_tiny", "slide_pvt_tiny")  # whose token is in the last stage's count
    assert summarise(bare, 64, 64)


@pytest.mark.exhaustive
def test_bare_backbones_keep_the_initial_values_of_full_ones():
    build = functools.partial(models.create_model, "pvt_digits")
    full = flatten_names(nnx.to_pure_dict(nnx.state(build(rngs=nnx.Rngs(3)), nnx.Param)))
    bare = flatten_names(
        nnx.to_pure_dict(nnx.state(build(num_classes=0, rngs=nnx.Rngs(3)), nnx.Param))
    )
    for path, value in bare.items():
        np.testing.assert_array_equal(value, full[path], err_msg=path)


@pytest.mark.parametrize(
    "name", part(["swin_tiny", "cswin_tiny", "nat_mini", "pvt_tiny", "lavit_tiny"], ["lavit_tiny"])
)
def test_output_norms_are_on_the_outputs_alone(name):
    plain, normed = drawn(name), drawn(name, output_norm=True)
    assert paths(normed) - paths(plain) == {
        f"output_norms/{i}/{part}" for i in range(4) for part in ("scale", "bias")
    }
    x = images(64, 64)
    run = once(lambda m, x: (m.features(x), m(x)))
    (maps, logits), (plain_maps, plain_logits) = run(normed, x), run(plain, x)
    np.testing.assert_array_equal(logits, plain_logits)
    for ours, before, norm in zip(maps, plain_maps, normed.output_norms, strict=True):
        centred = np.float64(before) - np.float64(before).mean(-1, keepdims=True)
        expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + norm.epsilon)
        expected = expected * np.float64(norm.scale[...]) + np.float64(norm.bias[...])
        np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=1e-4)
    assert {f"output_norms/{i}" for i in range(4)} <= {
        row["path"] for row in normed.summary_rows(64, 64)
    }
    assert normed.macs(64, 64) == plain.macs(64, 64)


def test_norms_after_every_stage_need_no_output_norms():
    with pytest.raises(ValueError, match="output_norm is True; allowed: False with stage_norm"):
        abstract("pvt_v2_b0", output_norm=True)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        # torchvision's and the authors' counts less 2048 x 1000 + 1000 and the like
        ("resnet50", {}, 25_557_032 - 2_049_000),
        ("resnet101", dict(stem="deep"), 44_549_160 - 2_049_000 + 123_776),
        ("swin_tiny", dict(output_norm=True), 28_288_354 - 769_000 - 1_536 + 2_880),
        ("swin_tiny", {}, 28_288_354 - 769_000 - 1_536),
    ],
)
def test_counts_of_bare_backbones(name, options, count):
    model = nnx.eval_shape(
        lambda: models.create_model(name, num_classes=0, rngs=nnx.Rngs(0), **options)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count


# --------------------------------------------------------------------------------------------------
# Dilation
# --------------------------------------------------------------------------------------------------


def steps(output_stride, multi_grid=(1, 1, 1), first_dilation="previous"):
    stages = block_steps(
        (1, 1, 2, 4),
        stem=4,
        output_stride=output_stride,
        multi_grid=multi_grid,
        first_dilation=first_dilation,
    )
    return [[(stride, *dilations) for stride, dilations in stage] for stage in stages[2:]]


def test_steps_of_the_blocks():
    one = (1, 1, 1)
    assert steps(None) == steps(32) == steps(64) == [[(2, 1, 1), one], [(2, 1, 1), one, one, one]]
    assert steps(16) == [[(2, 1, 1), one], [(1, 1, 2), *[(1, 2, 2)] * 3]]
    assert steps(8) == [[(1, 1, 2), (1, 2, 2)], [(1, 2, 4), *[(1, 4, 4)] * 3]]
    assert steps(8, first_dilation="own") == [[(1, 2, 2)] * 2, [(1, 4, 4)] * 4]
    grid = [(1, 4, 4), (1, 8, 8), (1, 16, 16), (1, 4, 4)]
    assert steps(8, (1, 2, 4)) == [[(1, 1, 2), (1, 2, 2)], grid]
    assert steps(8, (1, 2, 4), "own") == [[(1, 2, 2)] * 2, grid]
    assert steps(None, (1, 2))[1] == [(2, 1, 1), (1, 2, 2), one, (1, 2, 2)]


@pytest.mark.parametrize(
    ("name", "output_stride"),
    part([("resnet50", 4), ("resnet50", 8), ("resnet50", 16), ("resnet18", 8)], [("resnet50", 8)]),
)
def test_a_dilated_network_holds_the_strided_one(name, output_stride):
    """Every 2nd, 4th or 8th position of its maps is the strided network's map, if the first block
    of a stage has the dilation of the stage before.
    """
    strided, dilated = drawn(name), drawn(name, output_stride=output_stride)
    x = images(75, 90)
    pairs = zip(
        features(strided, x),
        features(dilated, x),
        strided.feature_info,
        dilated.feature_info,
        strict=True,
    )
    for coarse, fine, theirs, ours in pairs:
        assert ours["stride"] == min(theirs["stride"], output_stride)
        assert fine.shape[1:3] == tuple(-(-n // ours["stride"]) for n in (75, 90))
        step = theirs["stride"] // ours["stride"]
        np.testing.assert_allclose(fine[:, ::step, ::step], coarse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    part(
        [
            dict(attention=dict(name="lambda", scope=5, key_depth=4, num_heads=2)),
            dict(attention=dict(name="bottleneck_attention", num_heads=2), pool="avg2"),
            dict(context=dict(name="nonlocal", after="stage[34].*")),
            dict(multi_grid=(1, 2, 4), first_dilation="own", stem="deep"),
            dict(shortcut="avg", stem="deep_narrow", block="basic", multi_grid=(1, 2)),
        ],
        lambda options: options.get("pool") == "avg2" or "multi_grid" in options,
    ),
)
def test_dilated_networks_run_as_their_summary_says(options):
    where = dict(attention_blocks=((), (), "all", "all")) if "attention" in options else {}
    model = drawn("resnet50", output_stride=8, image_size=(48, 40), **options, **where)
    for (h, w, _), map_ in zip(
        [(-(-48 // i["stride"]), -(-40 // i["stride"]), 0) for i in model.feature_info],
        features(model, images(48, 40)),
        strict=True,
    ):
        assert map_.shape[1:3] == (h, w) and np.isfinite(map_).all()
    assert [info["stride"] for info in model.feature_info] == [4, 8, 8, 8]
    assert summarise(model, 48, 40)
    assert model.summary_rows(48, 40)[-2]["output_shape"][:2] == (6, 5)


def test_deep_stems():
    assert abstract("resnet50", stem="deep").stem.dim_out == 8  # of widths[0] = 4
    assert abstract("resnet50", stem="deep_narrow").stem.dim_out == 4
    channels = {
        stem: [
            conv.conv.kernel.shape[3]
            for conv in (getattr(made.stem, f"conv{i + 1}") for i in range(len(STEMS[stem][0])))
        ]
        for stem in ("deep", "deep_narrow")
        for made in [
            nnx.eval_shape(lambda s=stem: models.create_model("resnet50", stem=s, rngs=nnx.Rngs(0)))
        ]
    }
    assert channels == {"deep": [64, 64, 128], "deep_narrow": [32, 32, 64]}


# --------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------


# tests/models/test_hierarchical.py has the families that are not here.
@pytest.mark.parametrize("name", part(SMALL, ["resnet50", "swin_tiny", "lavit_tiny"]))
@pytest.mark.parametrize("size", [(75, 90), pytest.param((33, 130), marks=pytest.mark.exhaustive)])
def test_features_at_odd_sizes(name, size):
    model = drawn(name, num_classes=0)
    maps = features(model, images(*size))
    assert [map_.shape[-1] for map_ in maps] == [info["channels"] for info in model.feature_info]
    assert all(np.isfinite(map_).all() for map_ in maps)
    last = [row for row in model.summary_rows(*size) if row["path"].startswith("stages/3/")][-1]
    assert last["output_shape"][:2] == maps[-1].shape[1:3]


@pytest.mark.parametrize("name", part(["pvt_tiny", "slide_pvt_tiny", "lavit_tiny"], ["pvt_tiny"]))
def test_patches_without_padding_leave_the_remainder_out(name):
    """As in PVT's code: what fills no patch of the first embedding is as if it were not there."""
    model, x = drawn(name, num_classes=0), images(75, 90)
    for ours, cut in zip(features(model, x), features(model, x[:, :72, :88]), strict=True):
        np.testing.assert_allclose(ours, cut, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", part(["swin_tiny", "slide_swin_tiny"], ["swin_tiny"]))
def test_patches_with_padding_are_those_of_the_padded_image(name):
    """As in Swin's code for dense tasks and mmsegmentation: zeros at the bottom and the right fill
    the last patches.
    """
    model, x = drawn(name, num_classes=0), images(75, 90)
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)))
    for ours, filled in zip(features(model, x), features(model, padded), strict=True):
        np.testing.assert_allclose(ours, filled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["pvt_tiny", "swin_tiny", "cswin_tiny", "nat_mini", "resnet50"])
@pytest.mark.parametrize("size", [(769, 1024)])
def test_sizes_of_segmentation(name, size):
    model = evaluation(abstract(name, num_classes=0))
    x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    maps = jax.eval_shape(lambda m, x: m.features(x), model, x)
    down = np.floor_divide if name == "pvt_tiny" else lambda n, s: -(-n // s)
    for map_, info in zip(maps, model.feature_info, strict=True):
        wanted = tuple(down(n, info["stride"]) for n in size)
        if name == "cswin_tiny":  # whose 7x7 convolution has two zeros on every side
            wanted = tuple(-(-((n - 3) // 4 + 1) // (info["stride"] // 4)) for n in size)
        assert map_.shape == (1, *wanted, info["channels"])
