"""Hierarchical Transformers: map sizes, the parts, initial values, training."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from flax import nnx
from hierarchical_helpers import (
    abstract,
    abstract_small,
    evaluation,
    filled,
    once,
    parameters,
    small,
)
from jaxpr_macs import jaxpr_macs

import models
from lambdanet.analysis.summary import summarise
from lambdanet.layers import LayerScale
from lambdanet.training.state import flatten_names, split_model, unflatten_names
from models.hierarchical import HierarchicalTransformer
from models.hierarchical.blocks import Mlp
from models.hierarchical.embeddings import (
    ConvEmbed,
    DoubleConvEmbed,
    PatchMerging,
    conv_inits,
    resize_positions,
)

# Trainable parameters for 1000 classes.
DIGITS = sorted(
    name
    for name in models.list_models("*_digits")
    if models.registry.lookup(name)[0] is HierarchicalTransformer
)
WIDTHS = dict(blocks=(1, 1, 1, 1), widths=(8, 8, 16, 16), num_heads=(2, 2, 4, 4), num_classes=5)
FAMILIES = ("pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li", "swin_tiny", "cswin_tiny", "nat_mini")
FORMS = (
    *FAMILIES,
    "slide_pvt_tiny",
    "slide_pvt_v2_b0",
    "slide_swin_tiny",
    "slide_cswin_tiny",
    "slide_nat_mini",
)


@functools.cache
def full_size(name):
    return nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0)))


def shapes(function, model, *image):
    """Shapes of what a function of (model, images) returns, without computing it."""
    graph, state = nnx.split(evaluation(model))
    x = jax.ShapeDtypeStruct(image, "float32")
    out = jax.eval_shape(lambda s, x: function(nnx.merge(graph, s, copy=True), x), state, x)
    return jax.tree.map(lambda leaf: leaf.shape, out)


def test_drop_path_grows_over_all_blocks():
    model = full_size("swin_tiny")
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.2, 12))
    heads = [[block.attention.num_heads for block in stage.blocks] for stage in model.stages]
    assert heads == [[3, 3], [6, 6], [12] * 6, [24, 24]]


# Maps of any size


def grids(name, height, width):
    """Sizes of the four maps, by the arithmetic of each family's convolutions."""
    family = name.removeprefix("slide_").split("_")[0]
    first, then = {
        "pvt": (lambda n: n // 4, lambda n: n // 2),
        "swin": (lambda n: math.ceil(n / 4), lambda n: math.ceil(n / 2)),
        "cswin": (lambda n: (n + 4 - 7) // 4 + 1, lambda n: math.ceil(n / 2)),
        "nat": (lambda n: math.ceil(math.ceil(n / 2) / 2), lambda n: math.ceil(n / 2)),
    }["swin" if name.startswith(("pvt_v2", "slide_pvt_v2")) else family]
    sizes = [(first(height), first(width))]
    for _ in range(3):
        sizes.append(tuple(map(then, sizes[-1])))
    return sizes


# With a mixer of slide attention the grid of a family is the same.
@pytest.mark.parametrize("name", part(FORMS, ["swin_tiny", "cswin_tiny", "pvt_v2_b2_li"]))
def test_features_and_logits_at_any_size(name):
    model = abstract(name, **WIDTHS)
    for size in ((224, 224), (97, 131)):
        features, logits = shapes(lambda m, x: (m.features(x), m(x)), model, 1, *size, 3)
        assert features == [
            (1, *grid, info["channels"])
            for grid, info in zip(grids(name, *size), model.feature_info, strict=True)
        ]
        assert logits == (1, 5)
    assert model.feature_info == [
        dict(channels=c, stride=s) for c, s in ((8, 4), (8, 8), (16, 16), (16, 32))
    ]


# tests/models/test_dense_backbones.py has the families that are not here.
@pytest.mark.parametrize("name", part(FAMILIES, ["nat_mini"]))
def test_runs_on_an_odd_map(name):
    model = evaluation(filled(abstract(name, **WIDTHS, image_size=(64, 64))))
    x = np.random.default_rng(0).normal(size=(2, 97, 131, 3)).astype(np.float32)
    x[1] += np.linspace(-2, 2, 131)[:, None]
    features, logits = once(lambda m, x: (m.features(x), m(x)), model, x)
    assert all(np.isfinite(leaf).all() for leaf in (*features, logits))
    assert all(np.abs(leaf[0] - leaf[1]).max() > 1e-5 for leaf in (*features, logits))


@pytest.mark.parametrize("name", part(DIGITS, lambda name: not name.startswith("slide_")))
def test_networks_for_digits_are_of_like_size(name):
    model = full_size(name)
    assert 60_000 <= parameters(model) <= 150_000
    assert shapes(lambda m, x: m.features(x), model, 1, 8, 8, 1) == [(1, 8, 8, 32), (1, 4, 4, 64)]
    assert shapes(lambda m, x: m(x), model, 3, 8, 8, 1) == (3, 10)
    rows = summarise(model, 8, 8)
    assert rows[-1]["path"] == "head/fc", "every parameter has its line"
    assert sum(row["parameters"] for row in rows) == parameters(model)


@pytest.mark.parametrize(
    "options",
    [
        dict(pool="cls", position_embedding=True),
        dict(
            stage_norm=True,
            stem=dict(name="conv", kernel_size=7, stride=4, padding=3),
            context=dict(name="gc", after="stage1.1"),
        ),
        dict(
            stem=dict(name="conv", kernel_size=4, remainder="pad"),
            downsample="patch_merging",
            layer_scale=0.1,
        ),
        dict(
            stem="double_conv",
            downsample=dict(name="conv", kernel_size=3, stride=2, padding=1, bias=False),
        ),
    ],
)
def test_macs_equal_the_traced_program(options):
    model = abstract_small(**options)
    graph, state = nnx.split(evaluation(model))
    x = jax.ShapeDtypeStruct((1, 21, 26, 1), "float32")
    assert model.macs(21, 26) == jaxpr_macs(lambda s, x: nnx.merge(graph, s)(x), state, x)


# Parts


def test_patches_that_do_not_fill_the_image():
    x = np.random.default_rng(0).standard_normal((1, 5, 7, 2)).astype(np.float32)
    drop = ConvEmbed(2, 4, kernel_size=4, rngs=nnx.Rngs(0))
    pad = ConvEmbed(2, 4, kernel_size=4, remainder="pad", rngs=nnx.Rngs(0))
    dropped, padded, cut, filled = once(
        lambda x: (
            drop(x),
            pad(x),
            pad(x[:, :4, :4]),
            drop(jnp.pad(x, ((0, 0), (0, 3), (0, 1), (0, 0)))),
        ),
        x,
    )
    assert dropped.shape[1:3] == drop.out_size(5, 7) == (1, 1)
    assert padded.shape[1:3] == pad.out_size(5, 7) == (2, 2)
    np.testing.assert_array_equal(dropped, cut)
    np.testing.assert_array_equal(padded, filled)


def test_patch_merging_by_hand():
    layer = PatchMerging(3, 5, rngs=nnx.Rngs(0))
    layer.norm.scale[...] = jax.random.normal(jax.random.key(1), (12,))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    padded = np.concatenate([x, np.zeros((2, 1, 4, 3))], axis=1)
    ours = layer(jnp.asarray(x))
    assert ours.shape == (2, *layer.out_size(3, 4), 5) == (2, 2, 2, 5)
    for i in range(2):
        for j in range(2):
            cell = [
                padded[:, 2 * i + dy, 2 * j + dx] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))
            ]
            four = np.concatenate(cell, axis=-1)
            centred = four - four.mean(-1, keepdims=True)
            normed = (
                centred
                / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
                * layer.norm.scale[...]
            )
            np.testing.assert_allclose(
                ours[:, i, j], normed @ np.asarray(layer.reduction.kernel[...]), atol=1e-5
            )


def test_mlps():
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    erf = np.vectorize(math.erf)

    def reference(mlp, kind):
        y = x @ np.asarray(mlp.fc1.kernel[...])
        if kind == "depthwise_linear":
            y = np.maximum(y, 0)
        if kind != "plain":
            kernel, padded = (
                np.asarray(mlp.depthwise.kernel[...])[:, :, 0],
                np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))),
            )
            taps = [
                padded[:, i : i + 3, j : j + 4] * kernel[i, j] for i in range(3) for j in range(3)
            ]
            y = sum(taps) + np.asarray(mlp.depthwise.bias[...])
        return (y * 0.5 * (1 + erf(y / math.sqrt(2)))) @ np.asarray(mlp.fc2.kernel[...])

    for kind, macs in (
        ("plain", 12 * 2 * 2 * 6),
        ("depthwise", 12 * (2 * 2 * 6 + 9 * 6)),
        ("depthwise_linear", 12 * 78),
    ):
        mlp = Mlp(2, 6, kind=kind, rngs=nnx.Rngs(0))
        for linear in (mlp.fc1, mlp.fc2):
            linear.kernel[...] = linear.kernel[...] * 50
        np.testing.assert_allclose(mlp(jnp.asarray(x)), reference(mlp, kind), atol=1e-5)
        assert mlp.macs(12) == macs


def test_initial_values():
    rngs = nnx.Rngs(0)
    torch, groups = (
        ConvEmbed(8, 64, kernel_size=4, rngs=rngs),
        ConvEmbed(8, 64, kernel_size=4, conv_init="fan_out", rngs=rngs),
    )
    bound = (16 * 8) ** -0.5
    for leaf in (torch.conv.kernel[...], torch.conv.bias[...]):
        assert 0.9 * bound < np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / math.sqrt(3), rel=0.2)
    assert np.std(groups.conv.kernel[...]) == pytest.approx(math.sqrt(2 / (16 * 64)), rel=0.1)
    assert not np.any(groups.conv.bias[...])
    depthwise = Mlp(64, 256, kind="depthwise", conv_init="fan_out", rngs=rngs)
    assert np.std(depthwise.depthwise.kernel[...]) == pytest.approx(math.sqrt(2 / 9), rel=0.1)
    kernel = np.asarray(depthwise.fc1.kernel[...])
    assert (
        0.018 < kernel.std() < 0.022
        and np.abs(kernel).max() > 0.04
        and not np.any(depthwise.fc1.bias[...])
    )
    # A depthwise kernel's fan is that of one group.
    drawn = [init(jax.random.key(0), (9, 64), jnp.float32) for init in conv_inits("fan_in", 9, 9)]
    assert all(0.3 < np.abs(leaf).max() <= 1 / 3 for leaf in drawn)
    tokenizer = DoubleConvEmbed(3, 8, rngs=rngs)
    assert (tokenizer.conv1.kernel.shape, tokenizer.conv2.kernel.shape) == (
        (3, 3, 3, 4),
        (3, 3, 4, 8),
    )


def test_epsilons_of_the_families():
    def epsilons(name):
        model = full_size(name)
        first, norms = (
            model.stages[0],
            [model.stages[0].blocks[0].norm1, model.stages[3].blocks[0].norm2],
        )
        last = [stage.norm for stage in model.stages] if model.norm is None else [model.norm]
        return {norm.epsilon for norm in (*norms, *last)}, first.embed.norm.epsilon

    for name in ("pvt_tiny", "pvt_v2_b1"):
        assert epsilons(name) == ({1e-6}, 1e-5)
    for name in ("swin_tiny", "cswin_tiny", "nat_mini"):
        assert epsilons(name) == ({1e-5}, 1e-5)


def test_layer_scale_scales_both_branches():
    model = small(layer_scale=0.5)
    block = model.stages[0].blocks[0]
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))

    def by_hand(block, x):
        x = x + block.layer_scale1.gamma[...] * block.attention(block.norm1(x))
        return x + block.layer_scale2.gamma[...] * block.mlp(block.norm2(x))

    np.testing.assert_allclose(*once(lambda b, x: (b(x), by_hand(b, x)), block, x), atol=1e-5)
    scales = {
        path: leaf.shape
        for path, leaf in flatten_names(split_model(model)[1]).items()
        if path.endswith("gamma")
    }
    assert len(scales) == 6 and scales["stages/1/blocks/0/layer_scale2/gamma"] == (16,)
    np.testing.assert_array_equal(LayerScale(3, 1e-5).gamma[...], np.full(3, 1e-5, np.float32))


# Positions and the class token


def test_positions_are_resized_only_off_their_grid():
    table = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    resize = jax.jit(resize_positions, static_argnums=(1, 2))
    np.testing.assert_array_equal(resize(table, (3, 4), (3, 4)), table.reshape(3, 4, 3))
    turned = np.asarray(resize(table, (3, 4), (4, 3)))  # as many positions, another grid
    assert turned.shape == (4, 3, 3) and not np.allclose(turned.reshape(12, 3), table)
    rows = np.asarray(resize(table, (3, 4), (6, 4)))
    inner = 0.75 * table.reshape(3, 4, 3)[0] + 0.25 * table.reshape(3, 4, 3)[1]
    np.testing.assert_allclose(rows[1], inner, atol=1e-6)


IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 24, 1)), jnp.float32)


def moved(model, path):
    """The model with another value of one parameter."""
    graph, params, stats = split_model(model)
    flat = flatten_names(params)
    flat[path] = (
        flat[path]
        + 1.0
        + jnp.arange(flat[path].size, dtype=jnp.float32).reshape(flat[path].shape) / 7
    )
    return nnx.merge(graph, unflatten_names(flat, params), stats)


def test_positions_are_added_at_every_stage():
    model = small(position_embedding=True)
    maps = jax.jit(lambda m: m.features(IMAGES))
    before = maps(model)
    for number, changed in enumerate(([True, True], [False, True])):
        after = maps(moved(model, f"stages/{number}/position_embedding"))
        assert [not np.allclose(a, b) for a, b in zip(before, after, strict=True)] == changed


def test_the_class_token_is_in_the_logits_alone():
    model = small(pool="cls", position_embedding=True)
    run = jax.jit(lambda m: (m.features(IMAGES), m(IMAGES)))
    features, logits = run(model)
    for name in ("class_token", "class_position"):
        again, other = run(moved(model, f"stages/1/{name}"))
        jax.tree.map(np.testing.assert_array_equal, features, again)
        assert not np.allclose(logits, other, atol=1e-3)
    first, last = model.stages
    assert first.class_token is None and last.class_token.shape == last.class_position.shape == (
        1,
        16,
    )


def test_the_class_token_by_hand():
    model = small(pool="cls", position_embedding=True, blocks=(1, 1), image_size=(16, 24))

    def by_hand(model):
        last, block = model.stages[1], model.stages[1].blocks[0]
        patches = (
            last.embed(model.stages[0](IMAGES)).reshape(2, 6, 16) + last.position_embedding[...]
        )
        token = jnp.broadcast_to(last.class_token[...] + last.class_position[...], (2, 1, 16))
        tokens = jnp.concatenate([token, patches], axis=1)
        tokens = tokens + block.attention(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
        return model.head.fc(model.norm(tokens[:, 0]))

    np.testing.assert_allclose(*once(lambda m: (m(IMAGES), by_hand(m)), model), rtol=1e-4)


@pytest.mark.parametrize("stage_norm", [False, True])
def test_pooling_means_over_the_normed_map(stage_norm):
    model = small(stage_norm=stage_norm)
    assert (model.norm is None) == stage_norm

    def by_hand(model):
        last = model.features(IMAGES)[-1]
        normed = last if stage_norm else model.norm(last)
        return last, model.head.fc(normed.mean((1, 2)))

    (last, expected), logits = once(lambda m: (by_hand(m), m(IMAGES)), model)
    np.testing.assert_allclose(logits, expected, rtol=1e-4)
    scale, bias = (
        (model.stages[1].norm.scale[...], model.stages[1].norm.bias[...])
        if stage_norm
        else (1.0, 0.0)
    )
    normed = np.allclose(((last - bias) / scale).mean(-1), 0, atol=1e-3)
    assert normed == stage_norm, "maps have the norm that ends their stage and not the final one"


# Training


def test_remat_changes_nothing():
    def loss_and_gradients(remat):
        options = dict(blocks=(1, 1), position_embedding=True, pool="cls")
        model = small(remat=remat, drop_path_rate=0.3, **options)
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params):
            logits = nnx.merge(graph, params, rest, copy=True)(IMAGES, rngs=nnx.Rngs(dropout=3))
            return jnp.sum(logits**2), logits

        return *once(jax.value_and_grad(loss, has_aux=True), params), str(
            jax.make_jaxpr(loss)(params)
        )

    (_, logits), gradients, text = loss_and_gradients("none")
    (_, saved), again, remat_text = loss_and_gradients("block")
    assert "remat" in remat_text and "remat" not in text
    np.testing.assert_allclose(logits, saved, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradients, again
    )


def test_drop_path_is_random_in_training_alone():
    model = small(drop_path_rate=0.9, blocks=(1, 1))
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 16, 16, 1)), (8, 16, 16, 1))
    logits = once(lambda m, x: m(x, rngs=nnx.Rngs(dropout=0)), model, x)
    assert len(np.unique(np.asarray(logits)[:, 0].round(5))) > 1
    calm = once(lambda m, x: m(x), evaluation(model), x)
    np.testing.assert_allclose(calm, calm[:1].repeat(8, 0), atol=1e-6)


@pytest.mark.exhaustive
def test_half_precision_keeps_the_classifier_in_full():
    options = dict(position_embedding=True, pool="cls", layer_scale=0.5, blocks=(1, 1))
    model = small(dtype="bfloat16", **options)
    features, logits = once(lambda m: (m.features(IMAGES), m(IMAGES)), model)
    assert {leaf.dtype for leaf in features} == {
        jnp.dtype("bfloat16")
    } and logits.dtype == jnp.float32
    full = once(lambda m: m(IMAGES), small(**options))
    np.testing.assert_allclose(logits, full, atol=0.02 * np.abs(full).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        jnp.dtype("float32")
    }
