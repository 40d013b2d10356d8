"""Every block, backbone and head as users run it: compiled at XLA's default level, weights and
inputs as arguments, forward and gradient in the training view, in float32 and in bfloat16.

What is asked for. In float32: the values that the program gives when compiled without
optimisation, which the rest of the suite checks. In bfloat16: an error no larger than rounding
makes it. The unit is what rounding the weights and inputs to bfloat16 changes when everything else
is float32; a program of n roundings, each of that size and independent of the others, is off by
sqrt(n) of it. n is counted in the program: its operations with a bfloat16 result. Errors are norms
over the output and over the gradients of all weights and inputs, relative to the norm of what they
are errors of; a gradient that is zero in exact arithmetic is thus measured beside the others.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from lambdanet.attention import create_attention, kind, list_attention
from lambdanet.training.state import split_model
from models import create_model, list_models
from models.segmentation import CrissCrossHead

DIM, SIZE, SIDE, BATCH = 16, (5, 7), 64, 8
SAME = 1e-4  # float32 at both levels: the rounding of sums in another order
NARROW = dict(blocks=(1, 1, 1, 1), widths=(8, 16, 24, 32))
# One per block type and stem; what they put between their convolutions is among the blocks.
RESNETS = {
    "resnet18": NARROW,
    "resnet50": NARROW,
    "se_resnet50": NARROW,
    "lambda_resnet50": NARROW,
    "lambda_resnet26t": NARROW,
    "lambda_resnet26rpt_256": NARROW,
    "resnet_rs50": NARROW,
    "bot_resnet50": NARROW,
}
DIGITS = {name: {} for name in list_models("*_digits")}


def make_block(name, dtype):
    return create_attention(name, DIM, size=SIZE, dtype=dtype, rngs=nnx.Rngs(0))


def make_head(name, dtype):
    class OneMap(CrissCrossHead):
        def __call__(self, x, *, rngs=None):
            return super().__call__([x], rngs=rngs)

    info = [dict(channels=DIM, stride=8)]
    return OneMap(info, 3, channels=8, dropout=0.0, dtype=dtype, rngs=nnx.Rngs(0))


def make_backbone(name, dtype):
    options = {**RESNETS, **DIGITS}[name]
    if name in RESNETS:
        options = dict(options, image_size=(SIDE, SIDE))
    options = dict(options, num_classes=5, dtype=jnp.dtype(dtype).name)
    return create_model(name, **options, rngs=nnx.Rngs(0))


# A carried block hands logits to the next layer; lavit_digits is made of it.
CASES = {
    **{name: (make_block, (*SIZE, DIM)) for name in list_attention() if kind(name) != "carried"},
    "rcca_head": (make_head, (*SIZE, DIM)),
    **{name: (make_backbone, (SIDE, SIDE, 3)) for name in RESNETS},
    **{name: (make_backbone, (8, 8, 1)) for name in DIGITS},
}


def randomise(module):
    """Draws every weight anew: nothing is switched off, no attention uniform, whose answer would be
    one constant for a batch norm to divide by its deviation.
    """
    rng = np.random.default_rng(1)
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        shape = variable[...].shape
        if len(shape) > 1:
            value = rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))
        else:
            value = rng.normal(0.5, 0.3, shape)
        variable.set_value(jnp.asarray(value, jnp.float32))
    return module


def program(make, dtype):
    """(params, stats, x, cotangent) -> (output, gradients of params and x), and the arguments'
    params and stats.
    """
    graphdef, params, stats = split_model(randomise(make(dtype)))

    def run(params, stats, x, cotangent):
        def loss(params, x):
            module = nnx.merge(graphdef, params, stats)
            y = module(x.astype(dtype), rngs=nnx.Rngs(dropout=0)).astype(jnp.float32)
            return jnp.sum(y * cotangent), y

        gradients, y = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return y, gradients

    return run, params, stats


def roundings(jaxpr) -> int:
    """Operations with a bfloat16 result; those of a loop count once."""
    return sum(
        any(variable.aval.dtype == jnp.bfloat16 for variable in equation.outvars)
        + sum(roundings(inner) for inner in jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )


def error(found, exact) -> float:
    """Norm of the difference over all arrays, relative to the norm of what is right."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    squares = [
        (np.sum((np.float64(f) - np.float64(e)) ** 2), np.sum(np.float64(e) ** 2)) for f, e in pairs
    ]
    difference, size = np.sqrt(np.sum(squares, 0))
    assert size > 0
    return difference / size


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradient(name):
    make, shape = CASES[name]
    make = functools.partial(make, name)
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.standard_normal((BATCH, *shape)), jnp.float32)
    run, params, stats = program(make, jnp.float32)
    shape_of_y = jax.eval_shape(run, params, stats, x, 0.0)[0]
    cotangent = jnp.asarray(draw.standard_normal(shape_of_y.shape), jnp.float32)
    arguments = params, stats, x, cotangent
    users = jax.jit(run)
    exact = users(*arguments)
    plain = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(*arguments)
    for what, found, expected in zip(("output", "gradients"), exact, plain, strict=True):
        assert error(found, expected) < SAME, what

    narrow = program(make, jnp.bfloat16)[0]
    found = jax.jit(narrow)(*arguments)
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(a.dtype), arguments)
    unit = users(*rounded)
    allowed = math.sqrt(roundings(jax.make_jaxpr(narrow)(*arguments).jaxpr))
    for what, ours, one, theirs in zip(("output", "gradients"), found, unit, exact, strict=True):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours)), what
        assert error(ours, theirs) < allowed * error(one, theirs), what
