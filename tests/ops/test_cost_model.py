"""Choices of the cost model for the shapes that were measured."""

import logging

import jax.numpy as jnp
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


# Best of the four in forward + backward on CPU.
MEASURED = [
    ((16, 7, 512, 4, 23), "query_first"),
    ((16, 7, 512, 8, 23), "query_first"),
    ((8, 14, 256, 4, 23), "query_first"),
    ((8, 14, 512, 4, 23), "query_first"),
    ((8, 14, 256, 8, 23), "dense"),
    ((8, 16, 256, 4, 9), "row_chunks"),
    ((16, 8, 512, 4, 9), "query_first"),
    ((4, 28, 128, 4, 23), "row_chunks"),
    ((4, 28, 128, 8, 23), "row_chunks"),
    ((4, 28, 256, 4, 23), "row_chunks"),
    ((4, 28, 128, 4, 7), "row_chunks"),
    ((4, 28, 128, 4, 55), "row_chunks"),
    ((2, 56, 128, 4, 23), "row_chunks"),
    ((2, 56, 128, 4, 7), "row_chunks"),
    ((8, 14, 256, 4, 23, 4), "row_chunks"),
    ((2, 28, 128, 4, 23, 4), "row_chunks"),
    ((64, 8, 64, 4, 15), "query_first"),  # the digits net
    ((64, 4, 128, 4, 15), "query_first"),
]


@pytest.mark.parametrize(("shape", "best"), MEASURED)
def test_choice_on_cpu_is_the_measured_best(shape, best):
    assert cost_model.choose_impl(geometry(*shape), "cpu") == best


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("side", [1, 7, 28, 112])
def test_the_cpu_never_convolves(side, itemsize):
    assert cost_model.choose_impl(geometry(64, side, 64, 4, 23, itemsize=itemsize), "cpu") != "conv"


def test_temporaries_stay_below_the_cap():
    large = geometry(128, 112, 64, 4, 23, itemsize=2)
    for backend, device in cost_model.DEVICES.items():
        estimates = {name: cost_model.estimate(large, name, device) for name in device.efficiency}
        chosen = estimates[cost_model.choose_impl(large, backend)]
        fits = [cost.seconds for cost in estimates.values() if cost.temporary <= device.memory]
        assert max(cost.temporary for cost in estimates.values()) > device.memory
        assert chosen.temporary <= device.memory and chosen.seconds == min(fits)


def test_without_a_fit_the_smallest_is_taken(monkeypatch):
    device = cost_model.Device({4: 1e9}, 1e9, 1e9, 0, 0, 0, 1, dict.fromkeys(cost_model.GRID_IMPLS, 1.0))
    monkeypatch.setitem(cost_model.DEVICES, "no memory", device)
    shape = geometry(8, 28, 64, 4, 23)
    sizes = {name: cost_model.estimate(shape, name, device).temporary for name in cost_model.GRID_IMPLS}
    assert cost_model.choose_impl(shape, "no memory") == min(sizes, key=sizes.get)


def test_macs_of_a_lowering_by_hand():
    device = cost_model.DEVICES["gpu"]
    shape = geometry(3, 6, 20, 5, 3)  # n 36, k 16, v 4
    macs = {name: cost_model.estimate(shape, name, device).macs for name in ("dense", "conv", "query_first")}
    assert macs["dense"] == 3 * 36 * (36 * 16 * 4 + 5 * 16 * 4)
    assert macs["conv"] == 3 * 36 * (9 * 16 * 4 + 5 * 16 * 4)
    assert macs["query_first"] == 3 * 36 * 36 * 5 * (16 + 4)


def test_choice_is_logged_once_per_shape(caplog):
    q, v, table = jnp.ones((1, 3, 5, 2, 7)), jnp.ones((1, 3, 5, 1, 2)), jnp.ones((3, 3, 1, 7))
    with caplog.at_level(logging.INFO, logger="lambdanet.ops.cost_model"):
        for _ in range(3):
            position_lambda.position_term(q, v, table)
        position_lambda.position_term(q, v, table, impl="dense")
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1 and "shape=(3, 5)" in lines[0] and "impl 'dense'" in lines[0]
