"""What detectors are called with is checked by shape and type before anything runs."""

import jax
import jax.numpy as jnp
import pytest
from detector_helpers import build
from flax import nnx

SHAPES = jnp.array([[64, 64], [30, 50]])
TARGETS = dict(
    boxes=jnp.zeros((2, 3, 4)),
    classes=jnp.zeros((2, 3), jnp.int32),
    valid=jnp.zeros((2, 3), bool),
    crowd=jnp.zeros((2, 3), bool),
    masks=jnp.zeros((2, 3, 8, 8), jnp.uint8),
)


@pytest.fixture(scope="module")
def parts():
    return {name: nnx.split(nnx.eval_shape(lambda n=name: build(n))) for name in KINDS}


KINDS = ("retinanet", "mask_rcnn")


def losses(parts, name, changes, images=None, shapes=SHAPES):
    graphdef, state = parts[name]
    images = jnp.zeros((2, 64, 64, 3)) if images is None else images
    targets = {key: value for key, value in {**TARGETS, **changes}.items() if value is not None}

    def run(state):
        return nnx.merge(graphdef, state).losses(images, shapes, targets, rngs=nnx.Rngs(0))

    return jax.eval_shape(run, state)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(crowd=None, valid=None), "targets have no valid, crowd; needed are boxes, classes"),
        (
            dict(boxes=jnp.zeros((2, 3, 5))),
            "boxes is float32 of shape (2, 3, 5); expected (2, 3, 4)",
        ),
        (
            dict(classes=jnp.zeros((2, 3))),
            "classes is float32 of shape (2, 3); expected (2, 3), int",
        ),
        (dict(classes=jnp.zeros((2, 4), int)), "of shape (2, 4); expected (2, 3), integers"),
        (
            dict(crowd=jnp.zeros((2, 3), int)),
            "crowd is int32 of shape (2, 3); expected (2, 3), bool",
        ),
        (
            dict(valid=jnp.zeros(3, bool)),
            "valid is bool of shape (3,); expected (2, objects), bool",
        ),
        ({k: v[:1] for k, v in TARGETS.items()}, "expected (2, 3), bool"),
    ],
)
def test_targets_that_do_not_fit(parts, name, changes, text):
    with pytest.raises(ValueError, match="targets") as caught:
        losses(parts, name, changes)
    assert text in str(caught.value)


def test_masks_are_checked_where_they_are_read(parts):
    for masks, text in (
        (None, "targets have no masks"),
        (jnp.zeros((2, 3)), "masks have shape (2, 3); expected (2, 3, s, s)"),
        (jnp.zeros((2, 3, 8, 9)), "masks have shape (2, 3, 8, 9)"),
    ):
        with pytest.raises(ValueError, match="targets") as caught:
            losses(parts, "mask_rcnn", dict(masks=masks))
        assert text in str(caught.value)
        assert losses(parts, "retinanet", dict(masks=masks)).keys() == {"box", "classification"}


def test_room_for_no_object_is_no_objects(parts):
    for name in KINDS:
        found = losses(parts, name, {key: value[:, :0] for key, value in TARGETS.items()})
        assert found.keys() == losses(parts, name, {}).keys()


@pytest.mark.parametrize("name", KINDS)
def test_pictures_that_do_not_fit(parts, name):
    graphdef, state = parts[name]
    for images, shapes, text in (
        (jnp.zeros((2, 64, 64, 3)), SHAPES[:1], "have shape (1, 2); expected (2, 2): height and"),
        (jnp.zeros((2, 64, 64, 3)), jnp.ones((2, 3), int), "image_shapes have shape (2, 3)"),
        (jnp.zeros((2, 64, 64, 3)), SHAPES[0], "image_shapes have shape (2,)"),
        (jnp.zeros((0, 64, 64, 3)), SHAPES[:0], "shape (0, 64, 64, 3); expected one picture or"),
        (jnp.zeros((2, 64, 64, 1)), SHAPES, "expected [batch, height, width, 3]"),
    ):
        with pytest.raises(ValueError, match="expected") as caught:
            losses(parts, name, {}, images, shapes)
        assert text in str(caught.value)
        with pytest.raises(ValueError, match="expected") as caught:
            jax.eval_shape(lambda s, i=images, n=shapes: nnx.merge(graphdef, s).detect(i, n), state)
        assert text in str(caught.value)
