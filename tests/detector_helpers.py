"""What the tests of detectors share: small ones, pictures and objects."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models

BACKBONE = dict(name="resnet18", stem="strided", blocks=(1, 1, 1), widths=(8, 8, 8))
COMMON = dict(
    backbone=BACKBONE, channels=8, first_stage=2, num_levels=3, num_classes=3, image_size=(64, 64)
)
RETINANET = dict(num_convs=1, candidates=50, before_nms=100, max_detections=20, **COMMON)
RCNN = dict(
    rpn_samples=32,
    proposals_before=(60, 40),
    proposals_after=(30, 20),
    fc_channels=16,
    roi_samples=16,
    mask_convs=1,
    mask_channels=8,
    before_nms=60,
    max_detections=10,
    **COMMON,
)
DETECTORS = {"retinanet": RETINANET, "faster_rcnn": RCNN, "mask_rcnn": RCNN}


_BUILT = {}


def build(name, **changes):
    """A detector of its own; initialised once for all tests of a process."""

    def make():
        return models.create_model(name, **{**DETECTORS[name], **changes}, rngs=nnx.Rngs(0))

    if isinstance(jnp.zeros(()), jax.core.Tracer):  # of shapes alone
        return make()
    key = name, repr(sorted(changes.items()))
    if key not in _BUILT:
        _BUILT[key] = make()
    return nnx.clone(_BUILT[key])


def evaluation(model):
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def loud(model, factor=40.0):
    """Last layers that say more than that nothing is there."""
    last = ("classify", "regress", "objectness")
    for path, module in nnx.iter_modules(model):
        if path and path[-1] in last and path[0] != "backbone":
            module.kernel[...] = module.kernel[...] * factor
    return model


def detector(model):
    """Its `detect`, compiled once for every canvas."""
    graphdef, state = nnx.split(evaluation(model))
    run = jax.jit(lambda state, images, shapes: nnx.merge(graphdef, state).detect(images, shapes))
    return lambda images, shapes: run(state, images, jnp.asarray(shapes, jnp.int32)), run


def images(shapes, canvas, channels=3, seed=0):
    """Random pictures at the top left of canvases of zeros."""
    draw = np.random.default_rng(seed)
    found = np.zeros((len(shapes), *canvas, channels), np.float32)
    for image, (h, w) in zip(found, shapes, strict=True):
        image[:h, :w] = draw.standard_normal((h, w, channels))
    return jnp.asarray(found)


def targets(counts, most=4, side=48, classes=3, mask_side=28, seed=0):
    """So many random objects of every picture."""
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, side / 2, (len(counts), most, 2))
    boxes = np.concatenate([corner, corner + draw.uniform(8, side / 2, corner.shape)], -1)
    valid = np.arange(most) < np.asarray(counts)[:, None]
    return dict(
        boxes=jnp.asarray(boxes * valid[..., None], jnp.float32),
        classes=jnp.asarray(draw.integers(0, classes, valid.shape), jnp.int32),
        valid=jnp.asarray(valid),
        crowd=jnp.zeros(valid.shape, bool),
        masks=jnp.asarray(draw.integers(0, 2, (*valid.shape, mask_side, mask_side)), jnp.uint8),
    )


def losses(model, pictures, shapes, objects, key=0):
    """Its losses in the training view, compiled."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, pictures, shapes, objects):
        made = nnx.merge(graphdef, state, copy=True)
        return made.losses(pictures, shapes, objects, rngs=nnx.Rngs(dropout=key))

    return run(state, pictures, jnp.asarray(shapes, jnp.int32), objects)
