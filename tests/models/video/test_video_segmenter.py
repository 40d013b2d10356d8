"""Propagations in a segmenter: what they are equal to at the start, gradients, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from flax import nnx
from video_helpers import CLASSES, PROPAGATIONS, SIDE, builder

import models
from lambdanet.training.state import flatten_names, split_model
from models.video import FROZEN, Frame


def clips(count=2):
    images = np.random.default_rng(0).standard_normal((2, count, SIDE, SIDE, 3))
    return jnp.asarray(images, jnp.float32)


@pytest.mark.parametrize("name", PROPAGATIONS)
def test_shapes_of_all_and_what_the_summary_covers(name):
    model = nnx.eval_shape(lambda: builder(name)(rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    many = model.propagation.many
    frames = jax.ShapeDtypeStruct((2, 3 if many else 2, SIDE, SIDE, 3), jnp.float32)

    def run(state, frames):
        model = nnx.merge(graphdef, state)
        view = nnx.view(model, deterministic=True, use_running_average=True)
        first, second = frames[:, 0], frames[:, -1]
        key = view.key_frame(first)
        key = view.next_key(key, second)
        if many:
            key = jax.tree.map(lambda a: jnp.stack([a, a]), key)
        features = view.propagate(key, second)
        trained = model.clip_outputs(frames)["logits"]
        return features, view.decode(features, (SIDE, SIDE)), trained

    features, logits, trained = jax.eval_shape(run, state, frames)
    grid = SIDE // model.feature_info[-1]["stride"]
    assert features.shape == (2, grid, grid, 6)
    assert logits.shape == (2, SIDE, SIDE, CLASSES) and trained.shape == (2, grid, grid, CLASSES)
    rows = [row["path"] for row in model.summary_rows(SIDE, SIDE)]
    for path in flatten_names(split_model(model)[1]):
        assert sum(f"{path}/".startswith(f"{row}/") for row in rows) == 1, path


# tests/models/video/test_video_detector.py has the other.
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", part(["deep_feature_flow", "neighborhood_propagation"], ["neighborhood_propagation"])
)
def test_every_parameter_learns_from_pairs(name):
    model = builder(name)(rngs=nnx.Rngs(0))
    graphdef, params, stats = split_model(model)
    frames = clips()

    @jax.jit
    def gradients(params, stats, same):
        def loss(params):
            logits = nnx.merge(graphdef, params, stats).clip_outputs(frames, same)["logits"]
            return jnp.sum(jax.nn.log_softmax(logits)[..., 0])

        return jax.grad(loss)(params)

    found = flatten_names(gradients(params, stats, jnp.zeros(2, bool)))
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    still = [path for path, leaf in found.items() if not np.any(leaf)]
    assert still == [], still
    alike = flatten_names(gradients(params, stats, jnp.ones(2, bool)))
    moved = [path for path, leaf in alike.items() if "propagation" in path and np.any(leaf)]
    assert moved == [] and any(np.any(leaf) for leaf in alike.values())


def test_the_frozen_bias_is_that_of_the_scale_map():
    from lambdanet.training.optimizer import match_mask

    model = nnx.eval_shape(lambda: builder("deep_feature_flow")(rngs=nnx.Rngs(0)))
    mask = flatten_names(match_mask(FROZEN, split_model(model)[1]))
    assert [path for path, frozen in mask.items() if frozen] == ["propagation/flow_net/scale/bias"]


@pytest.mark.exhaustive
def test_recursion_keeps_what_agrees_and_updates_what_is_chosen():
    """Without motion and with equal embeddings both frames count half; a low quality map takes the
    frame's own features in.
    """
    model = builder("sparse_recursion")(rngs=nnx.Rngs(0)).propagation
    for layer in (model.flow_net.flow, model.flow_net.quality, model.embed.layers[-1]):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    model.embed.layers[-1].bias[...] = jnp.ones(6)
    image, rng = clips()[:, 0], np.random.default_rng(1)
    old, new = (
        Frame(image, None, jnp.asarray(rng.standard_normal((2, 4, 4, 6)), jnp.float32))
        for _ in range(2)
    )
    half = (old.features + new.features) / 2
    np.testing.assert_allclose(model.renew(old, new).features, half, atol=1e-6)
    for quality, expected in ((-1.0, half), (1.0, old.features)):
        model.flow_net.quality.bias[...] = jnp.full(1, quality)
        np.testing.assert_allclose(model(old, new), expected, atol=1e-6)
        assert model.becomes_key(old, new).tolist() == [quality < 0] * 2


def test_wrong_options_are_named_together():
    with pytest.raises(ValueError) as raised:
        models.model_builder(
            "video_segmenter",
            backbone="resnet18",
            head="upernet",
            propagation=dict(name="neighborhood_propagation", radius=4, ring=2),
            low_stage=0,
        )
    for text in ("low_stage is 0", "reach 4 cells, radius is 4", "which reads several maps"):
        assert text in str(raised.value)


def test_propagations_without_options_say_so():
    with pytest.raises(ValueError, match=r"'copy' has no option 'radius'\. Options: none"):
        models.model_builder("video_segmenter", propagation=dict(name="copy", radius=4))


def test_wrong_clips_are_refused():
    with pytest.raises(ValueError, match="clips of 3 frames; allowed: pairs"):
        nnx.eval_shape(lambda: builder("copy")(rngs=nnx.Rngs(0))).clip_outputs(clips(3))
