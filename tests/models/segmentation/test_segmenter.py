"""The segmenter: outputs, sizes, checks of its parts' options, what depends on the classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import nnx

import models
from lambdanet.layers import resize_bilinear
from lambdanet.training.state import flatten_names
from models.backbone_spec import backbone_tables

TINY = dict(name="resnet18", blocks=(1, 1, 1, 1), widths=(8, 8, 16, 16))
AUXILIARY = dict(name="fcn", stage=3, channels=8)


def options(**changes):
    given = dict(
        backbone=TINY,
        head=dict(name="danet", channels=8),
        auxiliary=AUXILIARY,
        num_classes=5,
        image_size=(64, 96),
    )
    return {**given, **changes}


def build(**changes):
    return models.create_model("segmenter", **options(**changes), rngs=nnx.Rngs(0))


def abstract(**changes):
    return nnx.eval_shape(lambda: build(**changes))


def evaluation(model):
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def image(h, w, batch=1):
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.standard_normal((batch, h, w, 3)), jnp.float32)


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_of_every_pixel_are_the_resized_ones(align_corners):
    model = evaluation(drawn(abstract(align_corners=align_corners)))
    x = image(50, 77)

    @jax.jit
    def run(m, x):
        out = m.outputs(x)
        wanted = resize_bilinear(out["logits"], (50, 77), align_corners=align_corners)
        return out, wanted, m(x), m.features(x)

    out, wanted, logits, features = run(model, x)
    assert {key: value.shape for key, value in out.items()} == {
        "logits": (1, 2, 3, 5),
        "position": (1, 2, 3, 5),
        "channel": (1, 2, 3, 5),
        "auxiliary": (1, 4, 5, 5),
    }
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)
    assert model.feature_sizes(50, 77) == [m.shape[1:3] for m in features]


def test_heads_get_align_corners_unless_they_set_it():
    own = dict(name="upernet", channels=8, align_corners=False)
    for head, wanted in (("upernet", True), (own, False)):
        assert abstract(head=head, align_corners=True).head.align_corners is wanted


def test_a_block_tied_to_the_size_gets_that_of_its_map():
    block = dict(name="bottleneck_attention", num_heads=2)
    head = dict(name="context", block=block, stage=3, channels=8)
    made = abstract(head=head).head.attention
    assert made.size == (4, 6)


def test_bfloat16_gives_float32_logits():
    run = jax.jit(lambda m, x: (m(x), m.outputs(x), m.features(x)))
    half, exact = (evaluation(drawn(abstract(dtype=dtype))) for dtype in ("bfloat16", "float32"))
    x = image(64, 96)
    logits, outputs, features = run(half, x)
    assert {value.dtype for value in outputs.values()} == {jnp.dtype("float32")}
    assert features[0].dtype == jnp.bfloat16
    expected = run(exact, x)[0]
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_what_depends_on_the_classes():
    def shapes(classes):
        model = abstract(num_classes=classes)
        return flatten_names(nnx.to_pure_dict(nnx.state(model))), model.classifier

    (three, paths), (four, _) = shapes(3), shapes(4)
    changed = {name for name in three if three[name].shape != four[name].shape}
    assert changed == {f"{path}/{part}" for path in paths for part in ("kernel", "bias")}
    assert "auxiliary/classify" in paths and "head/classify_position" in paths


def test_summary_covers_all_parameters():
    model = abstract(head="upernet")
    rows = model.summary_rows(64, 96)
    for path in flatten_names(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        assert sum((path + "/").startswith(f"{row['path']}/") for row in rows) == 1, path
    assert model.macs(64, 96) == sum(row["macs"] for row in rows)
    without = abstract(head="upernet", auxiliary=None)
    assert without.macs(64, 96) == model.macs(64, 96)


def test_every_problem_of_every_part_is_named_at_once():
    wrong = options(
        backbone=dict(name="resnet18", width=(8, 8, 8, 8), blocks=(1, 1, 1)),
        head=dict(name="fcn", chanels=2),
        auxiliary=dict(name="danett"),
        dtype="float61",
    )
    with pytest.raises(ValueError) as caught:
        models.model_builder("segmenter", **wrong)
    for text in (
        "no option 'width'. Did you mean 'widths'",
        "no option 'chanels'. Did you mean 'channels'",
        "unknown segmentation head 'danett'. Did you mean 'danet'",
        "dtype is 'float61'; allowed: float32, bfloat16",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(backbone="resnet5"), "backbone: unknown model 'resnet5'. Did you mean 'resnet50'"),
        (dict(backbone="segmenter"), "'segmenter' is no backbone"),
        (dict(backbone=dict(blocks=(1,))), "backbone is .*; allowed: a name, or a mapping"),
        (dict(backbone=dict(TINY, stem="x", pool="y")), "backbone: stem is 'x'.*pool is 'y'"),
        (dict(backbone=dict(TINY, num_classes=3)), "'num_classes' is that of the whole model"),
        (dict(auxiliary=dict(name="fcn", stage=5)), "auxiliary: stage is 5; allowed: .*1 to 4"),
        (dict(num_classes=0), "num_classes is 0; allowed: a positive integer"),
        (dict(align_corners=1), "align_corners is 1; allowed: True, False"),
        (dict(head=7), "head: head is 7; allowed"),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        models.model_builder("segmenter", **options(**changes))


def test_a_config_section_becomes_a_segmenter():
    from ml_collections import ConfigDict

    section = dict(
        name="segmenter",
        backbone=dict(TINY, blocks=[1, 1, 1, 1], widths=[8, 8, 16, 16]),
        head=dict(name="isa", channels=8, group_size=[2, 2]),
    )
    config = ConfigDict(dict(model=section, data=dict(channels=3, image_size=(64, 64))))
    model = nnx.eval_shape(
        lambda: models.create_from_config(config, num_classes=4, rngs=nnx.Rngs(0))
    )
    assert model.head.attention.blocks[0].group_size == (2, 2)
    assert model.classifier == ("head/classify",)


def test_tables_for_a_backbone_alone():
    from lambdanet.interop.names import convert

    model = abstract()
    shapes = {
        name: tuple(leaf.shape)
        for name, leaf in flatten_names(nnx.to_pure_dict(nnx.state(model))).items()
    }
    inside = {name: shape for name, shape in shapes.items() if name.startswith("backbone/")}
    classifier = nnx.eval_shape(
        lambda: models.create_model(**TINY, num_classes=7, rngs=nnx.Rngs(0))
    )
    file = {
        name: np.zeros(leaf.shape, np.float32)
        for name, leaf in flatten_names(nnx.to_pure_dict(nnx.state(classifier))).items()
    }
    found = convert(file, backbone_tables(model.backbone)["lambdanet"], inside)
    assert set(found) == set(inside)


def test_export_with_any_batch_and_at_training_size():
    model = evaluation(build(head=dict(name="upernet", channels=8), auxiliary=None))
    graphdef, state = nnx.split(model)
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 64, 96, 3), jnp.float32)
    run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    exported = jax.export.export(run)(state, x)
    assert exported.out_avals[0].shape[1:] == (64, 96, 5)
