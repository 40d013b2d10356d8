"""Choices of the cost model for the shapes that were measured."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambdanet.ops import cost_model, position_lambda
from lambdanet.ops.cost_model import Geometry


def geometry(batch, side, dim, heads, scope, intra_depth=1, itemsize=4):
    return Geometry(
        batch=batch,
        shape=(side, side),
        num_heads=heads,
        key_depth=16,
        value_depth=dim // heads,
        intra_depth=intra_depth,
        itemsize=itemsize,
        scope=(scope, scope),
        dilation=(1, 1),
    )


# Fastest on CPU by a margin of a third or more, forward and in training.
CLEAR = [
    ((16, 7, 512, 4, 23), "query_first"),
    ((4, 28, 128, 4, 23), "spectral"),
    ((4, 28, 256, 4, 23), "spectral"),
    ((2, 56, 128, 4, 7), "halo_tiles"),
    ((2, 28, 128, 4, 23, 4), "spectral"),
]


@pytest.mark.parametrize("direction", cost_model.DIRECTIONS)
@pytest.mark.parametrize(("shape", "best"), CLEAR)
def test_choice_on_cpu_is_the_measured_best(shape, best, direction):
    assert cost_model.choose_impl(geometry(*shape), "cpu", direction) == best


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("side", [1, 7, 28, 112])
def test_the_cpu_never_convolves(side, itemsize):
    assert cost_model.choose_impl(geometry(64, side, 64, 4, 23, itemsize=itemsize), "cpu") != "conv"


def test_temporaries_stay_below_the_cap():
    large = geometry(128, 112, 64, 4, 23, itemsize=2)
    for backend, device in cost_model.DEVICES.items():
        estimates = {
            name: cost_model.estimate(large, name, device) for name in device.rates["train"]
        }
        chosen = estimates[cost_model.choose_impl(large, backend)]
        fits = [cost.seconds for cost in estimates.values() if cost.temporary <= device.memory]
        assert max(cost.temporary for cost in estimates.values()) > device.memory
        assert chosen.temporary <= device.memory and chosen.seconds == min(fits)


def test_without_a_fit_the_smallest_is_taken(monkeypatch):
    rates = {"train": dict.fromkeys(cost_model.GRID_IMPLS, (1e-9, 1e-9, 1e-9, 0.0))}
    bounds = dict(cache=0, memory=0, chunk_logits=1, all_logits=0, block_logits=0, turn_logits=None)
    device = cost_model.Device(rates, {4: 1.0}, **bounds)
    monkeypatch.setitem(cost_model.DEVICES, "no memory", device)
    shape = geometry(8, 28, 64, 4, 23)
    sizes = {
        name: cost_model.estimate(shape, name, device).temporary for name in cost_model.GRID_IMPLS
    }
    assert cost_model.choose_impl(shape, "no memory") == min(sizes, key=sizes.get)


def test_terms_of_a_lowering_by_hand():
    device = cost_model.DEVICES["gpu"]
    shape = geometry(3, 6, 20, 5, 3)  # n 36, k 16, v 4
    terms = {
        name: cost_model.terms(shape, name, device)
        for name in ("dense", "conv", "query_first", "halo_tiles", "spectral")
    }
    assert terms["dense"].macs == 3 * 36 * (36 * 16 * 4 + 5 * 16 * 4)
    assert terms["conv"].macs == 3 * 36 * (9 * 16 * 4 + 5 * 16 * 4)
    assert terms["query_first"].macs == 3 * 36 * 36 * 5 * (16 + 4)
    # Four tiles of 3 x 3 queries that see 5 x 5 keys.
    assert terms["halo_tiles"].macs == 3 * 4 * 9 * 25 * 5 * (16 + 4)
    # One tile; 6 + 1 columns take 4 frequencies, 8 numbers; rows in pairs, complex, so that each
    # product counts twice.
    assert terms["spectral"].macs == 3 * (
        8 * 6 * 4 * 6 + 8 * 6 * 16 * 4 * (2 * 6 + 6) + 36 * 16 * 4 * 5
    )
    small = dataclasses.replace(device, cache=terms["dense"].temporary - 1)
    assert cost_model.terms(shape, "dense", small).beyond == terms["dense"].cached > 0


def test_maps_with_three_axes_are_not_transformed():
    volume = dataclasses.replace(
        geometry(2, 9, 64, 4, 5), shape=(9, 9, 9), scope=(5, 5, 5), dilation=(1, 1, 1)
    )
    for direction in cost_model.DIRECTIONS:
        assert cost_model.choose_impl(volume, "cpu", direction) != "spectral"


def test_choice_is_logged_once_per_shape(caplog):
    q, v, table = jnp.ones((1, 3, 5, 2, 7)), jnp.ones((1, 3, 5, 1, 2)), jnp.ones((3, 3, 1, 7))
    with caplog.at_level(logging.INFO, logger="lambdanet.ops.cost_model"):
        for _ in range(3):
            position_lambda.position_term(q, v, table)
        position_lambda.position_term(q, v, table, impl="dense")
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2 and all("shape=(3, 5)" in line and "impl '" in line for line in lines)
    assert [
        direction in line for line, direction in zip(lines, cost_model.DIRECTIONS, strict=True)
    ] == [True, True]


def test_forward_and_training_may_choose_differently(monkeypatch):
    """The forward pass alone runs one lowering; under differentiation, reverse, forward or nested,
    the other one runs.
    """
    chosen = dict(fwd="row_chunks", train="dense")
    monkeypatch.setattr(
        cost_model, "choose_impl", lambda geometry, backend, direction: chosen[direction]
    )
    rng = np.random.default_rng(0)
    q, v, table = (
        rng.normal(size=s).astype(np.float32)
        for s in ((1, 3, 4, 2, 4), (1, 3, 4, 1, 3), (3, 3, 1, 4))
    )

    def loss(table, impl="auto"):
        return jnp.sum(jnp.tanh(position_lambda.position_term(q, v, table, impl=impl)))

    def scans(function):
        return "scan" in str(jax.make_jaxpr(function)(table))

    assert (
        scans(loss)
        and not scans(jax.grad(loss))
        and not scans(lambda t: jax.jvp(loss, (t,), (t,))[1])
    )

    def curvature(impl):
        return jax.grad(lambda t: jnp.vdot(jax.grad(loss)(t, impl), table))(table)

    np.testing.assert_allclose(
        jax.grad(loss)(table), jax.grad(loss)(table, "dense"), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(curvature("auto"), curvature("dense"), rtol=1e-4, atol=1e-5)
