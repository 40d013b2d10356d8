"""Context blocks in a ResNet: placements and their order, places, sizes, random numbers, configs,
other depths, refusals.
"""

import json
import logging
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx
from ml_collections import ConfigDict

import models
from lambdanet.attention import registry
from models.context import fit_context
from models.resnet import ResNet

TINY = dict(blocks=(1, 2), widths=(4, 6), stem="cifar", num_classes=5, image_size=(9, 6))


class Scale(nnx.Module):
    """A context block that multiplies by `factor`, drops entries while training, and remembers what
    it was built with.
    """

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        factor: float = 2.0,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.dim, self.size, self.factor = dim, size, factor
        self.dropout = nnx.Dropout(dropout_rate)

    def __call__(self, x, *, rngs=None):
        return self.factor * self.dropout(x, rngs=rngs)

    def macs(self, *spatial):
        return 0


@pytest.fixture(autouse=True)
def scale(monkeypatch):
    monkeypatch.setitem(registry._entries, "scale", (Scale, {}))


def tiny(**options) -> ResNet:
    return models.create_model("resnet50", **{**TINY, **options}, rngs=nnx.Rngs(0))


def abstract(**options) -> ResNet:
    return nnx.eval_shape(lambda: tiny(**options))


def randomise(model):
    """Random parameters and statistics in the evaluation view."""
    return nnx.view(drawn(model), deterministic=True, use_running_average=True)


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def places(model) -> dict[str, list[str]]:
    """Block name -> placement and class of what stands there, by placement."""
    return {
        f"stage{s}.{b}": [
            f"{place} {type(m).__name__}"
            for place in sorted(block.context)
            for m in block.context[place]
        ]
        for s, stage in enumerate(model.stages, 1)
        for b, block in enumerate(stage.blocks, 1)
        if len(block.context)
    }


def squeeze(after, ratio=2, **options):
    return dict(name="se", after=after, ratio=ratio, **options)


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_placements_and_order_equal_the_hand_made_composition(kind):
    """Squeeze-excite gates depend on the means of what they see: none of them commutes with the
    next.
    """
    stand = [("post", 2), ("standard", 2), ("post", 1), ("pre", 1), ("identity", 2), ("pre", 2)]
    context = tuple(squeeze("stage2.1", ratio, placement=placement) for placement, ratio in stand)
    model = randomise(abstract(block=kind, context=context))

    def both(model, x):
        block = model.stages[1].blocks[0]
        pre, post = block.context["pre"], block.context["post"]
        y = block.conv2(block.conv1(pre[1](pre[0](x))))
        y = y if block.conv3 is None else block.conv3(y)
        y = nnx.relu(
            block.context["standard"][0](y) + block.context["identity"][0](block.shortcut(x))
        )
        return block(x), post[1](post[0](y))

    given, expected = nnx.jit(both)(model, images(2, 9, 6, model.stage_info[0][0]))
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    dim, dim_out = (channels for channels, _ in model.stage_info)
    ratios = {
        place: [m.dim // m.hidden for m in made]
        for place, made in model.stages[1].blocks[0].context.items()
    }
    assert ratios == {"post": [2, 1], "standard": [2], "pre": [1, 2], "identity": [2]}
    assert [m.dim for m in model.stages[1].blocks[0].context["pre"]] == [dim, dim]
    assert model.stages[1].blocks[0].context["post"][0].dim == dim_out


def test_places_are_names_or_patterns():
    model = abstract(
        blocks=(2, 1, 3),
        widths=(4, 4, 4),
        context=(
            squeeze("stage3.2"),
            squeeze(("stage[12].*", "stage1.2"), placement="standard"),
            dict(name="scale", after="stage?.1"),
        ),
    )
    assert places(model) == {
        "stage1.1": ["post Scale", "standard SqueezeExcite"],
        "stage1.2": ["standard SqueezeExcite"],
        "stage2.1": ["post Scale", "standard SqueezeExcite"],
        "stage3.1": ["post Scale"],
        "stage3.2": ["post SqueezeExcite"],
    }
    everywhere = abstract(context=squeeze("stage*.*"))
    assert places(everywhere) == dict.fromkeys(
        ("stage1.1", "stage2.1", "stage2.2"), ["post SqueezeExcite"]
    )
    assert places(abstract(context=())) == places(abstract()) == {}


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_a_block_is_built_for_the_map_it_stands_on(kind):
    context = tuple(
        dict(name="scale", after="stage2.1", placement=placement)
        for placement in ("post", "pre", "standard", "identity")
    )
    model = abstract(block=kind, context=context)
    expansion = 4 if kind == "bottleneck" else 1
    built = {
        place: (made[0].dim, made[0].size)
        for place, made in model.stages[1].blocks[0].context.items()
    }
    behind = (6 * expansion, (5, 3))
    assert built == {
        "post": behind,
        "pre": (4 * expansion, (9, 6)),
        "standard": behind,
        "identity": behind,
    }


def test_features_are_what_stands_after_the_last_block():
    x = images(1, 9, 6, 3)
    features = jax.jit(ResNet.features)
    plain = features(randomise(abstract()), x)
    both = dict(name="scale", after=("stage1.1", "stage2.2"), factor=3.0)
    scaled = features(randomise(abstract(context=(both,))), x)
    np.testing.assert_allclose(scaled[0], 3 * plain[0], rtol=1e-5)
    last = dict(name="scale", after="stage2.2", factor=3.0)
    inner = features(randomise(abstract(context=last)), x)
    np.testing.assert_array_equal(inner[0], plain[0])
    np.testing.assert_allclose(inner[1], 3 * plain[1], rtol=1e-5)


def test_summary_and_macs_count_them():
    context = (squeeze("stage2.1", placement="pre"), squeeze("stage2.1"))
    rows = {row["path"]: row for row in abstract(context=context).summary_rows(9, 6)}
    before, after = (rows[f"stages/1/blocks/0/context/{place}/0"] for place in ("pre", "post"))
    assert (before["type"], before["output_shape"], before["macs"]) == (
        "SqueezeExcite",
        (9, 6, 16),
        2 * 16 * 8,
    )
    assert (after["output_shape"], after["macs"]) == ((5, 3, 24), 2 * 24 * 12)
    assert (
        abstract(context=context).macs(9, 6) - abstract().macs(9, 6)
        == before["macs"] + after["macs"]
    )


def training_pass(remat):
    options = dict(dropout_rate=0.3, after="stage*.*")
    context = (
        squeeze("stage2.*"),
        dict(name="scale", **options),
        dict(name="scale", placement="pre", **options),
    )
    model = tiny(blocks=(1, 1), remat=remat, drop_path_rate=0.4, context=context)
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    @jax.jit
    def run(params, x, key):
        def loss(params):
            return jnp.sum(
                jnp.sin(nnx.merge(graph, params, stats, copy=True)(x, rngs=nnx.Rngs(dropout=key)))
            )

        return jax.value_and_grad(loss)(params)

    x = images(4, 9, 6, 3)
    return run(nnx.to_pure_dict(params), x, jax.random.key(1)), run(
        nnx.to_pure_dict(params), x, jax.random.key(2)
    )


@pytest.mark.exhaustive
def test_random_numbers_reach_them_and_remat_changes_nothing():
    first, second = training_pass("none")
    assert abs(float(first[0] - second[0])) > 1e-3
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-4),
        (first, second),
        training_pass("block"),
    )
    with pytest.raises(ValueError, match="rngs"):
        context = dict(name="scale", after="stage1.1", dropout_rate=0.3)
        nnx.eval_shape(lambda: tiny(blocks=(1, 1), context=context)(images(1, 9, 6, 3)))


def test_dtypes_are_handed_on():
    model = abstract(dtype="bfloat16", param_dtype="bfloat16", context=squeeze("stage*.*"))
    graph, state = nnx.split(model)
    maps = jax.eval_shape(
        lambda state, x: nnx.merge(graph, state, copy=True).features(x), state, images(1, 9, 6, 3)
    )
    assert {m.dtype for m in maps} == {jnp.dtype("bfloat16")}
    assert model.stages[1].blocks[1].context["post"][0].reduce.kernel.dtype == jnp.bfloat16


def test_config_section_becomes_entries():
    entries = [
        dict(name="se", after="stage1.1", ratio=2),
        dict(name="se", after=["stage2.*"], placement="pre"),
    ]
    first, both = (
        {"stage1.1": ["post SqueezeExcite"]},
        dict.fromkeys(("stage2.1", "stage2.2"), ["pre SqueezeExcite"]),
    )
    for given, expected in ((entries[0], first), (entries, first | both)):
        section = dict(name="resnet_digits", blocks=[1, 2], widths=[4, 4], context=given)
        config = ConfigDict(dict(model=section, data=dict(channels=1, image_size=(8, 8))))
        for read in (config, ConfigDict(json.loads(config.to_json()))):
            model = nnx.eval_shape(
                lambda c=read: models.create_from_config(c, num_classes=3, rngs=nnx.Rngs(0))
            )
            assert places(model) == expected


def test_a_context_does_not_drop_that_of_the_preset_unsaid():
    small = dict(blocks=(1, 1), widths=(4, 6), stem="cifar", image_size=(9, 6))
    small["attention_blocks"] = ((), ())
    own = dict(name="scale", after="stage2.1")
    squeeze = dict(name="se", after="stage[12].*", placement="standard", ratio=4)

    def stand(context):
        made = nnx.eval_shape(
            lambda: models.create_model(
                "lambda_resnet50", **small, context=context, rngs=nnx.Rngs(0)
            )
        )
        return [entry for entries in places(made).values() for entry in entries]

    with pytest.raises(ValueError, match="would drop what 'lambda_resnet50' has") as error:
        stand(own)
    assert f"context={(squeeze, own)!r}" in str(error.value)  # both
    assert f"context={(None, own)!r}" in str(error.value)  # this one alone
    gate = "standard SqueezeExcite"
    assert stand((squeeze, own)) == [gate, "post Scale", gate]
    assert stand((None, own)) == ["post Scale"]
    assert stand({**squeeze, "ratio": 2}) == [gate, gate]
    assert stand(None) == stand((None,)) == []


def test_preset_places_move_with_the_depth(caplog):
    entry = squeeze(("stage1.2", "stage2.2", "stage2.4", "stage2.6", "stage4.1", "stage*.*"))
    assert fit_context(entry, (3, 5))["after"] == (
        "stage1.2",
        "stage2.2",
        "stage2.4",
        "stage2.5",
        "stage4.1",
        "stage*.*",
    )
    assert fit_context((entry, entry), (1, 1))[1]["after"] == (
        "stage1.1",
        "stage2.1",
        "stage4.1",
        "stage*.*",
    )
    assert fit_context(None, (1,)) == ()

    def small(name, **options):
        options |= dict(blocks=(1, 1, 2, 1), widths=(8, 8, 8, 8))
        return nnx.eval_shape(lambda: models.create_model(name, **options, rngs=nnx.Rngs(0)))

    with caplog.at_level(logging.INFO, logger="models"):
        assert list(places(small("lambda_resnet50"))) == ["stage1.1", "stage2.1"]
    assert "lambda_resnet50 with blocks (1, 1, 2, 1): context {'name': 'se'" in caplog.text
    with pytest.raises(ValueError, match=r"'stage3.5', which matches no block"):
        small("lambda_resnet50", context=squeeze("stage3.5"))


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("se", r"context is 'se'; allowed: None, an entry dict\(name=\.\.\., after='stage3\.4'\)"),
        (
            dict(name="se"),
            r"context is \{'name': 'se'\}; allowed: a mapping with 'name' and 'after'",
        ),
        ((squeeze("stage1.1"), "se"), r"context\[1\] is 'se'; allowed: a mapping"),
        (
            dict(name="sse", after="stage1.1"),
            r"context: unknown attention 'sse'. Did you mean 'se'\?",
        ),
        (dict(name=3, after="stage1.1"), r"context: name 3; allowed as context: .*se"),
        (
            dict(name="lambda", after="stage1.1"),
            r"'lambda' is a mixer, .*: attention='lambda'; allowed as context: .*se",
        ),
        (
            squeeze("stage1.1", ration=2),
            r"context: attention 'se' has no option 'ration'. Did you mean 'ratio'\?"
            r" Options: ratio, bias",
        ),
        (squeeze("stage1.1", placment="pre"), r"no option 'placment'. Did you mean 'placement'\?"),
        (
            squeeze("stage1.1", placement="after"),
            r"placement 'after'; allowed: post, pre, standard, identity",
        ),
        (squeeze("stage1.1", placement="Post"), r"Did you mean 'post'\?"),
        (
            squeeze("stage2.3"),
            r"after 'stage2.3', which matches no block; the blocks are stage1.1, stage2.1 to "
            r"stage2.2",
        ),
        (squeeze(("stage2.*", "stage[34].*")), r"after 'stage\[34\]\.\*', which matches no block"),
        (squeeze(()), r"after \(\); allowed: a place such as 'stage3.4'"),
        (squeeze(3), r"after 3; allowed: a place"),
        (squeeze("stage1.1", ratio=400), r"ratio is 400"),
    ],
)
def test_refusals(context, message):
    with pytest.raises(ValueError, match=message):
        abstract(context=context)


def test_all_problems_are_reported_at_once():
    wrong = (squeeze("stage9.1", placement="x"), dict(name="lambda", after="stage1.1"))
    with pytest.raises(
        ValueError,
        match=r"stem is 'y'.*placement 'x'.*'stage9.1'.*context\[1\]: 'lambda' is a mixer",
    ):
        abstract(stem="y", context=wrong)
