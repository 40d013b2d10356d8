"""Segmenters of every family with every head, small: what the tests of them are made of."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from small_backbones import FAMILIES

import models
from lambdanet.training.state import flatten_names
from models.segmentation import registry

SIDE, CLASSES = 16, 4
HEADS = {
    **{name: dict(name=name, channels=8) for name in registry.names() if name != "ocnet"},
    "context": dict(name="context", channels=8, block=dict(name="mhsa", num_heads=2)),
    "isa": dict(name="isa", channels=8, group_size=(2, 2)),
    **{
        f"ocnet_{variant}": dict(name="ocnet", channels=8, variant=variant)
        for variant in ("base", "pyramid", "asp")
    },
}
# Options for maps of 8 x 8, where the defaults are for larger ones.
BLOCKS = {
    "cross_shaped_window": dict(stripe_width=2),
    "halo_attention": dict(block_size=4, halo_size=1),
    "lambda": dict(key_depth=4, scope=3),
    "neighborhood": dict(kernel_size=3),
    "shifted_window": dict(window_size=4),
    "spatial_reduction": dict(sr_ratio=2),
    "window": dict(window_size=4),
}


def build(family, head, **options):
    backbone = dict(name=family, **FAMILIES[family])
    return models.create_model(
        "segmenter",
        backbone=backbone,
        head=head,
        auxiliary=dict(name="fcn", stage=1, channels=8),
        num_classes=CLASSES,
        in_channels=1,
        image_size=(SIDE, SIDE),
        rngs=nnx.Rngs(0),
        **options,
    )


def evaluation(module):
    return nnx.view(module, deterministic=True, use_running_average=True, raise_if_not_found=False)


def gradients(make):
    """Loss and gradients of one training step, by path; a function without arguments."""
    draw = np.random.default_rng(0)
    image = draw.standard_normal((2, SIDE, SIDE, 1)).astype(np.float32)

    def run():
        graphdef, params, rest = nnx.split(make(), nnx.Param, ...)

        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            outputs = model.outputs(jnp.asarray(image), rngs=nnx.Rngs(dropout=0))
            return sum(jnp.mean(jnp.sin(y + 1)) for y in outputs.values())

        value, found = jax.value_and_grad(loss)(params)
        return value, flatten_names(nnx.to_pure_dict(found))

    return run
