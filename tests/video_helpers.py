"""A small segmenter and a small detector of videos with any propagation, for the tests of what is
built on them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from detector_helpers import RETINANET, evaluation
from flax import nnx

import models

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
SIDE, CLASSES = 16, 8


def options(name, *, widths=(4, 6), **own):
    """Options of a small `video_segmenter`; `own` are options of the propagation."""
    return dict(
        backbone=dict(
            name="resnet18", blocks=(1, 1), widths=widths, stem="strided", zero_init_last=False
        ),
        head=dict(name="fcn", channels=4, dropout=0.0),
        propagation=dict(name=name, **PROPAGATIONS[name] | own),
        num_classes=CLASSES,
        image_size=(SIDE, SIDE),
    )


def builder(name, **given):
    """Builds that segmenter."""
    return models.model_builder("video_segmenter", **options(name, **given))


def detector_options(name):
    """Options of a small `video_detector`, whose pictures have 64 x 64 pixels."""
    own = {k: v for k, v in RETINANET.items() if k not in ("num_classes", "image_size")}
    own |= dict(first_stage=3, num_levels=2)
    return dict(
        detector=dict(name="retinanet", **own),
        propagation=dict(name=name, **PROPAGATIONS[name]),
        num_classes=3,
        image_size=(64, 64),
    )


def moved(model):
    """Returns the evaluation view of a model whose parameters are all far from where they start,
    where much of a propagation does nothing.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng(1)
    params = jax.tree.map(  # added by NumPy, which compiles nothing
        lambda a: jnp.asarray(np.asarray(a) + 0.3 * rng.standard_normal(a.shape).astype(a.dtype)),
        params,
    )
    model = nnx.merge(graphdef, params, rest)
    if hasattr(model.propagation, "flow_net"):  # or all of it points out of the map
        model.propagation.flow_net.flow.kernel[...] *= 0.02
        model.propagation.flow_net.flow.bias[...] *= 0.02
    return evaluation(model)


def moved_segmenter(name, **given):
    """Returns such a small `video_segmenter`."""
    model = moved(builder(name, **given)(rngs=nnx.Rngs(0)))
    model.head.classify.bias[...] = 0.0  # or one class is everywhere
    return model


def moved_detector(name):
    """Returns such a small `video_detector`."""
    model = moved(models.create_model("video_detector", **detector_options(name), rngs=nnx.Rngs(0)))
    # Or boxes are e^4 as large as anchors, cut to the picture, and so is the rounding of offsets.
    model.detector.head.regress.kernel[...] *= 0.02
    return model
