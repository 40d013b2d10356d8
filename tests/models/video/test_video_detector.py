"""Propagations in a detector: what they are equal to, gradients, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from detector_helpers import DETECTORS, evaluation, images, loud, targets
from flax import nnx

import models
from lambdanet.interop import files
from lambdanet.training import weights
from lambdanet.training.optimizer import match_mask
from lambdanet.training.state import flatten_names, split_model
from models.video import FROZEN

FLOW = dict(width=1 / 32, levels=3, half=False)
EMBED = dict(hidden_channels=4, embedding_channels=6)
PROPAGATIONS = {
    "none": {},
    "copy": {},
    "deep_feature_flow": FLOW,
    "flow_guided_aggregation": {**FLOW, **EMBED},
    "sparse_recursion": {**FLOW, **EMBED},
    "neighborhood_propagation": dict(embedding_channels=6, radius=1, ring=1),
}
CANVAS, SHAPES = (64, 64), ((64, 64), (48, 40))


def spec(detector, **changes):
    own = {k: v for k, v in DETECTORS[detector].items() if k not in ("num_classes", "image_size")}
    own["backbone"] = {**own["backbone"], "zero_init_last": False}
    return {"name": detector, **own, "first_stage": 3, "num_levels": 2, **changes}


def builder(propagation, kind="retinanet", **options):
    return models.model_builder(
        "video_detector",
        **{
            "detector": spec(kind),
            "propagation": dict(name=propagation, **PROPAGATIONS[propagation]),
            "num_classes": 3,
            "image_size": CANVAS,
            **options,
        },
    )


def clips(count=2, seed=0):
    return jnp.stack([images(SHAPES, CANVAS, seed=seed + t) for t in range(count)], axis=1)


def shapes():
    return jnp.asarray(SHAPES, jnp.int32)


@pytest.mark.parametrize(
    "name", part(PROPAGATIONS, ["deep_feature_flow", "neighborhood_propagation"])
)
def test_shapes_of_all_and_what_the_summary_covers(name):
    model = nnx.eval_shape(lambda: builder(name)(rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    many = model.propagation.many
    frames = jax.ShapeDtypeStruct((2, 3 if many else 2, *CANVAS, 3), jnp.float32)

    def run(state, frames):
        model = nnx.merge(graphdef, state)
        view = evaluation(model)
        key = view.next_key(view.key_frame(frames[:, 0]), frames[:, -1])
        if many:
            key = jax.tree.map(lambda a: jnp.stack([a, a]), key)
        features = view.propagate(key, frames[:, -1])
        found = view.detections(features, shapes(), CANVAS)
        learnt = model.clip_losses(frames, shapes(), targets([2, 0]), rngs=nnx.Rngs(0))
        return features, found, learnt, view.detect(frames[:, 0], shapes())

    features, found, learnt, alone = jax.eval_shape(run, state, frames)
    grid = CANVAS[0] // model.feature_info[-1]["stride"]
    assert features.shape == (2, grid, grid, 8)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
        lambda a: (a.shape, a.dtype), alone
    )
    assert set(learnt) == {"classification", "box"}
    rows = [row["path"] for row in model.summary_rows(*CANVAS)]
    for path in flatten_names(split_model(model)[1]):
        assert sum(f"{path}/".startswith(f"{row}/") for row in rows) == 1, path


def carried_and_alone(model, frames):
    """Detections of the second frame by way of the first, and of the second alone."""
    graphdef, state = nnx.split(evaluation(model))

    @jax.jit
    def run(state, first, second):
        view = nnx.merge(graphdef, state)
        features = view.propagate(view.key_frame(first), second)
        return view.detections(features, shapes(), CANVAS), view.detect(second, shapes())

    return run(state, frames[:, 0], frames[:, 1])


def assert_same(carried, alone):
    assert set(carried) == set(alone) and np.any(alone["valid"])
    for key in alone:
        np.testing.assert_allclose(carried[key], alone[key], rtol=1e-5, atol=1e-4, err_msg=key)


ALIKE = [spec("retinanet", anchor_style="torchvision"), spec("faster_rcnn")]


@pytest.mark.parametrize("detector", part(ALIKE, ALIKE[:1]))
def test_a_frame_that_is_its_own_key_frame_is_what_the_detector_sees(detector):
    """Anchors of torchvision's style depend on the canvas."""
    model = loud(builder("copy", detector=detector)(rngs=nnx.Rngs(0)))
    frames, objects = clips(1).repeat(2, axis=1), targets([3, 1])
    assert_same(*carried_and_alone(model, frames))
    graphdef, state = nnx.split(model)

    @jax.jit
    def losses(state, frames):
        one, other = (nnx.merge(graphdef, state, copy=True) for _ in range(2))
        return (
            one.clip_losses(frames, shapes(), objects, rngs=nnx.Rngs(dropout=1)),
            other.losses(frames[:, 1], shapes(), objects, rngs=nnx.Rngs(dropout=1)),
        )

    carried, alone = losses(state, frames)
    assert set(carried) == set(alone)
    for key in alone:
        np.testing.assert_allclose(carried[key], alone[key], rtol=1e-5)


def test_a_flow_of_nothing_carries_the_key_frames_detections():
    model = loud(builder("deep_feature_flow")(rngs=nnx.Rngs(0)))
    last, scale = model.propagation.flow_net.flow, model.propagation.flow_net.scale
    for layer in (last, scale):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    frames = clips()
    carried, _ = carried_and_alone(model, frames)
    _, alone = carried_and_alone(model, frames[:, ::-1])  # of the first frame
    assert_same(carried, alone)


LEARNT = [
    (name, detector)
    for name in ("deep_feature_flow", "neighborhood_propagation")
    for detector in ("retinanet", "faster_rcnn")
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "detector"), part(LEARNT, LEARNT[:1]))
def test_pairs_teach_backbone_heads_and_propagation(name, detector):
    model = builder(name, detector)(rngs=nnx.Rngs(0))
    graphdef, params, stats = split_model(model)
    frames = clips()

    @jax.jit
    def gradients(params, stats, same):
        def loss(params):
            made = nnx.merge(graphdef, params, stats)
            found = made.clip_losses(
                frames, shapes(), targets([3, 2]), same, rngs=nnx.Rngs(dropout=0)
            )
            return sum(total for total, _ in found.values())

        return jax.grad(loss)(params)

    found = flatten_names(gradients(params, stats, jnp.zeros(2, bool)))
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    moved = {path.split("/")[0] for path, leaf in found.items() if np.any(leaf)}
    assert moved == {"detector", "propagation"}
    still = [p for p, leaf in found.items() if not np.any(leaf) and "propagation" in p]
    assert still == [], still
    assert all(np.any(found[p]) for p in found if p.startswith("detector/backbone/stages/0"))
    alike = flatten_names(gradients(params, stats, jnp.ones(2, bool)))
    assert not any(np.any(leaf) for path, leaf in alike.items() if "propagation" in path)
    assert any(np.any(leaf) for leaf in alike.values())


def test_paths_of_what_is_frozen_and_of_what_depends_on_the_classes():
    model = nnx.eval_shape(lambda: builder("deep_feature_flow")(rngs=nnx.Rngs(0)))
    params = split_model(model)[1]
    mask = flatten_names(match_mask(FROZEN, params))
    assert [path for path, frozen in mask.items() if frozen] == ["propagation/flow_net/scale/bias"]
    for path in model.classifier:
        assert any(name.startswith(f"{path}/") for name in mask), path


def test_what_is_wrong_with_the_options_is_said_at_once():
    with pytest.raises(ValueError) as raised:
        models.model_builder(
            "video_detector",
            detector=spec("retinanet", first_stage=2),
            propagation=dict(name="neighborhood_propagation", radius=4, ring=2),
            low_stage=0,
        )
    for text in (
        "low_stage is 0",
        "reach 4 cells, radius is 4",
        "detector: first_stage is 2, so it reads 2 of the backbone's maps; allowed: 3, the last",
    ):
        assert text in str(raised.value)


@pytest.mark.parametrize(
    ("detector", "text"),
    [
        ("resnet18", "'resnet18' is no detector of images; allowed: 'retinanet'"),
        ("video_detector", "'video_detector' is no detector of images"),
        ("retinanett", "Did you mean 'retinanet'"),
        (7, "detector is 7; allowed: a name, or a mapping with 'name'"),
        (spec("retinanet", num_classes=4), "'num_classes' is that of the whole model"),
        (spec("retinanet", candidates=0), "candidates is 0"),
        ("small_retinanet", "first_stage is 2, so it reads 3 of the backbone's maps; allowed: 4"),
    ],
)
def test_other_detectors_are_refused(detector, text):
    with pytest.raises(ValueError, match=text):
        builder("copy", detector=detector)


def test_a_stage_beyond_the_backbone_is_refused():
    with pytest.raises(ValueError, match="low_stage is 4; allowed: 1 to 3"):
        nnx.eval_shape(lambda: builder("copy", low_stage=4)(rngs=nnx.Rngs(0)))


def test_wrong_clips_are_refused():
    model = nnx.eval_shape(lambda: builder("copy")(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="clips of 3 frames; allowed: pairs"):
        model.clip_losses(clips(3), shapes(), targets([1, 1]), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="targets have no classes"):
        objects = {k: v for k, v in targets([1, 1]).items() if k != "classes"}
        model.clip_losses(clips(), shapes(), objects, rngs=nnx.Rngs(0))


def test_the_description_names_the_parts():
    text = models.describe("video_detector")
    assert "detector: 'retinanet'" in text and "first_stage: int = 4" in text
    assert "propagation: 'deep_feature_flow' of copy, deep_feature_flow" in text
    assert "  num_classes:" not in text.split("detector: 'retinanet'")[1]


def test_weights_of_a_backbone_alone_are_taken(tmp_path):
    model = builder("copy")(rngs=nnx.Rngs(0))
    params, stats = split_model(model)[1:]
    of_backbone = split_model(model.detector.backbone)[1:]
    stored = {n: a + 1 for part in of_backbone for n, a in flatten_names(part).items()}
    path = tmp_path / "backbone.safetensors"
    files.save_safetensors(path, stored, files.export_metadata({"name": "resnet18"}))
    read = weights.read_weights(path, model, params, stats, head="backbone")
    for found, before in zip(read, (params, stats), strict=True):
        for name, leaf in flatten_names(before).items():
            expected = leaf + name.startswith("detector/backbone/")
            np.testing.assert_array_equal(flatten_names(found)[name], expected, err_msg=name)
