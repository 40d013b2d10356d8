"""Every head on every family of backbones, and every attention block in the head `context`, by
shapes; real gradients: tests/optimised/test_dense_steps.py. Of the product of heads and
families the suite has one row and one column, `make exhaustive` all.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from covering import part
from flax import nnx
from segmentation_matrix import BLOCKS, CLASSES, HEADS, SIDE, build, evaluation, gradients
from small_backbones import FAMILIES

from lambdanet.attention import kind, list_attention
from models.segmentation.options import head_builder


@pytest.mark.parametrize("family", part(FAMILIES, ["resnet_digits"]))
def test_every_head_on_every_family(family):
    """Built and run with shapes alone: a segmenter, and the other heads on its backbone's maps."""

    def run(x):
        model = evaluation(build(family, "fcn"))
        maps = model.features(x)
        logits = {}
        for name, spec in HEADS.items():
            make, declared = head_builder(spec)
            sizes = dict(map_sizes=tuple(y.shape[1:3] for y in maps))
            needs = sizes if "map_sizes" in declared else {}
            dtypes = dict(dtype=jnp.dtype("float32"), param_dtype=jnp.dtype("float32"))
            head = make(model.feature_info, CLASSES, **needs, **dtypes, rngs=nnx.Rngs(0))
            logits[name] = evaluation(head)(maps)
        return logits | {"segmenter": model(x)}

    found = jax.eval_shape(run, jax.ShapeDtypeStruct((2, SIDE, SIDE, 1), jnp.float32))
    assert found.pop("segmenter").shape == (2, SIDE, SIDE, CLASSES)
    for name, logits in found.items():
        assert logits.shape[0] == 2 and logits.shape[-1] == CLASSES, name
        assert logits.dtype == jnp.float32, name


@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_a_segmenter_of_every_family(number):
    """With one head each, in turns."""
    family, head = list(FAMILIES)[number], list(HEADS)[number % len(HEADS)]
    x = jax.ShapeDtypeStruct((2, SIDE, SIDE, 1), jnp.float32)
    logits = jax.eval_shape(lambda x: evaluation(build(family, HEADS[head]))(x), x)
    assert logits.shape == (2, SIDE, SIDE, CLASSES)


BLOCK_NAMES = [n for n in list_attention() if kind(n) != "carried"]


@pytest.mark.parametrize("name", part(BLOCK_NAMES, BLOCK_NAMES[::4]))
def test_every_block_in_the_head_context(name):
    block = dict(name=name, **BLOCKS.get(name, {}))
    head = dict(name="context", channels=32, block=block, stage=1)
    value, found = jax.eval_shape(gradients(functools.partial(build, "resnet_digits", head)))
    assert value.shape == ()
    own = [path for path in found if path.startswith("head/attention/")]
    assert own
