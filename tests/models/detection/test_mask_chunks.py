"""Masks chunk by chunk are those of all regions at once, in as many chunks as are needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.detection.mask_chunks import WIDE, chunk_size, in_chunks, sum_in_chunks

REGIONS, CHUNK = 10, 4


def arrays(count, rest=0.0):
    """Weights, regions, their constants, and which `count` there are; the others are `rest`."""
    draw = np.random.default_rng(count)
    there = np.zeros(REGIONS, bool)
    there[draw.permutation(REGIONS)[:count]] = True
    regions = np.where(there[:, None], draw.standard_normal((REGIONS, 3)), rest)
    constants = dict(wanted=draw.standard_normal((REGIONS, 2)), classes=np.arange(REGIONS))
    weights = [draw.standard_normal((3, 2)), draw.standard_normal(2)]
    return jax.tree.map(jnp.asarray, (weights, regions, constants, there))


def head(weights, regions):
    return jnp.tanh(regions @ weights[0] + weights[1])


def losses(weights, regions, constants):
    return jnp.sum((head(weights, regions) - constants["wanted"]) ** 2, 1) * constants["classes"]


@functools.partial(jax.jit, static_argnums=4)
def value_and_gradients(weights, regions, constants, there, chunk):
    def total(weights, regions):
        return 3 * sum_in_chunks(losses, weights, regions, constants, there, chunk)

    return jax.value_and_grad(total, (0, 1))(weights, regions), total(weights, regions)


@pytest.mark.parametrize("count", [0, 1, 4, 7, 10])
def test_values_and_gradients(count):
    with jax.enable_x64(True):
        given = arrays(count)
        expected, found = (jax.tree.leaves(value_and_gradients(*given, c)) for c in (None, CHUNK))
        for one, other in zip(expected, found, strict=True):
            # the sum is float32
            np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-6)
            assert one.shape == other.shape and one.dtype == other.dtype
        weights, regions, _, there = given
        every, some = (
            in_chunks(functools.partial(head, weights), regions, there, c) for c in (None, CHUNK)
        )
        np.testing.assert_allclose(some, every, rtol=1e-12)
        assert not some[~there].any() and bool(some[there].any()) == bool(count)


@pytest.mark.parametrize(("count", "chunks"), [(0, 0), (1, 1), (4, 1), (5, 2), (10, 3)])
def test_as_many_chunks_as_are_needed(count, chunks):
    seen = []

    def counted(regions):
        jax.debug.callback(lambda _: seen.append(1), regions[0, 0])
        return regions

    _, regions, _, there = arrays(count)
    jax.block_until_ready(in_chunks(counted, regions, there, CHUNK))
    jax.effects_barrier()
    assert len(seen) == chunks


def test_what_is_not_there_is_not_looked_at():
    """Not a number in the other regions: with a factor of zero the gradients would be none."""
    gradients = value_and_gradients(*arrays(5, rest=np.nan), CHUNK)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_loops_are_for_wide_heads_on_cpu(monkeypatch):
    assert chunk_size(WIDE) == 16 and chunk_size(WIDE - 1) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chunk_size(256) is None
