"""The training step of train.py, and that of a run, ready to be timed."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

import models
from benchmarks import harness
from benchmarks.training_runs import Run
from lambdanet import data, tasks
from lambdanet.config import to_plain
from lambdanet.training import mesh, optimizer, schedule, start_up, state, step


def prepare_step(run: Run) -> harness.Prepared:
    """Compiles the training step that train.py runs."""
    config = run.config
    info = tasks.get(config.task).read(data.open_builder(config.data))

    def build():
        options = tasks.get(config.task).model_options(info, config)
        return models.create_from_config(config, **options, rngs=nnx.Rngs(0))

    batch_size = config.train.batch_size
    make, train_step, batch = training_step(
        config, num_classes=len(info.classes), batch_size=batch_size
    )
    current = [make()]
    compiled = train_step.lower(current[0], batch).compile()

    def once():
        current[0], terms = compiled(current[0], batch)
        jax.block_until_ready((current[0], terms))

    params, _ = state.abstract_weights(build)
    facts = {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "macs": nnx.eval_shape(build).macs(*config.data.image_size),
        "batch_size": batch_size,
        "model": to_plain(config.model),
    }
    check = functools.partial(check_step, make, compiled, batch)
    return harness.Prepared(once, check, items=batch_size, facts=facts)


def training_step(
    config: Any, *, num_classes: int, batch_size: int
) -> tuple[Callable[[], state.TrainState], Callable[..., Any], dict[str, jax.Array]]:
    """Builds what train.py jits, on one device and for the random images of `random_batch`.

    Args:
        config: a whole config.
        num_classes: of the labels.
        batch_size: images per step.

    Returns:
        (function that makes the first state, jitted training step with donated state, batch).
    """
    if config.train.cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(config.train.cache_dir))

    def build():
        return models.create_from_config(config, num_classes=num_classes, rngs=nnx.Rngs(0))

    lr = schedule.make_schedule(config.optim, total_steps=1000, steps_per_epoch=100)
    tx = optimizer.make_optimizer(config.optim, lr, *state.abstract_weights(build))
    init = state.make_init(build, tx, ema=config.train.ema_decay > 0)
    device_mesh = mesh.make_mesh(1, 1, devices=jax.devices()[:1])
    shardings = mesh.state_shardings(jax.eval_shape(init), device_mesh, config.mesh.fsdp_min_size)
    graphdef, _ = state.views(build, config.optim.frozen)
    task, options = tasks.get(config.task), dict(seed=0, schedule=lr, mesh=device_mesh)
    train_step = step.make_train_step(graphdef, tx, config, loss=task.loss, mix=task.mix, **options)
    compiling = dict(compiler_options=start_up.recomputing_options(nnx.eval_shape(build)))
    compiling |= dict(donate_argnums=0, out_shardings=(shardings, None))
    train_step = jax.jit(train_step, **compiling)
    batch = random_batch(config, num_classes=num_classes, batch_size=batch_size)
    batch = mesh.put_batch(batch, mesh.batch_sharding(device_mesh))
    return jax.jit(init, out_shardings=shardings), train_step, batch


def random_batch(config: Any, *, num_classes: int, batch_size: int) -> dict[str, np.ndarray]:
    """Draws images or clips, and a label for each of them or, in segmentation, of their pixels."""
    rng = np.random.default_rng(0)
    shape = (batch_size, *tasks.input_shape(config))
    image = rng.integers(0, 256, shape, np.uint8)
    if config.task == "segmentation":
        return {"image": image, "label_map": rng.integers(0, num_classes, shape[:3], np.uint8)}
    return {"image": image, "label": rng.integers(0, num_classes, batch_size, np.int32)}


def check_step(
    make: Callable[[], state.TrainState],
    train_step: Callable[..., Any],
    batch: dict[str, jax.Array],
    *,
    repeatable: bool = True,
) -> None:
    """Raises AssertionError unless the step is finite, `repeatable` bit for bit, donates its state
    and moves the parameters.
    """
    first, second = make(), make()
    before = jax.tree.map(np.array, first.params)
    outcomes = [train_step(start, batch) for start in (first, second)]
    (after, terms), (again, _) = outcomes
    loss, _ = terms["loss"]  # the sum over the batch, and its weight
    assert int(after.step) == 1 and np.isfinite(float(loss)), "the loss is not finite"
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after.params, again.params)
    assert not repeatable or all(jax.tree.leaves(same)), "two equal steps differ"
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params)), (
        "the state was not donated"
    )
    later, _ = train_step(
        after, batch
    )  # the warm-up starts at a learning rate of 0, so this is the first to move
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, later.params)
    assert any(jax.tree.leaves(changed)), "two steps changed no parameter"
