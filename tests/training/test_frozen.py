"""`optim.frozen`: parameters that stay, and norms that use and keep their stored statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from step_helpers import make_train_step

from configs import base
from lambdanet.training import optimizer, schedule, state
from models import create_model

OPTIONS = dict(blocks=(1, 1), widths=(4, 4), num_classes=3, image_size=(8, 8))


def build():
    return create_model("resnet_digits", **OPTIONS, rngs=nnx.Rngs(0))


def step_with(frozen):
    """State and statistics before, and the state after one step with these rules."""
    config = base.get_config()
    config.optim.frozen, config.optim.warmup_epochs, config.optim.no_decay = frozen, 0.0, ()
    config.optim.schedule = "constant"
    _, params, stats = state.split_model(build())
    lr = schedule.make_schedule(config.optim, total_steps=5, steps_per_epoch=5)
    tx = optimizer.make_optimizer(config.optim, lr, params, stats)
    step = make_train_step(state.views(build, frozen)[0], tx, config)
    start = state.make_init(build, tx, ema=False)()
    # Statistics that differ from those of any batch, as a trained network has them.
    start = start.replace(stats=jax.tree.map(lambda s: s + 0.5, start.stats))
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
    batch = {"image": jnp.asarray(image), "label": jnp.arange(6) % 3}
    after, _ = jax.jit(step)(start, batch)
    return start, after


def moved(before, after):
    flat = state.flatten_names(after)
    return {
        name
        for name, value in state.flatten_names(before).items()
        if not np.array_equal(value, flat[name])
    }


def test_a_frozen_backbone_keeps_parameters_and_statistics():
    start, after = step_with((r"stem/.*", r"stages/.*"))
    assert moved(start.params, after.params) == {"head/fc/kernel", "head/fc/bias"}
    assert not moved(start.stats, after.stats)


def test_a_frozen_norm_uses_its_stored_statistics_in_training():
    """A frozen network trains its head on the features that evaluation sees."""
    frozen = (r"stem/.*", r"stages/.*")
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 1)), jnp.float32)
    train, evaluation = state.views(build, frozen)
    _, params, stats = state.split_model(build())
    stats = jax.tree.map(lambda s: np.asarray(s) + np.float32(0.5), stats)

    @functools.partial(jax.jit, static_argnums=0)
    def run(graphdef, params, stats):
        return nnx.merge(graphdef, params, stats)(images)

    outputs = [run(graphdef, params, stats) for graphdef in (train, evaluation)]
    np.testing.assert_array_equal(*outputs)
    plain = run(state.views(build)[0], params, stats)
    assert np.abs(plain - outputs[0]).max() > 1e-2


def test_statistics_alone_can_be_frozen_and_only_where_the_rule_says():
    start, after = step_with((r"stem/.*/(mean|var)",))
    changed = moved(start.stats, after.stats)
    assert changed and not any(name.startswith("stem/") for name in changed)
    assert any(name.startswith("stem/") for name in moved(start.params, after.params))


def test_parameters_of_a_norm_alone_leave_its_statistics_alone():
    start, after = step_with((r".*/(scale|bias)",))
    assert moved(start.stats, after.stats) == set(state.flatten_names(start.stats))


@pytest.mark.parametrize(
    "rules",
    [
        dict(frozen=(".*",)),
        dict(lr_multipliers=((".*", 0.0),)),
        dict(frozen=("head/.*",), lr_multipliers=((r"st.*", 0),)),
    ],
)
def test_rules_that_stop_everything_are_refused(rules):
    optim = base.get_config().optim
    optim.update(rules)
    optim.no_decay = ()
    _, params, stats = state.split_model(build())
    with pytest.raises(ValueError, match="together they stop every parameter"):
        optimizer.make_optimizer(optim, optax.constant_schedule(0.1), params, stats)
