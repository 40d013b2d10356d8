"""Optimiser rules by path, each optimiser against its formula, and the schedules against their
closed forms.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from lambdanet.training import optimizer, schedule

PARAMS = {
    "stem": {"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4), "bias": jnp.ones(4)},
    "blocks": {0: {"scale": jnp.full(4, 0.5)}, 1: {"scale": jnp.full(4, 2.0)}},
}
GRADS = jax.tree.map(lambda p: 0.1 * jnp.cos(7 * p) + 0.05, PARAMS)


def section(**values):
    optim = base.get_config().optim
    defaults = dict(schedule="constant", warmup_epochs=0.0, lr=0.1, weight_decay=0.0, no_decay=())
    optim.update(defaults | values)
    return optim


def updates_of(optim, steps=1, grads=GRADS):
    lr = schedule.make_schedule(optim, total_steps=100, steps_per_epoch=10)
    tx = optimizer.make_optimizer(optim, lr, PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return updates, params, state


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_formula(nesterov):
    optim = section(name="sgd", nesterov=nesterov, weight_decay=0.01)
    _, params, _ = updates_of(optim, steps=3)

    def by_hand(p, g0):
        m = 0.0
        for _ in range(3):
            g = g0 + 0.01 * p
            m = 0.9 * m + g
            p = p - 0.1 * (g + 0.9 * m if nesterov else m)
        return p

    close(params, jax.tree.map(by_hand, PARAMS, GRADS))


def test_rmsprop_follows_its_formula():
    _, params, _ = updates_of(
        section(name="rmsprop", betas=(0.0, 0.9), eps=1e-3, weight_decay=0.01), steps=3
    )

    def by_hand(p, g0):
        v = m = 0.0
        for _ in range(3):
            g = g0 + 0.01 * p
            v = 0.9 * v + 0.1 * g**2
            m = 0.9 * m + 0.1 * g / jnp.sqrt(v + 1e-3)
            p = p - m
        return p

    close(params, jax.tree.map(by_hand, PARAMS, GRADS))


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_adamw_and_lamb_follow_their_formula(name):
    _, params, _ = updates_of(
        section(name=name, betas=(0.9, 0.99), weight_decay=0.1, lr=0.01), steps=3
    )

    def by_hand(p, g):
        m = v = 0.0
        for t in range(1, 4):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            u = (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.1 * p
            trust = jnp.linalg.norm(p) / jnp.linalg.norm(u) if name == "lamb" else 1.0
            p = p - 0.01 * trust * u
        return p

    close(params, jax.tree.map(by_hand, PARAMS, GRADS))


def test_no_decay_spares_exactly_the_matching_paths():
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    updates, _, _ = updates_of(
        section(name="adamw", weight_decay=0.5, no_decay=(r".*bias", r"blocks/1/.*")), grads=zero
    )
    close(updates["stem"]["kernel"], -0.1 * 0.5 * PARAMS["stem"]["kernel"])
    close(updates["blocks"][0]["scale"], -0.1 * 0.5 * PARAMS["blocks"][0]["scale"])
    assert not updates["stem"]["bias"].any() and not updates["blocks"][1]["scale"].any()


def test_frozen_parameters_get_no_update_no_decay_and_no_memory():
    optim = section(name="adamw", weight_decay=0.5, frozen=(r"stem/.*",))
    updates, params, state = updates_of(optim, steps=2)
    close(params["stem"], PARAMS["stem"])
    assert all(jnp.all(u != 0) for u in jax.tree.leaves(updates["blocks"]))
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(m.size for m in moments) == 2 * 8  # both Adam moments of the two scales


def test_lr_multipliers_take_the_first_match():
    rules = ((r"stem/kernel", 0.25), (r"stem/.*", 3.0))
    plain, _, _ = updates_of(section(name="sgd"))
    scaled, _, _ = updates_of(section(name="sgd", lr_multipliers=rules))
    factors = {
        "stem": {"kernel": 0.25, "bias": 3.0},
        "blocks": {0: {"scale": 1.0}, 1: {"scale": 1.0}},
    }
    close(scaled, jax.tree.map(lambda u, f: u * f, plain, factors))


def test_clip_bounds_the_gradient_of_all_parameters_together():
    updates, _, _ = updates_of(section(name="sgd", clip_norm=0.01, lr=1.0))
    np.testing.assert_allclose(optax.tree.norm(updates), 0.01, rtol=1e-5)


def test_rules_that_match_nothing_are_all_named():
    optim = section(
        name="sgd", no_decay=(r"bias",), frozen=(r"head/.*",), lr_multipliers=((r"(", 2.0),)
    )
    with pytest.raises(ValueError) as error:
        updates_of(optim)
    text = str(error.value)
    assert (
        "optim.no_decay: 'bias' matches no parameter" in text
    )  # a full match is needed, 'stem/bias' is not enough
    assert "optim.frozen: 'head/.*' matches no parameter" in text
    assert "optim.lr_multipliers: '(' is no regular expression" in text
    assert "stem/kernel" in text


def test_unknown_names_list_the_allowed_ones():
    with pytest.raises(ValueError, match="'adam'.*sgd, adamw, lamb, rmsprop"):
        updates_of(section(name="adam"))
    with pytest.raises(ValueError, match="'linear'.*cosine"):
        updates_of(section(name="sgd", schedule="linear"))


CLOSED_FORMS = {
    "constant": lambda t: 2.0,
    "cosine": lambda t: 2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * (t - 20) / 80)) / 2),
    "poly": lambda t: 2.0 * (0.1 + 0.9 * (1 - (t - 20) / 80) ** 3),
    "step": lambda t: 2.0 * 0.5 ** ((t >= 35) + (t >= 60)),
    "exponential": lambda t: 2.0 * 0.5 ** ((t - 20) // 15),
}


@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_schedule_equals_its_closed_form(name):
    optim = section(
        schedule=name,
        lr=2.0,
        warmup_epochs=2.0,
        final_lr=0.1,
        step_epochs=(3.5, 6.0),
        decay_rate=0.5,
        decay_epochs=1.5,
        poly_power=3.0,
    )
    lr = schedule.make_schedule(optim, total_steps=100, steps_per_epoch=10)
    for t in (0, 7, 19, 20, 34, 35, 36, 49, 50, 61, 99):
        expected = 2.0 * t / 20 if t < 20 else CLOSED_FORMS[name](t)
        np.testing.assert_allclose(
            lr(jnp.asarray(t)), expected, rtol=1e-5, atol=1e-7, err_msg=f"step {t}"
        )


def test_warmup_from_a_value_over_a_running_schedule_and_cooldown():
    """As timm's schedulers have it: the cosine's time counts from step 0, and epochs at the last
    value follow.
    """
    values = dict(
        lr=2.0,
        warmup_epochs=2.0,
        warmup_start=0.25,
        warmup_overlaps=True,
        cooldown_epochs=3.0,
        final_lr=0.1,
    )
    lr = schedule.make_schedule(
        section(schedule="cosine", **values), total_steps=100, steps_per_epoch=10
    )
    for t in (0, 1, 19, 20, 21, 45, 69, 70, 71, 99):
        cosine = 2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * min(t, 70) / 70)) / 2)
        expected = 0.5 + 1.5 * t / 20 if t < 20 else cosine
        np.testing.assert_allclose(lr(jnp.asarray(t)), expected, rtol=1e-5, err_msg=f"step {t}")
    later = dict(values, schedule="step", cooldown_epochs=0.0, step_epochs=(3.5,), decay_rate=0.5)
    lr = schedule.make_schedule(section(**later), total_steps=100, steps_per_epoch=10)
    assert [float(lr(t)) for t in (20, 35, 36)] == [
        2.0,
        1.0,
        1.0,
    ]  # overlap does not move the epochs of steps


def test_warmup_longer_than_the_run_only_rises():
    lr = schedule.make_schedule(
        section(schedule="cosine", lr=1.0, warmup_epochs=5.0), total_steps=10, steps_per_epoch=8
    )
    np.testing.assert_allclose([lr(t) for t in range(10)], np.arange(10) / 40, atol=1e-7)


@pytest.mark.parametrize(
    ("records", "total", "epoch"),
    [(3200, 4000, 100.0), (32, 500, 12.5), (32_000, 6000, 150.0)],  # wanted: 4000, 40, 40,000
)
def test_the_length_of_a_run_follows_the_data_within_bounds(records, total, epoch):
    train = base.get_config().train
    train.batch_size, train.epochs, train.min_steps, train.max_steps = 32, 40.0, 500, 6000
    assert schedule.plan(train, records / 32) == (total, epoch)
    lr = schedule.make_schedule(
        section(schedule="cosine", warmup_epochs=2.0), total_steps=total, steps_per_epoch=epoch
    )
    assert lr(total // 20 - 1) < 0.1 == pytest.approx(lr(total // 20))  # 2 of 40 epochs, always
    train.steps = 7
    assert schedule.plan(train, records / 32) == (7, records / 32)


def test_milestones_that_round_to_one_step_decay_once_each():
    """10 records in batches of 64: epochs 30 and 32 both end at step 5, 60 at step 9."""
    values = dict(schedule="step", lr=1.0, decay_rate=0.1, step_epochs=(30, 32, 60))
    lr = schedule.make_schedule(section(**values), total_steps=12, steps_per_epoch=10 / 64)
    np.testing.assert_allclose([lr(t) for t in (4, 6, 11)], [1.0, 0.01, 0.001], rtol=1e-6)
