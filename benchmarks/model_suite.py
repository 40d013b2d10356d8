"""Suite `model`: what Python costs per training step, in milliseconds until the jitted call returns.

The models have all their layers, so the state has as many arrays as at full width, but few channels and one tiny image.
The device's work is waited for between calls, outside the time that counts.
"""

from __future__ import annotations

import os
import statistics
import time

import jax
import numpy as np
from flax import nnx

import models
from benchmarks.harness import Case, Prepared
from configs import base
from lambdanet.training import mesh, optimizer, schedule, state, step

MODELS = ("lambda_resnet50", "resnet50")
WIDTHS, SIDE, STEPS = (8, 16, 32, 64), 32, 20


def cases() -> list[Case]:
    """Returns the cases of the suite."""
    return [
        Case("model", f"dispatch_{name}", "train", "jit", lambda name=name: prepare_dispatch(name)) for name in MODELS
    ]


def prepare_dispatch(name: str) -> Prepared:
    """Jits the training step of train.py (AdamW, moving averages, donated state) and times its calls."""
    config = base.get_config()
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(config.train.cache_dir))
    config.data.channels, config.train.ema_decay = 3, 0.999

    def build():
        return models.create_model(name, widths=WIDTHS, image_size=(SIDE, SIDE), num_classes=10, rngs=nnx.Rngs(0))

    lr = schedule.make_schedule(config.optim, total_steps=1000, steps_per_epoch=100)
    tx = optimizer.make_optimizer(config.optim, lr, state.abstract_weights(build)[0])
    init = state.make_init(build, tx, ema=True)
    device_mesh = mesh.make_mesh(1, 1, devices=jax.devices()[:1])
    shardings = mesh.state_shardings(jax.eval_shape(init), device_mesh, config.mesh.fsdp_min_size)
    graphdef, _ = state.views(build)
    train_step = jax.jit(
        step.make_train_step(graphdef, tx, config, num_classes=10, seed=0, schedule=lr, mesh=device_mesh),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (1, SIDE, SIDE, 3), np.uint8), "label": np.array([3], np.int32)}
    batch = mesh.put_batch(batch, mesh.batch_sharding(device_mesh))
    make = jax.jit(init, out_shardings=shardings)
    current = [make()]

    def check():
        first, second = make(), make()
        before = jax.tree.map(np.array, first.params)
        outcomes = [train_step(start, batch) for start in (first, second)]
        (after, metrics), (again, _) = outcomes
        assert int(after.step) == 1 and np.isfinite(float(metrics["loss"]))
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), after.params, again.params)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params)), "the state was not donated"
        later, _ = train_step(after, batch)  # the warm-up starts at a learning rate of 0, so this is the first to move
        changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, later.params)
        assert any(jax.tree.leaves(changed)), "two steps changed no parameter"

    def run():
        samples = []
        for _ in range(STEPS):
            wall, cpu = time.perf_counter(), time.thread_time()
            current[0], metrics = train_step(current[0], batch)
            samples.append((time.perf_counter() - wall, time.thread_time() - cpu))
            jax.block_until_ready((current[0], metrics))
        wall, cpu = zip(*samples, strict=True)
        return statistics.median(wall), statistics.median(cpu)

    return Prepared(run, check)
