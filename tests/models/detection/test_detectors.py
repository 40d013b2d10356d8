"""Detectors: what they return, what they do not depend on, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from detector_helpers import (
    BACKBONE,
    DETECTORS,
    build,
    detector,
    evaluation,
    images,
    losses,
    loud,
    targets,
)
from flax import nnx

import models
from lambdanet.training.state import flatten_names

TERMS = {
    "retinanet": {"classification", "box"},
    "faster_rcnn": {"objectness", "proposal_box", "classification", "box"},
    "mask_rcnn": {"objectness", "proposal_box", "classification", "box", "mask"},
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", part(DETECTORS, ["retinanet"]))
def test_padding_changes_nothing(name):
    """A canvas larger by 64 pixels gives the same detections.

    Biases and the means of norms are zero here, so that padding is zero in every map, as what lies
    beyond a canvas is.
    """
    numbers = dict(candidates=500, before_nms=1000, max_detections=400)
    model = loud(build(name, score_threshold=0.0, **(numbers if name == "retinanet" else {})))
    # what is seen lowers the scores, so that anchors in the padding would come first
    scores = model.head.classify if name == "retinanet" else model.rpn.objectness
    scores.kernel[...] = -jnp.abs(scores.kernel[...])
    run, _ = detector(model)
    shapes = [(64, 64), (40, 57)]
    small = run(images(shapes, (96, 96)), shapes)
    large = run(images(shapes, (160, 160)), shapes)
    assert np.asarray(small["valid"]).sum() >= 16
    for key, value in small.items():
        np.testing.assert_allclose(value, large[key], rtol=1e-3, atol=1e-3, err_msg=key)
    limit = np.asarray(shapes, np.float32)[:, None, ::-1]
    assert (np.asarray(small["boxes"])[..., 2:] <= limit).all()
    assert (np.diff(np.asarray(small["scores"]), axis=1) <= 0).all()


@pytest.mark.exhaustive
def test_anchors_in_the_padding_take_part_by_option():
    shapes = [(40, 57)]
    found = [
        detector(loud(build("retinanet", score_threshold=0.0, padding_anchors=padding)))[0](
            images(shapes, (96, 96)), shapes
        )["scores"]
        for padding in (False, True)
    ]
    assert not np.allclose(*found)


def symmetric(model):
    """Kernels that a mirrored picture sees no difference in; offsets to the right change sign."""
    for path, leaf in flatten_names(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items():
        if path.endswith("kernel") and leaf.ndim == 4:
            mirrored = leaf[:, ::-1]
            offsets = jnp.arange(leaf.shape[-1]) % 4 == 0
            odd = offsets if path == "head/regress/kernel" else False
            _set(model, path, jnp.where(odd, leaf - mirrored, leaf + mirrored) / 2)
        if path == "box_head/fc1/kernel":
            cells = leaf.reshape(7, 7, -1, leaf.shape[-1])
            _set(model, path, ((cells + cells[:, ::-1]) / 2).reshape(leaf.shape))
    return model


def _set(model, path, value):
    *parents, last = path.split("/")
    for name in parents:
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    getattr(model, last)[...] = value


@pytest.mark.exhaustive
def test_mirrored_pictures_have_mirrored_boxes():
    """Anchors are centred at pixels 0, 8, ..., so pictures of 8 n + 1 are mirrored; one level,
    since resizing by the nearest position has no symmetry; no suppression.
    """
    side = 65
    options = dict(first_stage=3, num_levels=1, score_threshold=0.0, nms_threshold=1.0)
    every = 9 * 9 * 9 * 3
    numbers = dict(candidates=every, before_nms=every, max_detections=every)
    run, _ = detector(symmetric(loud(build("retinanet", **options, **numbers))))
    x = images([(side, side)], (side, side))
    straight, mirrored = run(x, [(side, side)]), run(x[:, :, ::-1], [(side, side)])

    def inside(found, flip):
        boxes, scores = (np.asarray(found[key][0]) for key in ("boxes", "scores"))
        whole = (boxes[:, 0] > 1) & (boxes[:, 2] < side - 2)
        boxes = boxes[whole]
        if flip:
            boxes = np.stack(
                [side - 1 - boxes[:, 2], boxes[:, 1], side - 1 - boxes[:, 0], boxes[:, 3]], -1
            )
        rows = np.concatenate(
            [boxes, scores[whole][:, None], np.asarray(found["classes"][0])[whole][:, None]], -1
        )
        return rows[np.lexsort(np.round(rows, 2).T)]

    left, right = inside(straight, False), inside(mirrored, True)
    assert len(left) > 50
    np.testing.assert_allclose(left, right, atol=2e-2)


def test_mirrored_regions_have_mirrored_masks():
    model = symmetric(loud(build("mask_rcnn")))
    draw = np.random.default_rng(0)
    levels = [
        jnp.asarray(draw.standard_normal((1, 64 // s, 64 // s, 8)), jnp.float32) for s in (4, 8)
    ]
    boxes = jnp.asarray([[[5.0, 3.0, 30.0, 41.0], [20.0, 8.0, 60.0, 62.0]]])
    flipped = jnp.stack([64 - boxes[..., 2], boxes[..., 1], 64 - boxes[..., 0], boxes[..., 3]], -1)
    turned = [level[:, :, ::-1] for level in levels]
    for head, size in ((model.box_head, 7), (model.mask_head, 14)):

        @jax.jit
        def run(levels, boxes, head=head, size=size):
            return head(model._regions(levels, boxes, size))

        straight, mirrored = run(levels, boxes), run(turned, flipped)
        if size == 7:
            for one, other in zip(straight, mirrored, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-4)
        else:
            assert np.abs(straight).max() > 0.1
            np.testing.assert_allclose(straight, mirrored[:, :, :, ::-1], atol=1e-4)


@pytest.mark.parametrize("name", part(["retinanet", "mask_rcnn"], ["mask_rcnn"]))
def test_pictures_of_all_sizes_share_one_program(name):
    run, compiled = detector(build(name))
    draw = np.random.default_rng(0)
    for seed in range(20):
        shape = tuple(int(n) for n in draw.integers(1, 65, 2))
        found = run(images([shape], (64, 64), seed=seed), [shape])
        assert all(np.isfinite(value).all() for value in found.values())
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("name", part(DETECTORS, ["retinanet"]))
def test_losses_of_all_kinds_of_pictures(name):
    """None, one, many objects; crowds; one-pixel boxes; and a batch without objects."""
    model = build(name)
    shapes = [(64, 64), (40, 57), (64, 64)]
    pictures, objects = images(shapes, (64, 64)), targets([4, 0, 1])
    objects["crowd"] = objects["crowd"].at[2, 0].set(True)
    objects["boxes"] = objects["boxes"].at[0, 0].set(jnp.array([3.0, 3.0, 4.0, 4.0]))
    found = losses(model, pictures, shapes, objects)
    assert set(found) == TERMS[name]
    for total, weight in found.values():
        assert np.isfinite(total) and total > 0 and weight > 0
        assert total.dtype == weight.dtype == jnp.float32
    empty = losses(model, pictures, shapes, targets([0, 0, 0]))
    for key, (total, weight) in empty.items():
        assert np.isfinite(total)
        if key in ("box", "proposal_box", "mask"):
            assert total == 0
        assert np.isfinite(weight)


def test_a_crowd_is_neither_positive_nor_negative():
    model = build("retinanet")
    shapes, objects = [(64, 64)], targets([1])
    objects["boxes"] = objects["boxes"].at[0, 0].set(jnp.array([0.0, 0.0, 64.0, 64.0]))
    pictures = images(shapes, (64, 64))
    plain = losses(model, pictures, shapes, targets([0]))
    objects["crowd"] = objects["crowd"].at[0, 0].set(True)
    crowd = losses(model, pictures, shapes, objects)
    assert crowd["box"] == (0, 0)
    assert crowd["classification"][0] < 0.6 * plain["classification"][0]


LOSSES = [("mask_rcnn", "l1"), ("faster_rcnn", "smooth_l1"), ("faster_rcnn", "giou")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "loss"), part(LOSSES, LOSSES[:1]))
def test_losses_of_boxes_have_gradients(name, loss):
    model = build(name, box_loss=loss, rpn_box_loss=loss, head_norm="group")
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    pictures, objects = images([(64, 64)] * 2, (64, 64)), targets([4, 2])

    @jax.jit
    def gradients(params):
        def loss(params):
            made = nnx.merge(graphdef, params, rest, copy=True)
            shapes = jnp.full((2, 2), 64, jnp.int32)
            found = made.losses(pictures, shapes, objects, rngs=nnx.Rngs(dropout=0))
            return sum(total / jnp.maximum(weight, 1) for total, weight in found.values())

        return jax.grad(loss)(params)

    found = flatten_names(nnx.to_pure_dict(gradients(params)))
    assert all(np.isfinite(gradient).all() for gradient in found.values())
    for path in (
        "backbone/stem/conv1/conv/kernel",
        "rpn/regress/kernel",
        "box_head/regress/kernel",
        *(("mask_head/double/kernel",) if name == "mask_rcnn" else ()),
    ):
        assert np.abs(found[path]).max() > 0, path


def test_bfloat16_gives_float32_detections():
    for name in ("retinanet", "mask_rcnn"):
        model = build(name, dtype="bfloat16")
        shapes = [(64, 64)]
        found = jax.eval_shape(detector(model)[0], images(shapes, (64, 64)), np.asarray(shapes))
        assert {str(value.dtype) for value in found.values()} == {"float32", "int32", "bool"}


@pytest.mark.parametrize("name", DETECTORS)
def test_summary_covers_all_parameters(name):
    model = nnx.eval_shape(lambda: build(name, head_norm="group"))
    rows = model.summary_rows(64, 64)
    assert model.macs(64, 64) == sum(row["macs"] for row in rows) > 0
    for path in flatten_names(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        assert sum((path + "/").startswith(f"{row['path']}/") for row in rows) == 1, path


@pytest.mark.parametrize("name", part(["retinanet", "mask_rcnn"], ["mask_rcnn"]))
def test_export_with_any_batch(name):
    graphdef, state = nnx.split(evaluation(build(name)))
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 64, 96, 3), jnp.float32)
    shapes = jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    run = jax.jit(lambda state, x, shapes: nnx.merge(graphdef, state).detect(x, shapes))
    exported = jax.export.export(run)(state, x, shapes)
    assert len(exported.out_avals) == (5 if name == "mask_rcnn" else 4)


def test_every_problem_is_named_at_once():
    with pytest.raises(ValueError) as caught:
        models.model_builder(
            "mask_rcnn",
            backbone=dict(name="resnet18", width=(8, 8, 8, 8)),
            box_loss="l3",
            rpn_positive_iou=0.2,
            proposals_after=(10,),
            anchor_ratios=(),
        )
    for text in (
        "no option 'width'. Did you mean 'widths'",
        "box_loss is 'l3'; allowed: l1, smooth_l1, giou",
        "rpn_negative_iou is 0.3; allowed: rpn_positive_iou (0.2) or less",
        "proposals_after is (10,); allowed: two positive integers",
        "anchor_ratios is ()",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(first_stage=4), "first_stage is 4; allowed: 1 to 3"),
        (dict(num_levels=1), "num_levels is 1; allowed: 2 or more"),
        (dict(backbone="segmenter"), "'segmenter' is no backbone"),
        (dict(backbone="retinanet"), "'retinanet' is no backbone"),
        (dict(backbone=dict(BACKBONE, num_classes=3)), "that of the whole model"),
        (dict(candidates=10**9), "candidates is 1000000000; allowed: 1000000 or less"),
        (dict(num_levels=10**9), "num_levels is 1000000000; allowed: 12 or less"),
        (dict(channels=10**9), "channels is 1000000000; allowed: 16384 or less"),
        (dict(anchor_octaves=10**9), "anchor_octaves is 1000000000; allowed: 64 or less"),
        (dict(num_convs=1.5), "num_convs is 1.5; allowed: 0 or a positive integer"),
        (dict(anchor_ratios=(1.0,) * 65), "allowed: one to 64 numbers from 0.01 to 100"),
        (dict(box_stds=(1e-40,) * 4), "allowed: four numbers from 0.0001 to 10000"),
    ],
)
def test_what_a_detector_refuses(changes, text):
    with pytest.raises(ValueError, match="allowed|backbone") as caught:
        build("retinanet", **changes)
    assert text in str(caught.value)
