"""Optimisers from the config, with regular expressions on parameter paths for decay, freezing and
lr multipliers, and learning rates by depth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lambdanet.training.layer_groups import decay_factors
from lambdanet.training.state import flatten_names, path_name

OPTIMIZERS = ("sgd", "adamw", "lamb", "rmsprop")


def match_mask(patterns: Sequence[str], tree: Any) -> Any:
    """Returns a tree of bools like `tree`: True where one of the regexes matches the whole 'a/0/b'
    path.
    """
    compiled = [re.compile(p) for p in patterns]
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(r.fullmatch(path_name(path)) for r in compiled), tree
    )


def check_rules(optim: Any, params: Any, stats: Any = None) -> None:
    """Checks that every regex of the `optim` section is one and matches something, that something
    is left to learn, and that a model with layer_decay has layers to tell apart.

    Args:
        optim: `config.optim`.
        params: the parameters, or their shapes.
        stats: the batch-norm statistics; rules of `frozen` may match only these, which stops them
            alone.

    Raises:
        ValueError: names each regex at fault, the key it stands in, and some parameter paths.
    """
    names = list(flatten_names(params))
    beside = list(flatten_names(stats or {}))
    rules = [("no_decay", r, names) for r in optim.no_decay]
    rules += [("frozen", r, names + beside) for r in optim.frozen]
    rules += [("lr_multipliers", r, names) for r, _ in optim.lr_multipliers]
    problems = []
    for key, rule, among in rules:
        try:
            if not any(re.fullmatch(rule, name) for name in among):
                problems.append(f"optim.{key}: {rule!r} matches no parameter")
        except re.error as error:
            problems.append(f"optim.{key}: {rule!r} is no regular expression ({error})")
    if optim.layer_decay != 1:
        try:
            decay_factors(optim.layer_decay, names)
        except ValueError as error:
            problems.append(str(error))
    if not problems and names:
        frozen = jax.tree.leaves(match_mask(optim.frozen, params))
        factors = [rate_factor(optim.lr_multipliers, name) for name in names]
        if all(f or not rate for f, rate in zip(frozen, factors, strict=True)):
            problems.append(
                f"optim.frozen = {tuple(optim.frozen)!r}, optim.lr_multipliers = "
                f"{tuple(optim.lr_multipliers)!r}: together they stop every parameter; leave "
                "something to learn"
            )
    if problems:
        shown = ", ".join(names[:: max(len(names) // 8, 1)])
        raise ValueError(
            "\n".join(problems)
            + f"\nA rule must match the whole path. Paths of this model are, for example: {shown}"
        )


def rate_factor(rules: Sequence[tuple[str, float]], name: str) -> float:
    """Returns the factor of the first regex that matches the path; 1 where none does."""
    return next((float(factor) for rule, factor in rules if re.fullmatch(rule, name)), 1.0)


def rate_factors(optim: Any, params: Any) -> dict[str, float]:
    """Returns the factor of each parameter's learning rate, path -> that of `optim.lr_multipliers`
    times that of `optim.layer_decay`.
    """
    by_depth = decay_factors(optim.layer_decay, flatten_names(params))
    return {name: f * rate_factor(optim.lr_multipliers, name) for name, f in by_depth.items()}


def scale_by_factors(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies each update by the factor of its path; without an entry it is left alone."""

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        factor = factors.get(path_name(path), 1.0)
        return update if factor == 1 else update * factor

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


class WaitState(NamedTuple):
    """State of `wait_until`: steps so far, int32 [], and the inner state."""

    count: jax.Array
    inner: optax.OptState


def wait_until(start: int, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Before step `start`, counted from 0, gives updates of zero and leaves the inner state as it
    is; then hands on to `inner`, for which the first step is number 0.
    """

    def init(params: Any) -> WaitState:
        return WaitState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Any, state: WaitState, params: Any = None) -> tuple[Any, WaitState]:
        updates, kept = jax.lax.cond(
            state.count >= start,
            lambda: inner.update(updates, state.inner, params),
            lambda: (jax.tree.map(jnp.zeros_like, updates), state.inner),
        )
        return updates, WaitState(state.count + 1, kept)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    optim: Any,
    schedule: optax.Schedule,
    params: Any,
    stats: Any = None,
    *,
    held: Sequence[str] = (),
    thaw: int = 0,
) -> optax.GradientTransformation:
    """Builds the optimiser of the `optim` section.

    - sgd: m = momentum m + (g + wd p); p -= lr m (nesterov: p -= lr (g + wd p + momentum m)).
    - rmsprop: v = b2 v + (1 - b2) g^2; m = momentum m + lr g / sqrt(v + eps); p -= m, with g + wd p
      for g (lr inside the momentum and eps inside the root, as in TensorFlow, where the published
      recipes come from).
    - adamw: Adam with decoupled decay, p -= lr (adam(g) + wd p).
    - lamb: the same direction, scaled per tensor by |p| / |direction| (You et al. 2020).

    Each update is then multiplied by its path's factor, see `rate_factors`. Frozen parameters get
    no update, no decay and no optimiser memory. The gradient clip sees trainable parameters only.

    Args:
        optim: `config.optim`.
        schedule: step -> learning rate.
        params: the parameters, or their shapes.
        stats: the batch-norm statistics, likewise; see `check_rules`.
        held: regexes of parameters that stay as they are before step `thaw`. From then on they
            have the schedule's rate of that step, and moments and their bias correction begin anew:
            with those of the waiting time Adam's first steps would be three times too large.
        thaw: counted from 0; 0 = nothing waits.

    Raises:
        ValueError: unknown optimiser, or rules that `check_rules` refuses.
    """
    check_rules(optim, params, stats)
    decay = []
    if optim.weight_decay:

        def decayed(tree: Any) -> Any:
            return jax.tree.map(lambda m: not m, match_mask(optim.no_decay, tree))

        decay = [optax.add_decayed_weights(optim.weight_decay, decayed)]
    scaled = bool(optim.lr_multipliers) or optim.layer_decay != 1
    factors = [scale_by_factors(rate_factors(optim, params))] if scaled else []
    clip = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []

    def parts(schedule: optax.Schedule) -> list[optax.GradientTransformation]:
        rate = optax.scale_by_learning_rate(schedule)
        b1, b2 = optim.betas
        if optim.name == "sgd":
            return [*decay, optax.trace(optim.momentum, optim.nesterov), rate, *factors]
        if optim.name == "rmsprop":
            root = optax.scale_by_rms(b2, optim.eps)
            return [*decay, root, rate, optax.trace(optim.momentum), *factors]
        adam = [optax.scale_by_adam(b1, b2, optim.eps), *decay]
        if optim.name == "adamw":
            return [*adam, rate, *factors]
        if optim.name == "lamb":
            return [*adam, optax.scale_by_trust_ratio(), rate, *factors]
        raise ValueError(f"optim.name is {optim.name!r}; allowed: {', '.join(OPTIMIZERS)}")

    if thaw:
        later = optax.chain(*parts(lambda step: schedule(step + thaw)))

        def waits(tree: Any) -> Any:
            return match_mask(held, tree)

        def learns(tree: Any) -> Any:
            return jax.tree.map(lambda m: not m, match_mask(held, tree))

        tx = optax.chain(
            *clip,
            optax.masked(optax.chain(*parts(schedule)), learns),
            optax.masked(wait_until(thaw, later), waits),
        )
    else:
        tx = optax.chain(*clip, *parts(schedule))
    if not optim.frozen:
        return tx
    frozen = match_mask(optim.frozen, params)
    trainable = jax.tree.map(lambda f: not f, frozen)
    return optax.chain(optax.masked(tx, trainable), optax.masked(optax.set_to_zero(), frozen))
