"""Blocks whose softmax attention is made for some queries at a time: the same function, values and
gradients, as with all pairs at once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from drawn_weights import drawn
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.ops import softmax_attention
from lambdanet.ops.attention_lowering import Turns

DIM, SIZE = 8, (7, 5)
HEADS = dict(num_heads=2)
BLOCKS = {
    "mhsa": HEADS,
    "bottleneck_attention": HEADS,
    "halo_attention": dict(HEADS, block_size=4, halo_size=1),
    "position_attention": dict(reduction=2),
    "object_context": dict(),
    "pyramid_object_context": dict(sizes=(1, 2)),
    "asp_object_context": dict(dilations=(1, 2)),
    "spatial_reduction": HEADS,
    "window": dict(HEADS, window_size=(4, 4)),
    "shifted_window": dict(HEADS, window_size=(4, 4)),
    "rows left over": dict(HEADS, name="shifted_window", window_size=(5, 2), mask_padding=True),
    "cross_shaped_window": dict(HEADS, stripe_width=2),
    "interlaced": dict(group_size=(3, 3), mask_padding=True),
    "linformer": dict(HEADS, one_kv_head=True),
    "nonlocal": dict(),
    "nonlocal_gaussian": dict(name="nonlocal", mode="gaussian"),
}


@pytest.mark.parametrize("name", part(BLOCKS, ["bottleneck_attention", "rows left over"]))
def test_the_same_in_blocks(name, monkeypatch):
    def choose(chunk):
        asked = []
        monkeypatch.setattr(
            softmax_attention, "choose_chunk", lambda pairs, backend: asked.append(pairs) or chunk
        )
        return asked

    spec = {"name": name} | BLOCKS[name]
    with jax.enable_x64():
        options = dict(size=SIZE, param_dtype=jnp.float64)
        block = nnx.eval_shape(lambda: create_attention(spec, DIM, **options, rngs=nnx.Rngs(0)))
        # Away from the start, where a gamma of zero hides everything behind it.
        graphdef, params, rest = nnx.split(drawn(block), nnx.Param, ...)
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((2, *SIZE, DIM)))

        def loss(params, x):
            y = nnx.merge(graphdef, params, rest, copy=True)(x)
            return jnp.sum(jnp.sin(y)), y

        def run(chunk):
            asked = choose(chunk)
            run = jax.jit(lambda *a: jax.value_and_grad(loss, (0, 1), has_aux=True)(*a))
            found = jax.tree.leaves(run(params, x))
            assert asked and all(pairs.queries > 4 for pairs in asked)
            return found, asked

        expected, asked = run(None)
        found = [run(4)[0]]
        if all(pairs.turns for pairs in asked):
            found.append(run(Turns(1, 12))[0])
            if all(pairs.problems % 2 == 0 for pairs in asked):
                found.append(run(Turns(2, max(pairs.queries for pairs in asked)))[0])
    for leaves in found:
        for blocks, whole in zip(leaves, expected, strict=True):
            assert whole.dtype == jnp.float64
            off = 1e-10 * max(1, np.abs(whole).max())
            np.testing.assert_allclose(blocks, whole, rtol=0, atol=off)
