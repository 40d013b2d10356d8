"""Optimisers from the config, with regular expressions on parameter paths for decay, freezing and
lr multipliers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

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
    """Checks that every regex of the `optim` section is one and matches something, and that
    something is left to learn.

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


def scale_by_rules(rules: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first regex that matches its path; no match
    leaves it alone.
    """
    compiled = [(re.compile(rule), float(factor)) for rule, factor in rules]

    def scale(path, update):
        return next(
            (update * factor for r, factor in compiled if r.fullmatch(path_name(path))), update
        )

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def make_optimizer(
    optim: Any, schedule: optax.Schedule, params: Any, stats: Any = None
) -> optax.GradientTransformation:
    """Builds the optimiser of the `optim` section.

    - sgd: m = momentum m + (g + wd p); p -= lr m (nesterov: p -= lr (g + wd p + momentum m)).
    - rmsprop: v = b2 v + (1 - b2) g^2; m = momentum m + lr g / sqrt(v + eps); p -= m, with g + wd p
      for g (lr inside the momentum and eps inside the root, as in TensorFlow, where the published
      recipes come from).
    - adamw: Adam with decoupled decay, p -= lr (adam(g) + wd p).
    - lamb: the same direction, scaled per tensor by |p| / |direction| (You et al. 2020).

    Frozen parameters get no update, no decay and no optimiser memory. The gradient clip sees
    trainable parameters only.

    Args:
        optim: `config.optim`.
        schedule: step -> learning rate.
        params: the parameters, or their shapes.
        stats: the batch-norm statistics, likewise; see `check_rules`.

    Raises:
        ValueError: unknown optimiser, or rules that `check_rules` refuses.
    """
    check_rules(optim, params, stats)
    decay = []
    if optim.weight_decay:

        def decayed(tree: Any) -> Any:
            return jax.tree.map(lambda m: not m, match_mask(optim.no_decay, tree))

        decay = [optax.add_decayed_weights(optim.weight_decay, decayed)]
    rate = optax.scale_by_learning_rate(schedule)
    b1, b2 = optim.betas
    if optim.name == "sgd":
        parts = [*decay, optax.trace(optim.momentum, optim.nesterov), rate]
    elif optim.name == "rmsprop":
        parts = [*decay, optax.scale_by_rms(b2, optim.eps), rate, optax.trace(optim.momentum)]
    elif optim.name == "adamw":
        parts = [optax.scale_by_adam(b1, b2, optim.eps), *decay, rate]
    elif optim.name == "lamb":
        parts = [optax.scale_by_adam(b1, b2, optim.eps), *decay, optax.scale_by_trust_ratio(), rate]
    else:
        raise ValueError(f"optim.name is {optim.name!r}; allowed: {', '.join(OPTIMIZERS)}")
    if optim.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(optim.clip_norm))
    if optim.lr_multipliers:
        parts.append(scale_by_rules(optim.lr_multipliers))
    tx = optax.chain(*parts)
    if not optim.frozen:
        return tx
    frozen = match_mask(optim.frozen, params)
    trainable = jax.tree.map(lambda f: not f, frozen)
    return optax.chain(optax.masked(tx, trainable), optax.masked(optax.set_to_zero(), frozen))
