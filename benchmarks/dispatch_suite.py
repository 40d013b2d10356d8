"""Suite `dispatch`: what Python costs per training step.

`dispatch_NAME`: milliseconds until the jitted call of train.py's step returns. The models are of
full size, since which arrays of the state lie together goes by their sizes; the image is one of few
pixels. The device's work is waited for between calls, outside the time that counts.
"""

from __future__ import annotations

import statistics
import time

import jax

from benchmarks.harness import Case, Prepared
from benchmarks.step_times import check_step, training_step
from configs import base
from lambdanet.training.packing import Packing

MODELS = ("lambda_resnet50", "resnet50")
SIDE, STEPS = 32, 20


def cases() -> list[Case]:
    """Returns the cases of the suite."""
    return [
        Case("dispatch", f"dispatch_{name}", "train", "jit", lambda name=name: prepare(name))
        for name in MODELS
    ]


def prepare(name: str) -> Prepared:
    """Times the Python side of the calls of the training step (AdamW, moving averages, donated
    state).
    """
    config = base.get_config()
    config.data.channels, config.data.image_size, config.train.ema_decay = 3, (SIDE, SIDE), 0.999
    config.model = dict(name=name)
    make, train_step, batch = training_step(config, num_classes=10, batch_size=1)
    state = make()
    packing = Packing(state)
    called, current = jax.jit(packing.step(train_step), donate_argnums=0), packing.pack(state)

    def check():
        check_step(make, train_step, batch)

    def run():
        nonlocal current
        samples = []
        for _ in range(STEPS):
            wall, cpu = time.perf_counter(), time.thread_time()
            current, terms = called(current, batch, packing.rows)
            samples.append((time.perf_counter() - wall, time.thread_time() - cpu))
            jax.block_until_ready((current, terms))
        wall, cpu = zip(*samples, strict=True)
        return statistics.median(wall), statistics.median(cpu)

    return Prepared(run, check)
