"""The ResNet class: maps, modes, initial state, memory switches, options that change the network,
and refusals.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from drawn_weights import drawn
from flax import nnx

from lambdanet.layers import avg_pool
from models import create_model
from models.backbone import Classifier
from models.resnet import ResNet

LAMBDA = dict(name="lambda", key_depth=4, num_heads=2, scope=5)
TINY = dict(
    blocks=(1, 2), widths=(8, 12), stem="cifar", num_classes=5, image_size=(9, 6), attention=LAMBDA
)


def tiny(**options) -> ResNet:
    return create_model("resnet50", **{**TINY, **options}, rngs=nnx.Rngs(0))


def abstract(**options) -> ResNet:
    """The network's shapes alone."""
    return nnx.eval_shape(lambda: tiny(**options))


def evaluating(model):
    return nnx.view(model, deterministic=True, use_running_average=True)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def call(function, model, *args, compiled=True):
    """function(model, *args), under jit or for its shapes only."""
    graph, state = nnx.split(model)

    def run(state, *args):
        return function(nnx.merge(graph, state), *args)

    return (jax.jit if compiled else lambda f: functools.partial(jax.eval_shape, f))(run)(
        state, *args
    )


def gradient(model, x, key=None):
    """Loss, (logits, running statistics) and gradients of one training pass."""
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    @jax.jit
    def run(params, stats, x, key):
        def loss(params):
            m = nnx.merge(graph, params, stats)
            y = m(x, rngs=None if key is None else nnx.Rngs(dropout=key))
            return jnp.sum(jnp.sin(y)), (y, nnx.to_pure_dict(nnx.state(m, nnx.BatchStat)))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run(params, stats, x, key)


@pytest.mark.parametrize(
    "size", [(1, 1), (33, 17), pytest.param((2, 7), marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("stem", ["resnet", "resnet_rs", "tiered", "cifar"])
def test_any_map_size(size, stem):
    model = evaluating(abstract(stem=stem, in_channels=2, shortcut="avg"))
    x = jax.ShapeDtypeStruct((3, *size, 2), "float32")
    stride = 1 if stem == "cifar" else 4
    assert model.feature_info == [
        {"channels": 32, "stride": stride},
        {"channels": 48, "stride": 2 * stride},
    ]
    maps = call(ResNet.features, model, x, compiled=False)
    expected = [
        (3, -(-size[0] // i["stride"]), -(-size[1] // i["stride"]), i["channels"])
        for i in model.feature_info
    ]
    assert [m.shape for m in maps] == expected
    logits = call(ResNet.__call__, model, x, compiled=False)
    assert (logits.shape, logits.dtype) == ((3, 5), jnp.float32)


@pytest.mark.exhaustive
def test_evaluation_treats_images_alone_and_jit_changes_nothing():
    model = drawn(abstract(blocks=(1, 1), widths=(8, 8)))
    x = images(3, 9, 6, 3)
    alone = evaluating(model)
    together = call(ResNet.__call__, alone, x)
    np.testing.assert_allclose(together, alone(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        together[1:2], call(ResNet.__call__, alone, x[1:2]), rtol=1e-4, atol=1e-5
    )
    training = nnx.view(model, deterministic=False, use_running_average=False)
    assert float(jnp.abs(call(ResNet.__call__, training, x) - together).max()) > 1e-2


@pytest.mark.parametrize(
    ("attention", "block", "zero_init_last"),
    part(
        itertools.product([LAMBDA, None], ["bottleneck", "basic"], [True, False]),
        [(LAMBDA, "bottleneck", True)],
    ),
)
def test_every_block_starts_as_its_shortcut_unless_told_otherwise(attention, block, zero_init_last):
    def outputs_and_shortcuts(model, x):
        pairs = []
        for residual in (block for stage in model.stages for block in stage.blocks):
            identity = x
            if residual.shortcut is not None:
                identity = residual.shortcut(avg_pool(x, 2, 2) if residual.stride == 2 else x)
            x = residual(x)
            pairs.append((x, nnx.relu(identity)))
        return pairs

    options = dict(attention=attention, block=block, shortcut="avg", zero_init_last=zero_init_last)
    pairs = call(outputs_and_shortcuts, tiny(**options), nnx.relu(images(2, 9, 6, 8)))
    for y, expected in pairs:
        assert float(y.max()) > 0.1
        assert np.allclose(y, expected, rtol=1e-5, atol=1e-5) == zero_init_last


@functools.cache
def training_pass(remat):
    model = abstract(
        remat=remat, blocks=(1, 1), drop_path_rate=0.4, dropout_rate=0.3, share_embeddings=True
    )
    return gradient(drawn(model), images(4, 9, 6, 3), jax.random.key(3))


@pytest.mark.parametrize("remat", part(["block", "stage"], ["stage"]))
def test_remat_changes_neither_outputs_nor_statistics_nor_gradients(remat):
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-4),
        training_pass("none"),
        training_pass(remat),
    )


@pytest.mark.parametrize(("remat", "regions"), [("none", 0), ("block", 3), ("stage", 2)])
def test_remat_wraps_blocks_or_stages(remat, regions):
    graph, state = nnx.split(abstract(remat=remat))

    def run(state, x):
        return nnx.merge(graph, state, copy=True)(x)

    program = jax.make_jaxpr(run)(state, jax.ShapeDtypeStruct((2, 9, 6, 3), "float32"))
    names = [equation.primitive.name for equation in program.eqns]
    assert sum(name in ("remat", "remat2", "checkpoint") for name in names) == regions


@pytest.mark.exhaustive
def test_bfloat16_stays_close_and_keeps_float32_where_it_must():
    x = images(4, 9, 6, 3)
    exact = call(ResNet.__call__, drawn(abstract(blocks=(1, 1))), x)
    (_, (y, stats)), grads = gradient(drawn(abstract(blocks=(1, 1), dtype="bfloat16")), x)
    assert {leaf.dtype for leaf in jax.tree.leaves((y, stats, grads))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(y, exact, atol=5e-2 * float(jnp.abs(exact).max()))
    features = call(ResNet.features, abstract(dtype="bfloat16"), x, compiled=False)
    assert {m.dtype for m in features} == {jnp.dtype("bfloat16")}
    stored = abstract(param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(stored, nnx.Param))} == {
        jnp.dtype("bfloat16")
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(stored, nnx.BatchStat))} == {
        jnp.dtype("float32")
    }


@pytest.mark.exhaustive  # tests/models/test_matrix.py has steps of the blocks
def test_one_training_step_lowers_the_loss():
    model = tiny(blocks=(1, 1))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    x, labels = images(8, 9, 6, 3), jnp.arange(8) % 5

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logits = nnx.merge(graph, params, stats, copy=True)(x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

    before, grads = loss(params)
    after, _ = loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    assert float(after) < float(before) - 0.01


def test_drop_path_grows_linearly_over_all_blocks():
    model = abstract(blocks=(2, 3), drop_path_rate=0.4)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_dropout_acts_before_the_classifier_while_training():
    head = Classifier(
        8,
        8,
        dropout_rate=0.5,
        kernel_init=nnx.initializers.zeros,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    head.fc.kernel[...] = jnp.eye(8)
    pooled = images(50, 8)
    np.testing.assert_allclose(nnx.view(head, deterministic=True)(pooled), pooled, rtol=1e-5)
    ratio = head(pooled, rngs=nnx.Rngs(dropout=1)) / pooled
    np.testing.assert_allclose(jnp.where(ratio == 0, 2, ratio), 2, rtol=1e-4)
    assert float((ratio == 0).mean()) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="rngs"):
        head(pooled)


@pytest.mark.parametrize("scope", part([5, None], [None]))
def test_shared_embeddings_equal_copies_of_one_table(scope):
    spec = {**LAMBDA, "scope": scope}
    shared = drawn(abstract(attention=spec, share_embeddings=True))
    own = drawn(abstract(attention=spec))
    tables = {}
    for number, stage in enumerate(shared.stages):
        tables[number] = stage.embedding[...]
    state = nnx.to_flat_state(nnx.state(shared))
    values = {path: variable for path, variable in state}
    for path, variable in nnx.to_flat_state(nnx.state(own)):
        if path in values:
            variable[...] = values[path][...]
            continue
        assert path[-2:] == ("attention", "embedding")
        table, taps = tables[path[1]], variable.shape[:2]
        start = [(full - part) // 2 for full, part in zip(table.shape, taps, strict=False)]
        variable[...] = table[start[0] : start[0] + taps[0], start[1] : start[1] + taps[1]]
    x = images(2, 9, 6, 3)
    logits = [call(ResNet.__call__, evaluating(model), x) for model in (shared, own)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    if (
        scope is None
    ):  # second stage: table for its input map 9x6, centre for the second block's 5x3
        assert shared.stages[1].embedding.shape[:2] == (17, 11)


def test_attention_works_before_the_pooling_of_a_strided_block():
    model = abstract(attention={**LAMBDA, "scope": None})
    sizes = [[block.attention.size for block in stage.blocks] for stage in model.stages]
    assert sizes == [[(9, 6)], [(9, 6), (5, 3)]]
    basic = abstract(block="basic", attention={**LAMBDA, "scope": None})
    assert [block.attention.size for block in basic.stages[1].blocks] == [(5, 3), (5, 3)]
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        call(ResNet.__call__, model, images(1, 8, 8, 3), compiled=False)


@pytest.mark.parametrize(("pool", "window"), [("avg3", 3), ("avg2", 2)])
@pytest.mark.parametrize("post_norm_act", [True, False])
def test_strided_attention_block_equals_its_formula(pool, window, post_norm_act):
    def both(block, x):
        y = avg_pool(block.attention(block.conv1(x)), window, 2)
        if post_norm_act:
            y = nnx.silu(block.norm_attention(y))
        return block(x), nnx.silu(block.conv3(y) + block.shortcut(x))

    model = evaluating(drawn(abstract(pool=pool, post_norm_act=post_norm_act, activation="silu")))
    y, expected = call(both, model.stages[1].blocks[0], images(2, 9, 6, 32))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_attention_by_stage():
    model = abstract(attention=("lambda", None), share_embeddings=True)
    assert [[b.attention is not None for b in s.blocks] for s in model.stages] == [
        [True],
        [False, False],
    ]
    assert [s.embedding is not None for s in model.stages] == [True, False]


EVERYWHERE = tuple(
    dict(name="se", after="stage*.*", placement=placement)
    for placement in ("post", "standard", "identity", "pre", "post")
)


@pytest.mark.parametrize(
    "options",
    [
        dict(share_embeddings=True, context=EVERYWHERE, attention_blocks=((), (2,))),
        dict(stem="resnet", block="basic", context=EVERYWHERE),
        dict(stem="resnet_rs", shortcut="avg", attention=None),
    ],
)
def test_summary_covers_every_parameter_once_and_ends_in_the_true_shapes(options):
    model = abstract(**options)
    rows = model.summary_rows(35, 18)
    assert model.macs(35, 18) == sum(row["macs"] for row in rows)
    for path, _ in nnx.to_flat_state(nnx.state(model)):
        path = "/".join(map(str, path)) + "/"
        assert sum(path.startswith(row["path"] + "/") for row in rows) == 1, path
    shapes = {row["path"]: row["output_shape"] for row in rows}
    for number, m in enumerate(
        call(ResNet.features, model, jnp.zeros((1, 35, 18, 3)), compiled=False)
    ):
        last = [
            shape for path, shape in shapes.items() if path.startswith(f"stages/{number}/blocks")
        ][-1]
        assert last == m.shape[1:]
    assert shapes["head/fc"] == (5,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(blocks=(1, 0)), r"blocks is \(1, 0\); allowed: a tuple of positive integers"),
        (dict(blocks=[1, 2]), r"blocks is \[1, 2\]"),
        (dict(widths=(8, 12, 16)), r"widths is \(8, 12, 16\); allowed: 2 entries"),
        (
            dict(block="botleneck"),
            r"block is 'botleneck'; allowed: bottleneck, basic. Did you mean 'bottleneck'\?",
        ),
        (dict(stem="resnet_d"), r"stem is 'resnet_d'; allowed: resnet, resnet_rs, tiered, cifar"),
        (dict(pool="max"), r"pool is 'max'; allowed: avg3, avg2"),
        (dict(shortcut="id"), r"shortcut is 'id'; allowed: conv, avg"),
        (dict(activation="tanh"), r"activation is 'tanh'; allowed: relu, silu"),
        (
            dict(remat="blocks"),
            r"remat is 'blocks'; allowed: none, block, stage. Did you mean 'block'\?",
        ),
        (dict(dtype="float16"), r"dtype is 'float16'; allowed: float32, bfloat16"),
        (dict(num_classes=1.0), r"num_classes is 1.0; allowed: 0 \(no classifier\) or a positive"),
        (dict(multi_grid=()), r"multi_grid is \(\); allowed: a tuple of positive integers"),
        (dict(output_stride=6), r"output_stride is 6; allowed: None, or a power of two from 1 on"),
        (
            dict(stem="deep", output_stride=2),
            r"output_stride is 2; allowed: None, or a power of two from 4 on, .* stem='deep'",
        ),
        (dict(first_dilation="prev"), r"first_dilation is 'prev'; allowed: previous, own"),
        (dict(drop_path_rate=1.0), r"drop_path_rate is 1.0; allowed: at least 0 and below 1"),
        (dict(image_size=(8,)), r"image_size is \(8,\); allowed: \(height, width\)"),
        (dict(attention="lamda"), r"unknown attention 'lamda'. Did you mean 'lambda'\?"),
        (
            dict(attention=dict(name="lambda", key_deph=4)),
            r"no option 'key_deph'. Did you mean 'key_depth'\?",
        ),
        (dict(attention=dict(key_depth=4)), r"attention is {'key_depth': 4}; allowed: a name"),
        (dict(attention=("lambda",)), r"attention has 1 entries; allowed: one spec, or 2"),
        (dict(attention=dict(name="lambda", num_heads=3)), r"3 heads do not divide"),
        (
            dict(attention_blocks=("all",)),
            r"attention_blocks is \('all',\); allowed: 'all', or a tuple with one entry",
        ),
        (
            dict(attention_blocks=((), (3,))),
            r"attention_blocks\[1\] is \(3,\); allowed: 'all' or a tuple of numbers from 1 to 2",
        ),
        (
            dict(attention=None, share_embeddings=True),
            r"share_embeddings is True; allowed: False where attention is None",
        ),
        (
            dict(attention="mhsa", share_embeddings=True),
            r"attention 'mhsa' has no embeddings to share",
        ),
        (
            dict(attention="se"),
            r"attention 'se' is a context block, .*: context=dict\(name='se', .*; .* attention: "
            r".*lambda",
        ),
        (
            dict(attention=dict(name="lambda", num_heads=2, position=False), share_embeddings=True),
            r"no embeddings to share",
        ),
        (
            dict(block="basic", post_norm_act=False),
            r"post_norm_act is False; allowed: True with block='basic'",
        ),
    ],
)
def test_refusals_name_value_and_allowed_values(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ValueError, match="stem is 'x'.*num_classes is -1.*dropout_rate is 2"):
        tiny(stem="x", num_classes=-1, dropout_rate=2)


def test_images_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"shape \(1, 9, 6, 1\); expected \[batch, height, width, 3\]"
    ):
        call(ResNet.__call__, abstract(), images(1, 9, 6, 1), compiled=False)
