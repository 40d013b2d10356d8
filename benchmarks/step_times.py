"""The training step of a run, ready to be timed."""

from __future__ import annotations

import functools
import math

import jax
from flax import nnx

import models
from benchmarks import harness, model_suite
from benchmarks.training_runs import Run
from lambdanet import data, tasks
from lambdanet.config import to_plain
from lambdanet.training import state


def prepare_step(run: Run) -> harness.Prepared:
    """Compiles the training step that train.py runs."""
    config = run.config
    info = tasks.get(config.task).read(data.open_builder(config.data))

    def build():
        options = tasks.get(config.task).model_options(info, config)
        return models.create_from_config(config, **options, rngs=nnx.Rngs(0))

    batch_size = config.train.batch_size
    make, train_step, batch = model_suite.training_step(
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
    check = functools.partial(model_suite.check_step, make, compiled, batch)
    return harness.Prepared(once, check, items=batch_size, facts=facts)
