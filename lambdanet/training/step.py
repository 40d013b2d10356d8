"""The training and evaluation steps: pure functions of (state, batch), jitted by the caller.

What is minimised and what is counted are functions of a task (`lambdanet.tasks`) that are handed
in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lambdanet.training.mesh import AXES
from lambdanet.training.optimizer import match_mask
from lambdanet.training.packing import SMALL
from lambdanet.training.state import TrainState

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, weight), float32 scalars; the value shown is the sum over all sums by that over all
weights."""


def ema_decay_at(step: jax.Array, decay: float, warmup: bool) -> jax.Array:
    """Decay of the moving average at a step counted from 0: min(decay, (1 + step) / (10 + step))
    while warming up.
    """
    step = step.astype(jnp.float32)
    warm = (1.0 + step) / (10.0 + step)
    return jnp.minimum(decay, warm) if warmup else jnp.asarray(decay, jnp.float32)


def _norm(tree: Any) -> jax.Array:
    """Euclidean norm of all numbers. Small arrays are joined: summing each by itself takes several
    operations, and a step has as many of those as a call has to prepare for.
    """
    small, large = [], []
    for leaf in jax.tree.leaves(tree):
        (small if leaf.size <= SMALL else large).append(leaf.ravel())
    return optax.tree.norm([*large, *([jnp.concatenate(small)] if small else [])])


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    config: Any,
    *,
    loss: Callable[[nnx.Module, dict, Any, nnx.Rngs], tuple[jax.Array, Terms]],
    mix: Callable[[dict, jax.Array, Any], dict],
    seed: int,
    schedule: optax.Schedule | None = None,
    mesh: Mesh | None = None,
    frozen: Sequence[str] | None = None,
) -> Callable[[TrainState, dict], tuple[TrainState, Terms]]:
    """Builds the training step; jit it once with `donate_argnums=0`.

    All randomness comes from fold_in(seed, state.step), so a step is a pure function of its
    arguments and a resume is exact. Micro-batches (`train.accumulate`) are averaged by the weight
    of their loss: where each is the mean over its own images, pixels or objects, the step is that
    of the mean over all of them.

    Args:
        graphdef: training view of the model.
        tx: the optimiser.
        config: the whole config; reads optim.frozen and the `train` section.
        loss: the task's: (model, batch, config, rngs) -> (scalar, terms), 'loss' among the terms.
        mix: the task's: (batch, key, config) -> batch.
        seed: of dropout and mixing.
        schedule: adds 'lr' to the metrics; None leaves it out.
        mesh: keeps micro-batches spread over all devices; None = one device.
        frozen: regexes of parameters that nothing is to be learnt about; None = optim.frozen.

    Returns:
        step(state, batch) -> (state, terms) for a batch of arrays [b, ...]. The terms are the
        task's, of the weights before the update, and with weight 1: grad_norm before clipping,
        update_norm, param_norm after the update, lr.
    """
    train, accumulate = config.train, config.train.accumulate
    rules = config.optim.frozen if frozen is None else frozen

    def loss_and_terms(params, stats, batch, key):
        # Frozen parameters: no backward pass through them, and no part in the gradient norm.
        still = match_mask(rules, params)
        params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, still)
        model = nnx.merge(graphdef, params, stats)
        value, terms = loss(model, batch, config, nnx.Rngs(dropout=key))
        return value, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), terms)

    gradient = jax.value_and_grad(loss_and_terms, has_aux=True)

    def over_micro_batches(state: TrainState, batch, key):
        # Rows i, i + accumulate, ... form micro-batch i: each device splits its own rows, and
        # nothing moves between devices.
        batch = jax.tree.map(
            lambda a: a.reshape(-1, accumulate, *a.shape[1:]).swapaxes(0, 1), batch
        )
        if mesh is not None:
            spread = NamedSharding(mesh, PartitionSpec(None, AXES))
            batch = jax.lax.with_sharding_constraint(batch, spread)

        def body(carry, micro):
            index, rows = micro
            sums, stats = carry
            (_, (stats, terms)), grads = gradient(
                state.params, stats, rows, jax.random.fold_in(key, index)
            )
            grads = jax.tree.map(lambda g: g * terms["loss"][1], grads)
            return (jax.tree.map(jnp.add, sums, (terms, grads)), stats), None

        first = jax.tree.map(lambda a: a[0], batch)
        shapes = jax.eval_shape(gradient, state.params, state.stats, first, key)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (shapes[0][1][1], shapes[1]))
        (sums, stats), _ = jax.lax.scan(body, (zeros, state.stats), (jnp.arange(accumulate), batch))
        terms, grads = sums
        # 0: nothing to learn from
        total = jnp.maximum(terms["loss"][1], jnp.finfo(jnp.float32).tiny)
        return terms, jax.tree.map(lambda g: g / total, grads), stats

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Terms]:
        # A stream of its own, apart from the initialisation's, which also starts from the seed.
        stream = jax.random.fold_in(jax.random.key(seed), 0x57E9)
        mix_key, dropout_key = jax.random.split(jax.random.fold_in(stream, state.step))
        batch = mix(batch, mix_key, config)
        if accumulate == 1:
            (_, (stats, terms)), grads = gradient(state.params, state.stats, batch, dropout_key)
        else:
            terms, grads, stats = over_micro_batches(state, batch, dropout_key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema:
            decay = ema_decay_at(state.step, train.ema_decay, train.ema_warmup)
            ema = optax.incremental_update({"params": params, "stats": stats}, ema, 1.0 - decay)
        single = {
            "grad_norm": _norm(grads),
            "update_norm": _norm(updates),
            "param_norm": _norm(params),
        }
        if schedule is not None:
            single["lr"] = schedule(state.step)
        terms = {**terms, **{name: (value, 1.0) for name, value in single.items()}}
        terms = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), terms)
        return TrainState(state.step + 1, params, stats, opt_state, ema), terms

    return step


def make_eval_step(
    graphdef: nnx.GraphDef,
    config: Any,
    *,
    score: Callable[[nnx.Module, dict, Any], tuple[dict, dict]],
) -> Callable[[dict, dict, dict], tuple[dict, dict]]:
    """Builds the evaluation step; jit it once.

    Args:
        graphdef: evaluation view of the model.
        config: the whole config.
        score: the task's: (model, batch, config) -> (sums, rows).

    Returns:
        f(params, stats, batch) -> (sums, rows).
    """

    def evaluate(params: dict, stats: dict, batch: dict[str, jax.Array]) -> tuple[dict, dict]:
        return score(nnx.merge(graphdef, params, stats), batch, config)

    return evaluate
