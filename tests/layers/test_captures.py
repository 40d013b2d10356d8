"""The view attribute `capture`, in the ways that flax reads it."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import lambdanet.attention as blocks
from lambdanet.layers import Captures


class Shows(Captures, nnx.Module):
    """Sows its input."""

    def __init__(self):
        self.factor = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        if self.capture:
            self.sow(nnx.Intermediate, "attention_map", x)
        return x * self.factor[...]


class Pair(nnx.Module):
    def __init__(self):
        self.parts = nnx.List([Shows(), Shows()])
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_views_switch_it_on_and_off_and_none_leaves_it():
    model = Pair()
    assert [part.capture for part in model.parts] == [False, False]
    shown = nnx.view(model, capture=True)
    assert [part.capture for part in shown.parts] == [True, True]
    assert [part.capture for part in model.parts] == [False, False], "a view changes a copy alone"
    kept = nnx.view(shown, deterministic=True)
    assert kept.dropout.deterministic and all(part.capture for part in kept.parts)
    assert not any(part.capture for part in nnx.view(kept, capture=False).parts)
    with pytest.raises(ValueError, match="capture"):
        nnx.view(model.dropout, capture=True)


@pytest.mark.parametrize("graph", [True, False])
def test_it_survives_split_and_merge_of_an_abstract_model(graph):
    abstract = nnx.view(nnx.eval_shape(Pair), capture=True, graph=graph)
    graphdef, state = nnx.split(abstract, graph=graph)
    model = nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.ones(leaf.shape), state))
    y, sown = nnx.capture(model, nnx.Intermediate)(jnp.ones(3))
    assert y.shape == (3,) and len(jax.tree.leaves(nnx.to_pure_dict(sown))) == 2
    _, sown = nnx.capture(nnx.view(model, capture=False), nnx.Intermediate)(jnp.ones(3))
    assert not jax.tree.leaves(nnx.to_pure_dict(sown))


def test_flax_lists_it_with_its_meaning():
    text = nnx.view_info(Pair())
    assert "Shows:\n  capture: bool | None = None\n    True sows at every call" in text


def test_no_block_writes_its_own():
    """All classes of the attention package with a view attribute `capture` inherit it."""
    seen = set()
    for _, module in inspect.getmembers(blocks, inspect.ismodule):
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if "capture" in inspect.signature(getattr(cls, "set_view", lambda: None)).parameters:
                assert cls.set_view is Captures.set_view, cls
                seen.add(cls)
    assert len(seen) > 20
