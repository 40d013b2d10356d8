"""LaViT: counts, multiply-adds, sizes, what is handed from block to block and from stage to stage,
auxiliary losses.
"""

import functools

import covering
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxpr_macs import jaxpr_macs
from step_helpers import make_train_step

import models
from configs import base
from lambdanet.analysis.summary import summarise, totals
from lambdanet.attention.diagonality_loss import diagonality_loss
from lambdanet.training.state import TrainState, flatten_names, split_model, views

# Preset -> parameters, and billions of multiply-adds at 224x224.
COUNTS = {
    "lavit_tiny": (11_429_451, 1.570),
    "lavit_small": (19_842_535, 3.299),
    "lavit_base": (33_612_327, 6.667),
    "lavit_tiny_paper": (10_874_565, 1.923),
    "lavit_small_paper": (18_702_817, 4.036),
    "lavit_base_paper": (32_472_609, 7.404),
}
# The paper forms with full transforms in stage 2, too: millions and billions.
FULL = {
    "lavit_tiny_paper": (12.1, 3.7),
    "lavit_small_paper": (22.4, 9.4),
    "lavit_base_paper": (36.2, 12.8),
}

TINY = dict(
    blocks=(1, 2, 3),
    widths=(8, 8, 16),
    num_heads=(1, 2, 4),
    mlp_ratios=(2, 2, 2),
    sr_ratios=(2, 1, 1),
    vanilla_blocks=(1, 1, 1),
    attention_residual=(False, False, True),
    patch_sizes=(4, 2, 2),
    image_size=(32, 32),
    num_classes=5,
)
# Two stages, for what has to be compiled with its gradient.
SMALL = dict(
    blocks=(2, 2),
    widths=(4, 8),
    num_heads=(1, 2),
    mlp_ratios=(1, 1),
    sr_ratios=(1, 1),
    vanilla_blocks=(1, 1),
    attention_residual=(False, True),
    patch_sizes=(4, 2),
    image_size=(16, 16),
    num_classes=5,
)
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def create(name="lavit_tiny", **options):
    return models.create_model(name, **options, rngs=nnx.Rngs(0))


def abstract(name="lavit_tiny", **options):
    return nnx.eval_shape(lambda: create(name, **options))


def drawn(**options):
    """Evaluation view with weights drawn by NumPy, which costs no compilation."""
    model, draw = abstract(**options), np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        value = 0.1 * draw.standard_normal(variable.shape)
        if path[-1] in ("scale", "var", "gamma"):
            value = value + 1.0
        elif path[-2] in ("theta", "psi") and path[-1] == "kernel":
            value = value + np.eye(len(value))
        variable.set_value(jnp.asarray(value, jnp.float32))
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def tiny(**options):
    return drawn(**{**TINY, **options})


def run(model, x, **options):
    """Calls a model inside one compiled function; parameters are arguments, as remat needs it."""
    graphdef, state = nnx.split(model)
    return once(lambda state, x: nnx.merge(graphdef, state)(x, **options))(state, x)


def images(*size, batch=2):
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, *size, 3)), jnp.float32)


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", covering.part(COUNTS, ["lavit_tiny", "lavit_tiny_paper"]))
def test_counts_and_multiply_adds_of_the_presets(name):
    count, billions = COUNTS[name]
    model = abstract(name)
    assert parameters(model) == count
    assert round(model.macs(224, 224) / 1e9, 3) == billions
    if name in FULL:
        whole = abstract(name, transform="full")
        assert (round(parameters(whole) / 1e6, 1), round(whole.macs(224, 224) / 1e9, 1)) == FULL[
            name
        ]


def test_every_preset_is_counted_and_the_one_for_digits_is_small():
    assert set(models.list_models("lavit_*")) == {*COUNTS, "lavit_digits"}
    digits = abstract("lavit_digits")
    assert 60_000 < parameters(digits) < 150_000 and digits.auxiliary_losses == (
        "symmetry",
        "diagonality",
    )


@pytest.mark.parametrize("options", [{}, dict(pool="cls", transform="kron")])
def test_summary_is_the_program(options):
    model = tiny(**options)
    rows = summarise(model, 32, 32)
    assert totals(rows) == {"parameters": parameters(model), "macs": model.macs(32, 32)}
    assert rows[-1]["path"] == "head/fc" and "stages/2/attention_residual" in [
        row["path"] for row in rows
    ]
    assert model.macs(32, 32) == jaxpr_macs(model, images(32, 32, batch=1))
    maps = jax.eval_shape(model.features, images(32, 32))
    assert [m.shape for m in maps] == [(2, 8, 8, 8), (2, 4, 4, 8), (2, 2, 2, 16)]
    assert model.feature_info == [
        dict(channels=8, stride=4),
        dict(channels=8, stride=8),
        dict(channels=16, stride=16),
    ]


def test_paths_of_the_parameters():
    _, params, stats = split_model(abstract(**TINY, pool="cls"))
    paths = set(flatten_names(params))
    for path in (
        "stages/0/blocks/0/attention/reduction/kernel",
        "stages/1/position_embedding",
        "stages/1/blocks/0/attention/key_value/kernel",
        "stages/1/blocks/1/attention/theta/kernel",
        "stages/2/blocks/2/attention/psi/bias",
        "stages/2/attention_residual/downsample_kernel",
        "stages/2/attention_residual/layer_scale/gamma",
        "stages/2/class_token",
        "stages/2/class_position",
        "norm/scale",
        "head/fc/kernel",
    ):
        assert path in paths
    assert not [
        path
        for path in paths
        if "blocks/0/attention/theta" in path or "blocks/1/attention/query" in path
    ]
    assert set(flatten_names(stats)) == {
        f"stages/2/attention_residual/norm/{s}" for s in ("mean", "var")
    }
    assert params["stages"][2]["blocks"][1]["attention"]["theta"]["kernel"].shape == (
        5,
        5,
    )  # 2x2 and the class token


SIZES = ((224, 224), (256, 256), (192, 320), (97, 131))


@pytest.mark.parametrize(
    "options",
    covering.part(
        [
            dict(resize="interpolate"),
            dict(resize="reuse"),
            dict(transform="kron"),
            dict(transform="reuse", residual_norm="instance"),
            dict(vanilla_blocks=(2, 2, 2, 2), attention_residual=(False,) * 4),
            dict(resize="interpolate", pool="cls"),
        ],
        lambda options: options in (dict(resize="reuse"), dict(resize="interpolate", pool="cls")),
    ),
)
def test_any_size_with_a_policy(options):
    small = dict(
        blocks=(1, 1, 2, 2),
        widths=(8, 8, 16, 16),
        num_heads=(1, 2, 2, 4),
        mlp_ratios=(1, 1, 1, 1),
        num_classes=5,
    )
    model = drawn(**small, **options)
    for h, w in SIZES:
        maps = jax.eval_shape(model.features, images(h, w, batch=1))
        assert [m.shape[1:3] for m in maps] == [(h // s, w // s) for s in (4, 8, 16, 32)]
        assert jax.eval_shape(model, images(h, w, batch=1)).shape == (1, 5)


def test_other_sizes_run_or_are_refused():
    refusing, resizing = drawn(**SMALL), drawn(**SMALL, resize="interpolate")
    with pytest.raises(
        ValueError, match="the map is 4x6, the weights are made for 4x4.*resize='interpolate'"
    ):
        jax.eval_shape(refusing, images(19, 25))
    logits = run(resizing, images(19, 25))
    assert logits.shape == (2, 5) and np.isfinite(logits).all()
    with pytest.raises(ValueError, match="the map is 1x2; a window needs 2x2"):
        jax.eval_shape(resizing, images(4, 8))
    with pytest.raises(ValueError, match=r"images have shape \(2, 16, 16, 1\)"):
        resizing(images(16, 16)[..., :1])


@pytest.mark.exhaustive
def test_logits_reach_the_next_stage_by_the_residual():
    """The bias of a layer's Psi has no effect on its own softmax: what effect it has came from what
    the layer handed on.
    """
    graphdef, state = nnx.split(drawn(**SMALL))
    gradient = once(
        jax.grad(lambda state: (nnx.merge(graphdef, state)(images(16, 16)) ** 2).sum())
    )(state)

    def effect(stage):
        attention = gradient["stages"][stage]["blocks"][1]["attention"]
        return [float(jnp.abs(attention[side]["bias"][...]).max()) for side in ("theta", "psi")]

    theta, psi = effect(0)
    assert theta > 1e-9 and psi > 1e-3 * theta
    theta, psi = effect(1)  # nothing comes after it
    assert theta > 1e-9 and psi < 1e-5 * theta


def test_identity_transforms_are_the_reuse_network():
    model, reuse = drawn(**SMALL), drawn(**{**SMALL, "transform": "reuse"})
    theirs = flatten_names(split_model(reuse)[1])
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name = "/".join(map(str, path))
        if name in theirs:
            variable.set_value(theirs[name])
        else:
            assert path[-3] == "attention" and path[-2] in ("theta", "psi")
            variable.set_value(
                jnp.eye(len(variable[...]))
                if path[-1] == "kernel"
                else jnp.zeros_like(variable[...])
            )
    np.testing.assert_allclose(
        run(model, images(16, 16)), run(reuse, images(16, 16)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.exhaustive
def test_auxiliary_terms_are_those_of_the_less_attention_layers():
    graphdef, state = nnx.split(tiny(pool="cls", loss_variant="norm_hinge_pair", loss_on="probs"))
    x = images(32, 32)

    @once
    def everything(state):
        model = nnx.merge(graphdef, state)
        handed = [[logits for less, logits in stage if less] for stage in model._run(x, None)[2]]
        return model(x), model(x, return_auxiliary=True), handed

    plain, (logits, terms), handed = everything(state)
    np.testing.assert_array_equal(plain, logits)
    assert [len(stage) for stage in handed] == [0, 1, 2]
    layers = [
        handed[1][0],
        *(logits[:, :, 1:, 1:] for logits in handed[2]),
    ]  # without the class token of the last stage
    expected = [
        [term.mean() for term in diagonality_loss(layer, "norm_hinge_pair", "probs")]
        for layer in layers
    ]
    np.testing.assert_allclose(
        [terms["symmetry"], terms["diagonality"]], np.sum(expected, axis=0), rtol=1e-4
    )
    plain = tiny(vanilla_blocks=(3, 3, 3))
    assert (
        plain.auxiliary_losses == ()
        and jax.eval_shape(lambda x: plain(x, return_auxiliary=True)[1], x) == {}
    )


def test_one_step_with_everything_on():
    config = base.get_config()
    config.train.auxiliary_losses = (("symmetry", 0.1), ("diagonality", 0.2))
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8),
        "label": np.array([0, 2, 1, 4]),
    }
    options = dict(SMALL, blocks=(1, 2), remat="block", drop_path_rate=0.2)
    graphdef = views(lambda: create(**options))[0]
    _, params, stats = split_model(drawn(**options))
    start = TrainState(jnp.zeros((), jnp.int32), params, stats, optax.sgd(0.1).init(params), {})
    after, metrics = once(make_train_step(graphdef, optax.sgd(0.1), config, seed=0))(start, batch)
    terms = 0.1 * metrics["auxiliary_symmetry"] + 0.2 * metrics["auxiliary_diagonality"]
    np.testing.assert_allclose(metrics["loss"], metrics["cross_entropy"] + terms, rtol=1e-6)
    assert metrics["auxiliary_symmetry"] > 0 and np.isfinite(metrics["grad_norm"])
    norm = after.stats["stages"][1]["attention_residual"]["norm"]["mean"]
    assert np.abs(norm - stats["stages"][1]["attention_residual"]["norm"]["mean"]).max() > 0


def test_remat_recomputes_every_block_and_no_more():
    for remat, count in (("none", 0), ("block", sum(TINY["blocks"]))):
        graphdef, state = nnx.split(tiny(remat=remat))
        program = jax.make_jaxpr(lambda state, x, graphdef=graphdef: nnx.merge(graphdef, state)(x))(
            state, images(32, 32)
        )
        names = [equation.primitive.name for equation in program.eqns]
        assert sum(name in ("checkpoint", "remat2") for name in names) == count
    both = [run(drawn(**SMALL, remat=remat), images(16, 16)) for remat in ("none", "block")]
    np.testing.assert_allclose(*both, rtol=1e-6)


def test_bfloat16_is_close_and_its_logits_are_float32():
    x = images(16, 16)
    exact, model = drawn(**SMALL), drawn(**SMALL, dtype="bfloat16")
    _, _, handed = jax.eval_shape(lambda x: [model._run(x, None)[i] for i in range(3)], x)
    assert {logits.dtype for stage in handed for logits in [pair[1] for pair in stage]} == {
        jnp.dtype("float32")
    }
    exact, y = run(exact, x), run(model, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-2 * float(np.abs(exact).max()))


def test_other_mixers_and_reduced_keys_in_single_stages():
    lambdas = abstract(
        **{
            **TINY,
            "attention": (None, ("lambda", "mhsa"), None),
            "attention_residual": (False,) * 3,
        }
    )
    kinds = [type(block.attention).__name__ for block in lambdas.stages[1].blocks]
    assert kinds == ["LambdaLayer", "MultiHeadSelfAttention"] and lambdas.auxiliary_losses
    everywhere = abstract(**{**TINY, "attention": "mhsa", "attention_residual": (False,) * 3})
    assert (
        everywhere.auxiliary_losses == ()
        and everywhere.stages[0].blocks[0].attention.num_heads == 1
    )
    options = dict(
        sr_ratios=(4, 2, 1), residual_mode="query_only", vanilla_blocks=(1, 2, 1), pool="mean"
    )
    model = tiny(**{**options, "attention_residual": (False, True, True)})
    assert model.stages[2].attention_residual.downsample_kernel.shape == (2, 2, 2)
    assert model.macs(32, 32) == jaxpr_macs(model, images(32, 32, batch=1))
    # Context blocks stand after a block, of either kind.
    inserted = tiny(context=dict(name="se", after=("stage2.1", "stage2.2")))
    assert (
        inserted.macs(32, 32) == jaxpr_macs(inserted, images(32, 32, batch=1)) > tiny().macs(32, 32)
    )


def test_vanilla_stages_have_the_parameters_of_the_mixer_without_logits():
    """So that a stage changes between the two without losing its weights."""
    none = (False,) * 3
    for ratio in (1, 2):
        options = dict(
            sr_ratios=(2 * ratio, ratio, 1), vanilla_blocks=(3, 3, 3), residual_mode="query_only"
        )
        plain, handing = (
            tiny(**options, attention_residual=none),
            tiny(**options, attention_residual=(False, True, False)),
        )
        kinds = [
            {type(block.attention).__name__ for block in model.stages[1].blocks}
            for model in (plain, handing)
        ]
        assert kinds == [{"SpatialReductionAttention"}, {"VanillaAttention"}]
        blocks = [list(stage.blocks) for stage in handing.stages[:2]]
        handed = [[block.attention.hands_on for block in stage] for stage in blocks]
        assert handed == [[False] * (len(blocks[0]) - 1) + [True], [False] * len(blocks[1])]
        own, other = (model.stages[1].blocks[1].attention for model in (plain, handing))
        nnx.update(other, nnx.state(own))
        x = jax.random.normal(jax.random.key(1), (2, 5, 6, 8))
        y, expected = once(lambda x, own=own, other=other: (own(x), other(x)[0]))(x)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_problems_stand_in_one_message():
    def problem(**options):
        with pytest.raises(ValueError) as caught:
            abstract(**{**TINY, **options})
        return str(caught.value)

    text = problem(remat="all", loss_variant="hinge", drop_path_rate=1.0, center_rows=2)
    for part in (
        "remat is 'all'; allowed: none, block",
        "loss_variant is 'hinge'",
        "drop_path_rate is 1.0",
        "center_rows is 2",
    ):
        assert part in text
    text = problem(
        widths=(8, 8),
        vanilla_blocks=(0, 1, 1),
        attention_residual=(False, True),
        transform="dense",
        attention=(),
    )
    for part in (
        "widths is",
        "vanilla_blocks is (0, 1, 1)",
        "attention_residual is",
        "transform is 'dense'",
        "has 0 entries",
    ):
        assert part in text
    text = problem(
        num_heads=(1, 3, 4),
        sr_ratios=(2, 2, 1),
        attention_residual=(True, True, True),
        resize="crop",
    )
    for part in (
        "num_heads[1] is 3; allowed: divisors of widths[1]=8",
        "sr_ratios[1] is 2; allowed: 1 in a stage with less-attention",
        "attention_residual[0] is True; allowed: False, no stage comes before the first",
        "attention_residual[1] is True between sr_ratios 2 and 2; allowed: 1 and 1",
        "attention_residual[2] is True between sr_ratios 2 and 1",
        "resize is 'crop'; allowed: None, refuse, interpolate, reuse",
    ):
        assert part in text
    text = problem(attention=(None, None, "mhsa"), pool="cls")
    assert "attention_residual[2] is True; allowed: False where attention[2] stands in" in text
    assert "pool is 'cls'; allowed: 'mean' where attention[2]" in text
    assert "attention 'less_attention' hands state" in problem(attention="less_attention")
    assert "twice the ratio" in problem(residual_mode="query_only")
    assert "patch_sizes[2]=1; allowed: 2" in problem(patch_sizes=(4, 2, 1))
    assert "resize is 'reuse'; allowed: None" in problem(transform="reuse", resize="reuse")
    assert "has the placement 'pre'" in problem(
        context=dict(name="se", after="stage1.1", placement="pre")
    )
    assert "context blocks in the last stage" in problem(
        context=dict(name="se", after="stage3.1"), pool="cls"
    )
    with pytest.raises(ValueError, match="neither the authors' code nor weights are public"):
        _ = abstract(**TINY).torch_names


@pytest.mark.exhaustive
def test_open_choices_of_the_paper_reach_the_layers():
    options = dict(residual_kernel="separable", residual_scale=0.5, attention_dropout_rate=0.3)
    model = create(**{**TINY, **options})
    residual = model.stages[2].attention_residual
    full = abstract(**TINY).stages[2].attention_residual
    paths = [{path[0] for path, _ in nnx.to_flat_state(nnx.state(r))} for r in (residual, full)]
    assert paths[0] != paths[1]  # a kernel for queries and one for keys in place of one for both
    assert set(residual.layer_scale.gamma[...].tolist()) == {0.5}
    blocks = [block for stage in model.stages if stage.carries for block in stage.blocks]
    assert {block.attention.dropout.rate for block in blocks} == {0.3}
