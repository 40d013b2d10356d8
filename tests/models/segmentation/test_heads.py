"""Segmentation heads: counts, what they return, what they refuse; their values are in the golden
tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from drawn_weights import drawn
from flax import nnx
from jaxpr_macs import jaxpr_macs

from lambdanet.interop.names import convert
from lambdanet.training.state import flatten_names
from models.segmentation import CrissCrossHead, registry
from models.segmentation.criss_cross import OFFICIAL_NAMES
from models.segmentation.options import head_builder

RESNET = (256, 512, 1024, 2048)
SIZES = ((12, 8), (6, 4), (3, 2), (2, 1))
SMALL = {
    "fcn": dict(num_convs=2, concat_input=True),
    "upernet": dict(channels=8),
    "semantic_fpn": dict(channels=8, neck_channels=12),
    "criss_cross": dict(channels=8, embedding_channels=3),
    "danet": dict(channels=8),
    "ocnet": dict(channels=8),
    "isa": dict(channels=8, group_size=(2, 2)),
    "nonlocal": dict(channels=8),
    "context": dict(channels=8, block=dict(name="lambda", num_heads=2, key_depth=4, scope=3)),
}


def build(name, dims, classes=150, strides=(4, 8, 16, 32), **options):
    info = [dict(channels=c, stride=s) for c, s in zip(dims, strides, strict=True)]
    make, _ = head_builder(dict(name=name, **options))
    return make(info, classes, rngs=nnx.Rngs(0))


def parameters(module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def count(*arguments, **options):
    return parameters(nnx.eval_shape(lambda: build(*arguments, **options)))


def evaluation(module):
    return nnx.view(module, deterministic=True, use_running_average=True, raise_if_not_found=False)


def maps(dims, sizes=SIZES, batch=1):
    draw = np.random.default_rng(0)
    return [
        jnp.asarray(draw.standard_normal((batch, *size, dim)), jnp.float32)
        for dim, size in zip(dims, sizes, strict=True)
    ]


def test_every_head_is_here():
    assert set(SMALL) == set(registry.names())


@pytest.mark.parametrize(
    ("name", "dims", "classes", "options", "total"),
    [
        ("upernet", (96, 192, 384, 768), 150, {}, 31_497_366),
        ("upernet", (64, 128, 320, 512), 150, {}, 29_711_510),
        ("upernet", (64, 128, 256, 512), 150, {}, 29_678_742),
        ("upernet", RESNET, 150, {}, 40_590_486),
        ("semantic_fpn", (256,) * 4, 150, dict(neck_channels=None), 1_643_158),
        ("semantic_fpn", RESNET, 150, {}, 1_643_158 + 3_344_384),
        ("semantic_fpn", (64, 128, 320, 512), 150, {}, 1_643_158 + 2_623_488),
        ("fcn", (96, 192, 384, 768), 150, dict(stage=3, channels=256), 923_798),
        ("fcn", RESNET, 150, dict(stage=3, channels=256), 2_398_358),
        ("fcn", (64, 128, 320, 512), 150, dict(stage=3, channels=256), 776_342),
        ("criss_cross", RESNET, 19, {}, 23_934_100),
        ("danet", RESNET, 19, {}, 23_954_619),
        ("ocnet", RESNET, 19, {}, 10_369_043),
        ("isa", RESNET, 19, {}, 11_814_419),
        ("isa", RESNET, 19, dict(value_bias=True), 11_814_419 + 1024),
    ],
)
def test_published_counts(name, dims, classes, options, total):
    assert count(name, dims, classes, **options) == total


@pytest.mark.parametrize("name", SMALL)
def test_logits_macs_and_rows(name):
    dims = (8, 12, 16, 16)
    head = evaluation(drawn(nnx.eval_shape(lambda: build(name, dims, 5, **SMALL[name]))))
    x = maps(dims)
    run = jax.jit(lambda head, x: (head(x, return_auxiliary=True), head(x)))
    (logits, extra), alone = run(head, x)
    size = SIZES[0] if name in ("upernet", "semantic_fpn") else SIZES[-1]
    assert logits.shape == (1, *size, 5) and logits.dtype == jnp.float32
    assert head.out_stride == (4 if size == SIZES[0] else 32)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(alone, logits, rtol=1e-6)
    kinds = {"danet": {"position": 5, "channel": 5}, "criss_cross": {"embedding": 3}}
    assert {key: value.shape[-1] for key, value in extra.items()} == kinds.get(name, {})
    rows = head.rows(SIZES)
    paths = [row[0] for row in rows]
    flat = flatten_names(nnx.to_pure_dict(nnx.state(head, nnx.Param)))
    for path in flat:
        assert sum(path.startswith(f"{prefix}/") for prefix in paths) == 1, path
    classed = {path.rsplit("/", 1)[0] for path, leaf in flat.items() if leaf.shape[-1] == 5}
    assert classed == set(head.classifier)
    assert head.macs(SIZES) == jaxpr_macs(head, x)


# The golden fixtures have the gradients of the others, or of what they are made of.
@pytest.mark.parametrize("name", part(SMALL, ["context"]))
def test_gradients_reach_all_but_what_starts_at_zero(name):
    dims = (8, 12, 16, 16)
    x = maps(dims, batch=2)
    head = build(name, dims, 5, **SMALL[name])
    graphdef, params, rest = nnx.split(head, nnx.Param, ...)

    def loss(params):
        made = nnx.merge(graphdef, params, rest, copy=True)
        logits, extra = made(x, rngs=nnx.Rngs(dropout=0), return_auxiliary=True)
        return sum(jnp.sum(jnp.sin(y)) for y in (logits, *extra.values()))

    gradients = flatten_names(nnx.to_pure_dict(jax.jit(jax.grad(loss))(params)))
    assert all(np.isfinite(g).all() for g in gradients.values())
    # what starts at zero in the blocks keeps what is behind it without a gradient at first
    still = [path for path, g in gradients.items() if not np.any(g)]
    assert not [path for path in still if not path.startswith(("attention", "context"))]


def test_channel_dropout_drops_whole_channels():
    """With a classifier that only passes channels on, training differs from evaluation by one
    factor per channel.
    """
    head = build("criss_cross", (16,), 16, strides=(8,), channels=16, dropout=0.5)
    head.classify.kernel[...] = jnp.eye(16)
    x = maps((16,), ((3, 4),), batch=2)
    training = nnx.view(head, deterministic=False, use_running_average=True)

    @jax.jit
    def both(x):
        still = nnx.view(training, deterministic=True)
        return still(x), training(x, rngs=nnx.Rngs(dropout=1))

    still, kept = (np.asarray(y) for y in both(x))
    kept = kept / np.where(still > 0, still, np.nan)
    spread = np.nanmax(kept, (1, 2)) - np.nanmin(kept, (1, 2))  # [b, channel]
    assert np.nanmax(spread) < 1e-5
    assert set(np.round(np.nanmax(kept, (1, 2))[~np.isnan(spread)], 4)) == {0.0, 2.0}
    with pytest.raises(ValueError, match="rngs"):
        jax.eval_shape(training, x)


def test_classifier_starts_small():
    head = build("fcn", (256,), 64, strides=(8,))
    kernel = np.asarray(head.classify.kernel[...])
    assert abs(kernel.std() - 0.01) < 5e-4 and not np.any(head.classify.bias[...])


def test_a_stage_of_the_backbone():
    head = build("fcn", (8, 12, 16, 16), 5, stage=2)
    assert (head.out_stride, head.convs[0].dim, head.convs[0].dim_out) == (8, 12, 3)
    with pytest.raises(ValueError, match=r"stage is 5; allowed: None \(the last\), 1 to 4"):
        build("fcn", (8, 12, 16, 16), 5, stage=5)
    with pytest.raises(ValueError, match=r"map 2 has the shape .*, expected \[batch, h, w, 12\]"):
        evaluation(head)(maps((8, 8, 16, 16)))
    with pytest.raises(ValueError, match="there are 1 maps, it reads number 2"):
        evaluation(head)(maps((8,), SIZES[:1]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("criss_cross", dict(dropout=1.0), "'dropout' .* must be from 0.0 to 0.9999999, not 1.0"),
        ("criss_cross", dict(activation="leaky"), "'activation' .*leaky_relu_0.01.* not 'leaky'"),
        ("criss_cross", dict(recurrence=0), "'recurrence' .* must be from 1 to 64, not 0"),
        ("fcn", dict(chanels=8), "no option 'chanels'. Did you mean 'channels'"),
        ("fcn", dict(kernel_size=4), "kernel_size is 4; allowed: odd sides"),
        ("ocnet", dict(variant="bas"), "'variant' .*'base', 'pyramid', 'asp'.* not 'bas'"),
        ("context", {}, "needs the options block"),
        ("context", dict(block="lamda"), "unknown attention 'lamda'. Did you mean 'lambda'"),
        ("context", dict(block=dict(name="lambda", scop=3)), "no option 'scop'. Did you mean 'sc"),
        ("context", dict(block="less_attention"), "hands state from layer to layer"),
        ("context", dict(block=dict(name="interlaced", dim_out=3)), "block has dim_out=3; allowed"),
        ("context", dict(block=dict(scope=3)), "block is .*; allowed: a name, or a mapping"),
        ("upernett", {}, "unknown segmentation head 'upernett'. Did you mean 'upernet'"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        head_builder(dict(name=name, **options))


def test_in_place_norms_bring_their_scale():
    head = nnx.eval_shape(
        lambda: CrissCrossHead([dict(channels=16, stride=8)], 3, channels=8, rngs=nnx.Rngs(0))
    )
    weight = np.asarray([-2.0, 0.5, 0, 1, 1, 1, 1, 1], np.float32)
    for rules, wanted in (
        (head.torch_names["ccnet"], abs(weight) + 1e-5),
        (OFFICIAL_NAMES, weight),
    ):
        ours = convert(
            {"conva.1.weight": weight}, rules, {"reduce/norm/scale": (8,)}, require_all=False
        )
        np.testing.assert_array_equal(ours["reduce/norm/scale"], wanted)
