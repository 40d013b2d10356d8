"""Losses and gradients of every segmentation head, detector and propagation as users run them: at
XLA's default level, weights and inputs as arguments, in float32 and in bfloat16.
"""

import functools

import detector_helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_matrix
import video_helpers
from drawn_weights import drawn
from flax import nnx
from small_backbones import FAMILIES

import models
from lambdanet.training.state import flatten_names

DRAW = np.random.default_rng(0)
SHAPES = ((40, 52), (64, 64))


def noise(*shape):
    return jnp.asarray(DRAW.standard_normal(shape), jnp.float32)


def of_maps(outputs):
    """A loss of logits."""
    return sum(jnp.mean(jnp.sin(y.astype(jnp.float32) + 1)) for y in jax.tree.leaves(outputs))


def of_losses(losses):
    return sum(jnp.mean(jnp.asarray(loss, jnp.float32)) for loss in jax.tree.leaves(losses))


def head(number, dtype):
    """Each on a backbone of another family."""
    name, family = list(segmentation_matrix.HEADS)[number], list(FAMILIES)[number % len(FAMILIES)]
    return segmentation_matrix.build(family, segmentation_matrix.HEADS[name], dtype=dtype)


def propagation(name, dtype):
    options = video_helpers.options(name) | {"dtype": dtype}
    return models.create_model("video_segmenter", **options, rngs=nnx.Rngs(0))


def clips(dtype):
    return models.create_model("small_i3d", num_classes=3, dtype=dtype, rngs=nnx.Rngs(0))


SIDE = segmentation_matrix.SIDE
FRAME, PAIRS = (video_helpers.SIDE, video_helpers.SIDE, 3), jnp.zeros(2, bool)
SEGMENT = lambda m, x, rngs: of_maps(m.outputs(x, rngs=rngs))  # noqa: E731
DETECT = lambda m, *given, rngs: of_losses(m.losses(*given, rngs=rngs))  # noqa: E731
CARRY = lambda m, *given, rngs: of_maps(m.clip_outputs(*given, rngs=rngs))  # noqa: E731
CLASSIFY = lambda m, x, rngs: of_maps(m(x, rngs=rngs))  # noqa: E731
PICTURES = (
    detector_helpers.images(SHAPES, (64, 64)),
    jnp.asarray(SHAPES, jnp.int32),
    detector_helpers.targets((2, 3)),
)
# Case -> (dtype -> model, loss of the model and inputs, inputs).
CASES = {
    **{
        name: (functools.partial(head, number), SEGMENT, (noise(2, SIDE, SIDE, 1),))
        for number, name in enumerate(segmentation_matrix.HEADS)
    },
    **{  # all that Faster R-CNN has is in Mask R-CNN
        name: (lambda dtype, name=name: detector_helpers.build(name, dtype=dtype), DETECT, PICTURES)
        for name in ("retinanet", "mask_rcnn")
    },
    **{
        name: (functools.partial(propagation, name), CARRY, (noise(2, 2, *FRAME), PAIRS))
        for name in video_helpers.PROPAGATIONS
        if name not in ("none", "copy", "flow_guided_aggregation")
    },
    "flow_guided_aggregation": (
        functools.partial(propagation, "flow_guided_aggregation"),
        CARRY,
        (noise(2, 3, *FRAME),),  # of many frames, not of pairs
    ),
    "clips": (clips, CLASSIFY, (noise(1, 4, 64, 64, 3),)),
}


def step(model, loss, inputs):
    """The loss and its gradients by path."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params, rest, *inputs):
        def of(params):
            made = nnx.merge(graphdef, params, rest, copy=True)
            return loss(made, *inputs, rngs=nnx.Rngs(dropout=0))

        return jax.value_and_grad(of)(params)

    value, found = run(params, rest, *inputs)
    return float(value), flatten_names(nnx.to_pure_dict(found))


@pytest.mark.parametrize("case", CASES)
def test_step(case):
    make, loss, inputs = CASES[case]
    values = []
    for dtype in ("float32", "bfloat16"):
        value, found = step(drawn(nnx.eval_shape(lambda d=dtype: make(d))), loss, inputs)
        assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in found.values()), dtype
        last = [g for path, g in found.items() if path.endswith(("classify/kernel", "fc/kernel"))]
        assert last and all(np.any(g) for g in last), dtype
        values.append(value)
    assert values[1] == pytest.approx(values[0], rel=0.05, abs=0.02)
