"""RetinaNet and Mask R-CNN on every family of backbones, at a size that nothing divides; the
suite has lambda layers and windows, `make exhaustive` all. Every family's
maps at sizes that nothing divides are in tests/models/test_dense_backbones.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_backbones
from covering import part
from detector_helpers import targets
from flax import nnx

import models
from lambdanet.training.state import flatten_names, split_model

SIZE, CLASSES = (22, 35), 3
FAMILIES = {
    **small_backbones.FAMILIES,
    **{
        f"resnet50 with {name}": dict(
            name="resnet50",
            blocks=(1, 1, 1),
            widths=(4, 8, 8),
            context=dict(name=name, after="stage3.1"),
        )
        for name in ("nonlocal", "rcca", "cgnl")
    },
}
DETECTORS = {
    "retinanet": dict(num_convs=1, candidates=20, before_nms=20),
    "mask_rcnn": dict(
        rpn_samples=16,
        proposals_before=(20, 20),
        proposals_after=(10, 10),
        fc_channels=8,
        roi_samples=8,
        mask_convs=1,
        mask_channels=8,
        before_nms=20,
    ),
}


def build(family, detector):
    backbone = {"name": family, **FAMILIES[family]}
    return models.create_model(
        detector,
        backbone=backbone,
        channels=8,
        first_stage=1,
        num_levels=4,
        num_classes=CLASSES,
        in_channels=1,
        image_size=SIZE,
        max_detections=5,
        rngs=nnx.Rngs(0),
        **DETECTORS[detector],
    )


def step(family, detector):
    """The training view and its abstract weights, and (params, stats) to loss and gradients by
    path.
    """
    make = functools.partial(build, family, detector)
    model = nnx.eval_shape(make)
    view = nnx.view(model, deterministic=False, use_running_average=False, raise_if_not_found=False)
    graphdef, params, stats = split_model(view)
    draw = np.random.default_rng(0)
    pictures = jnp.asarray(draw.standard_normal((2, *SIZE, 1)), jnp.float32)
    shapes = jnp.asarray([SIZE, (17, 20)], jnp.int32)
    objects = targets([3, 1], side=18, classes=CLASSES)

    def run(params, stats):
        def loss(params):
            made = nnx.merge(graphdef, params, stats, copy=True)
            found = made.losses(pictures, shapes, objects, rngs=nnx.Rngs(dropout=0))
            return sum(total / jnp.maximum(weight, 1) for total, weight in found.values())

        value, gradients = jax.value_and_grad(loss)(params)
        return value, flatten_names(gradients)

    return model, params, stats, run


PAIRS = [(family, detector) for family in FAMILIES for detector in DETECTORS]
ALWAYS = [("lambda_resnet_digits", "mask_rcnn"), ("swin_digits", "retinanet")]


@pytest.mark.parametrize(("family", "detector"), part(PAIRS, ALWAYS))
def test_every_detector_on_every_family(family, detector):
    """A step and its detections, with shapes alone."""
    model, params, stats, run = step(family, detector)
    value, found = jax.eval_shape(run, params, stats)
    assert value.shape == () and found
    view = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, params, stats = split_model(view)
    x = jax.ShapeDtypeStruct((2, *SIZE, 1), jnp.float32)
    boxes = jax.eval_shape(lambda p, s, x: nnx.merge(graphdef, p, s)(x), params, stats, x)["boxes"]
    assert boxes.shape == (2, 5, 4)


# The others run likewise; these are one with convolutions, with lambda layers, and with windows.
STEPS = ("resnet50 with rcca", "lambda_resnet_digits", "slide_swin_digits")


def drawn(tree):
    """Random weights for abstract ones, without a program that initialises them."""
    draw = np.random.default_rng(0)

    def one(path, leaf):
        own = str(path[-1].key)
        if own in ("scale", "var"):
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(0.1 * draw.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, tree)


# The others, and the gradients of Mask R-CNN, are in `make exhaustive`.
@pytest.mark.parametrize("number", part(range(len(STEPS)), [2]))
def test_steps(number):
    """Real gradients, which reach the backbone."""
    detector = list(DETECTORS)[number % len(DETECTORS)]
    _, params, stats, run = step(STEPS[number], detector)
    value, found = jax.jit(run)(drawn(params), drawn(stats))
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in found.values())
    assert any(g.any() for path, g in found.items() if path.startswith("backbone/"))
    assert found["neck/laterals/0/kernel"].any()
