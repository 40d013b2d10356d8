"""The training state: plain nested dicts split once from an NNX model, '/'-joined names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct


@struct.dataclass
class TrainState:
    """Everything that a step changes, and nothing else (graph definitions and random keys are not
    stored).

    Attributes:
        step: int32 [], number of completed steps.
        params: nested dict of the trainable parameters.
        stats: nested dict of the batch-norm statistics.
        opt_state: state of the optax transformation.
        ema: {'params': ..., 'stats': ...}, exponential moving averages of both; {} when they are
            off.
    """

    step: jax.Array
    params: dict
    stats: dict
    opt_state: optax.OptState
    ema: dict


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict, dict]:
    """Returns (graphdef, params, stats) of a model, concrete or abstract, as pure nested dicts."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def views(
    build: Callable[[], nnx.Module], frozen: Sequence[str] = ()
) -> tuple[nnx.GraphDef, nnx.GraphDef]:
    """Returns the graph definitions of the training and of the evaluation view; both take the same
    parameters.

    Args:
        build: makes the model; it is only traced for shapes, so no memory is taken.
        frozen: regexes on 'a/b/c' paths, of the config's `optim.frozen`. A norm whose running
            statistics match uses them in training as well and never changes them.
    """
    model = nnx.eval_shape(build)
    modes = (
        dict(deterministic=False, use_running_average=False),
        dict(deterministic=True, use_running_average=True),
    )
    # A model without dropout or without batch norm has nothing that one of the two could switch.
    train, evaluation = (nnx.view(model, raise_if_not_found=False, **mode) for mode in modes)
    rules = [re.compile(rule) for rule in frozen]
    for path, module in nnx.iter_modules(train) if rules else ():
        if not isinstance(module, nnx.BatchNorm):
            continue
        names = ["/".join(map(str, (*path, kind))) for kind in ("mean", "var")]
        if all(any(rule.fullmatch(name) for rule in rules) for name in names):
            module.use_running_average = True
    return split_model(train)[0], split_model(evaluation)[0]


def abstract_weights(build: Callable[[], nnx.Module]) -> tuple[dict, dict]:
    """Returns (params, stats) as trees of `jax.ShapeDtypeStruct`, without making any array."""
    _, params, stats = split_model(nnx.eval_shape(build))
    return params, stats


def make_init(
    build: Callable[[], nnx.Module], tx: optax.GradientTransformation, *, ema: bool
) -> Callable[[], TrainState]:
    """Returns a function without arguments that makes the state of step 0.

    `jax.eval_shape` of it gives the abstract state, `initialise` the arrays.

    Args:
        build: makes the model, seeding its own initialisation.
        tx: the optimiser.
        ema: also keep moving averages; they start as copies.
    """

    def init() -> TrainState:
        _, params, stats = split_model(build())
        # Copies, because a donated buffer may stand in the state only once.
        average = jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if ema else {}
        return TrainState(jnp.zeros((), jnp.int32), params, stats, tx.init(params), average)

    return init


def initialise(init: Callable[[], TrainState], shardings: Any) -> TrainState:
    """Runs a function of `make_init`, each array being made where `shardings` places it."""
    # Hundreds of small random-number programs that run once: on CPU the compiler's optimisation
    # costs three times what it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)()


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns a tree of `jax.ShapeDtypeStruct`s with shardings, the target of a restore."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )


def path_name(path: tuple[Any, ...]) -> str:
    """Joins a JAX key path with '/': ('stages', 0, 'kernel') becomes 'stages/0/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_names(tree: Any) -> dict[str, Any]:
    """Maps any pytree to a flat dict 'a/0/b' -> leaf, in the tree's own order.

    Raises:
        ValueError: two leaves have the same name (a key with '/' in it).
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {path_name(path): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError(
            f"{len(leaves)} leaves have only {len(flat)} different names: keys with '/' in them "
            "clash"
        )
    return flat


def unflatten_names(flat: Mapping[str, Any], like: Any) -> Any:
    """Inverse of `flatten_names`: a tree with the structure of `like` and the leaves of `flat`.

    Raises:
        ValueError: lists every name that only one of the two has.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [path_name(path) for path, _ in leaves]
    missing, unused = sorted(set(names) - set(flat)), sorted(set(flat) - set(names))
    if missing or unused:
        raise ValueError(f"names do not fit the tree; missing: {missing}; not used: {unused}")
    return jax.tree.unflatten(structure, [flat[name] for name in names])
