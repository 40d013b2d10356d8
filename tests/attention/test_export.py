"""Every block exports with an open batch: nothing in it may ask how many samples there are."""

import functools

import jax
import numpy as np
import pytest
from covering import part
from drawn_weights import drawn
from flax import nnx
from jax import export

from lambdanet.attention import create_attention, kind, list_attention, registry

DIM, SIZE, HEADS = 16, (4, 6), 2


@functools.cache
def split_block(name: str):
    """A block in the evaluation view as its definition and its state."""
    block = nnx.eval_shape(
        lambda: create_attention(name, DIM, size=SIZE, num_heads=HEADS, rngs=nnx.Rngs(0))
    )
    return nnx.split(
        nnx.view(
            drawn(block), deterministic=True, use_running_average=True, raise_if_not_found=False
        )
    )


def arguments(name: str, batch: int) -> tuple[np.ndarray, ...]:
    """A map, and for carried blocks the logits of the layer before."""
    shapes = [(batch, *SIZE, DIM)]
    if kind(name) == "carried":
        shapes.append((batch, HEADS, SIZE[0] * SIZE[1], SIZE[0] * SIZE[1]))
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def open_export(function, name: str) -> export.Exported:
    (batch,) = export.symbolic_shape("batch")
    shapes = [
        jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype) for array in arguments(name, 1)
    ]
    return export.export(jax.jit(function), platforms=["cpu"])(*shapes)


@pytest.mark.parametrize("name", part(list_attention(), list_attention()[::3]))
def test_every_block_exports_with_an_open_batch(name):
    graphdef, state = split_block(name)

    def forward(*inputs):
        return nnx.merge(graphdef, state)(*inputs)

    program, inputs = open_export(forward, name), arguments(name, 3)
    expected = jax.jit(forward)(*inputs)
    for size in (3, 1):
        jax.tree.map(
            lambda exported, ours, size=size: np.testing.assert_allclose(
                exported, ours[:size], rtol=1e-5, atol=1e-5
            ),
            program.call(*(array[:size] for array in inputs)),
            expected,
        )


@pytest.mark.parametrize("name", [n for n in list_attention() if not registry.lookup(n)[1]])
def test_what_a_block_shows_exports_too(name):
    graphdef, state = split_block(name)

    def shown(*inputs):
        block = nnx.view(nnx.merge(graphdef, state), capture=True)
        _, sown = nnx.capture(block, nnx.Intermediate)(*inputs)
        return nnx.to_pure_dict(sown)

    shapes = [shape.shape for shape in open_export(shown, name).out_avals]
    assert shapes and all(str(shape[0]) == "batch" for shape in shapes)
