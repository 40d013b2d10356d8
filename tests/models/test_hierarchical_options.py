"""Hierarchical Transformers: mixers and context by stage, options that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hierarchical_helpers import abstract, abstract_small, once, small

# Mixers and context


def kinds(model):
    return [[type(block.attention).__name__ for block in stage.blocks] for stage in model.stages]


def test_mixers_by_stage_and_in_turn():
    local = dict(name="neighborhood", kernel_size=3)
    model = abstract_small(blocks=(1, 5), attention=("mhsa", ("slide", local)))
    names = {"slide": "SlideAttention", "near": "NeighborhoodAttention"}
    assert kinds(model) == [
        ["MultiHeadSelfAttention"],
        [names["slide"], names["near"]] * 2 + [names["slide"]],
    ]
    assert model.stages[1].blocks[1].attention.kernel_size == (3, 3)
    assert {block.attention.num_heads for block in model.stages[1].blocks} == {4}
    own = abstract_small(attention=dict(name="mhsa", num_heads=8))
    assert {block.attention.num_heads for stage in own.stages for block in stage.blocks} == {8}


def test_swin_with_lambda_layers_is_one_option():
    windows = ("window", "shifted_window")
    model = abstract(
        "swin_tiny", attention=("lambda", windows, windows, "mhsa"), widths=(32, 64, 96, 128)
    )
    assert (
        kinds(model)[0] == ["LambdaLayer"] * 2 and kinds(model)[3] == ["MultiHeadSelfAttention"] * 2
    )
    shifts = [block.attention.shift_size for block in model.stages[2].blocks]
    assert shifts[0] != shifts[1] and shifts[::2] == [shifts[0]] * 3


def test_context_blocks_after_the_blocks():
    entries = (dict(name="se", after="stage2.2"), dict(name="gc", after="stage*.*"))
    model = small(context=entries)
    made = [
        [[type(c).__name__ for c in block.context] for block in stage.blocks]
        for stage in model.stages
    ]
    assert made == [[["GlobalContext"]], [["GlobalContext"], ["SqueezeExcite", "GlobalContext"]]]
    block = model.stages[1].blocks[1]

    def by_hand(block, x):
        x = x + block.attention(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
        return block.context[1](block.context[0](x))

    x = jax.random.normal(jax.random.key(1), (1, 2, 3, 16))
    np.testing.assert_allclose(*once(lambda b, x: (b(x), by_hand(b, x)), block, x), rtol=1e-4)
    assert [row["path"] for row in model.summary_rows(16, 16) if "context" in row["path"]] == [
        "stages/0/blocks/0/context/0",
        "stages/1/blocks/0/context/0",
        "stages/1/blocks/1/context/0",
        "stages/1/blocks/1/context/1",
    ]


def test_heads_are_fitted_to_other_widths():
    model = abstract("pvt_tiny", blocks=(1, 1, 1, 1), widths=(8, 16, 24, 36))
    assert [stage.blocks[0].attention.num_heads for stage in model.stages] == [1, 2, 4, 6]
    with pytest.raises(
        ValueError, match=r"num_heads is \(1, 2, 5, 8\); allowed: a tuple of 2 positive integers"
    ):
        abstract("pvt_tiny", blocks=(1, 1), widths=(8, 16))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=(2, 5)), r"num_heads\[1\] is 5; allowed: divisors of widths\[1\]=16"),
        (dict(num_heads=(2,)), r"num_heads is \(2,\); allowed: a tuple of 2 positive integers"),
        (dict(widths=[8, 16]), r"widths is \[8, 16\]; allowed: a tuple of 2"),
        (dict(blocks=()), r"blocks is \(\); allowed: a tuple of positive integers"),
        (
            dict(mlp_ratios=(2, 0)),
            r"mlp_ratios is \(2, 0\); allowed: a tuple of 2 positive numbers",
        ),
        (
            dict(attention=("mhsa",) * 3),
            "attention has 3 entries; allowed: one spec, or 2, as many as blocks has",
        ),
        (dict(attention=("mhsa", ())), r"attention\[1\] is \(\); allowed"),
        (dict(attention="mhsaa"), "unknown attention 'mhsaa'. Did you mean 'mhsa'"),
        (
            dict(attention=dict(name="mhsa", head=3)),
            "no option 'head'. Did you mean 'num_heads'|head_dim",
        ),
        (dict(attention=("mhsa", ("mhsa", "gc"))), "'gc' is a context block, .*context=dict"),
        (
            dict(attention="less_attention"),
            "'less_attention' hands state from layer to layer, as the models lavit_",
        ),
        (dict(attention=None), "attention is None; allowed: a name, or a mapping"),
        (dict(context=dict(name="mhsa", after="stage1.1")), "'mhsa' is a mixer"),
        (
            dict(context=dict(name="less_attention", after="stage1.1")),
            "'less_attention' is carried; allowed as context",
        ),
        (dict(context=dict(name="gc", after="stage1.2")), "which matches no block"),
        (
            dict(context=dict(name="gc", after="stage1.1", placement="pre")),
            "placement 'pre'; allowed in a Transformer: post",
        ),
        (
            dict(stem="con"),
            "stem is 'con'; allowed: conv, double_conv, patch_merging.* Did you mean 'conv'",
        ),
        (dict(downsample=dict(name="conv")), "downsample 'conv' needs the option 'kernel_size'"),
        (
            dict(downsample=dict(name="conv", kernel_size=2, stirde=2)),
            "no option 'stirde'. Did you mean 'stride'",
        ),
        (
            dict(stem=dict(name="conv", kernel_size=0)),
            "embed: kernel_size is 0; allowed: an integer of 1 or more",
        ),
        (
            dict(stem=dict(name="conv", kernel_size=2, remainder="keep")),
            "remainder is 'keep'; allowed: drop, pad",
        ),
        (dict(mlp="wide"), "mlp is 'wide'; allowed: plain, depthwise, depthwise_linear"),
        (dict(mlp="depthwise", pool="cls"), "mlp is 'depthwise'; allowed: plain with pool='cls'"),
        (dict(pool="max"), "pool is 'max'; allowed: mean, cls"),
        (dict(layer_scale="big"), "layer_scale is 'big'; allowed: a number, or None"),
        (dict(norm_epsilon=0), "norm_epsilon is 0; allowed: a positive number"),
        (dict(stage_norm=1), "stage_norm is 1; allowed: True, False"),
        (dict(drop_path_rate=1.0), "drop_path_rate is 1.0; allowed: at least 0 and below 1"),
        (dict(remat="stage"), "remat is 'stage'; allowed: none, block"),
        (
            dict(image_size=(4, 16)),
            r"image_size is \(4, 16\); allowed: larger ones, stage 2 has no position left",
        ),
        (
            dict(pool="cls", attention="neighborhood"),
            r"NeighborhoodAttention does not take .*allowed: pool='mean'",
        ),
        (
            dict(pool="cls", context=dict(name="cbam", after="stage2.1")),
            "BlockAttention does not take .*pool='mean'",
        ),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        abstract_small(**options)


def test_all_problems_in_one_message():
    with pytest.raises(
        ValueError, match=r"(?s)pool is 'max'.*num_heads\[1\] is 5.*attention has 3 entries"
    ):
        abstract_small(pool="max", num_heads=(2, 5), attention=("mhsa",) * 3)


def test_inputs_that_do_not_fit():
    model = small()
    with pytest.raises(
        ValueError,
        match=r"images have shape \(1, 16, 16, 3\); expected \[batch, height, width, 1\]",
    ):
        model.features(jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="the map is 3x16; a window needs 4x4 or more"):
        model(jnp.zeros((1, 3, 16, 1)))
    with pytest.raises(ValueError, match="no PyTorch name table for family=None"):
        _ = model.torch_names
