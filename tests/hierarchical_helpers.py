"""Small hierarchical Transformers for tests."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models

SMALL = dict(
    blocks=(1, 2),
    widths=(8, 16),
    num_heads=(2, 4),
    mlp_ratios=(2, 2),
    attention="mhsa",
    stem=dict(name="conv", kernel_size=4),
    downsample=dict(name="conv", kernel_size=2),
    in_channels=1,
    image_size=(16, 16),
    num_classes=3,
)


def abstract(name, **overrides):
    return nnx.eval_shape(lambda: models.create_model(name, **overrides, rngs=nnx.Rngs(0)))


def abstract_small(**options):
    return abstract("swin_tiny", **{"drop_path_rate": 0.0, "family": None, **SMALL, **options})


def filled(model, seed=0):
    """The abstract model with random numbers everywhere, which is quicker than its initialisers and
    leaves no zeros.
    """
    random = np.random.default_rng(seed)
    graph, state = nnx.split(model)
    draw = lambda leaf: jnp.asarray(random.normal(0.1, 0.3, leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(draw, state))


def small(**options):
    return filled(abstract_small(**options))


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def once(function, *arguments):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*arguments)


def evaluation(model):
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
