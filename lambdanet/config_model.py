"""What a config says about its model: options against the model's signature, then the model itself,
built without allocating it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from lambdanet import config_memory, tasks
from lambdanet.registry import Registry, show, suggest
from lambdanet.training import optimizer
from lambdanet.training.state import split_model

FOLLOWS = {
    "image_size": "data.image_size",
    "in_channels": "data.channels",
    "frames": "clips.frames",
}
"""Options of models that the data decides."""
BUILT_FROM = {"task", "seed", "propagation.others", *FOLLOWS.values()}
"""Keys outside the section `model` that building, and the task's check of the model, read."""


def option_problems(
    options: dict[str, Any], registry: Registry, values: Mapping[str, Any], failed: set[str]
) -> list[str]:
    """Returns what is wrong with the section `model`, as far as it can be said without building it.

    Args:
        options: the section as plain values.
        registry: the models.
        values: the other keys of the config, 'a.b' -> value.
        failed: those of them that are wrong.
    """
    options = dict(options)
    name = options.pop("name", None)
    try:
        _, preset = registry.lookup(name)
    except ValueError as error:
        return [f"model.name = {show(name)}: {error}"]
    found = registry.option_problems(name, options, also=("name",))
    problems = [f"model.{o} = {show(options[o])}: {text}" for o, text in found.items()]
    for option, key in FOLLOWS.items():
        if option not in options or option in found or key in failed:
            continue
        if options[option] != values[key]:
            both = f"model.{option} = {show(options[option])}, {key} = {values[key]!r}"
            fix = f"leave model.{option} out, and it follows the data"
            problems.append(f"{both}: must be equal; {fix}")
    for option, specs in options.items():
        for spec in specs if isinstance(specs, tuple) else (specs,):
            if isinstance(spec, dict) and "name" not in spec:
                own = preset.get(option)
                own = (
                    own
                    if isinstance(own, Mapping)
                    else {"name": own if isinstance(own, str) else "..."}
                )
                whole = {**own, **spec}
                problems.append(
                    f"model.{option} = {show(spec)}: has no 'name'; an option is changed by giving "
                    f'the whole: --config.model.{option}="{show(whole)}"'
                )
    return problems


def build_problems(
    config: ConfigDict,
    options: dict[str, Any],
    build: Callable[[], Any],
    failed: set[str],
    training: bool,
) -> tuple[list[str], Exception | None]:
    """Returns what the model says when it is built, with the exception itself, and what training
    asks of it.

    Args:
        config: the whole config.
        options: its section `model` as plain values.
        build: returns the model, its arrays abstract.
        failed: keys that are wrong already.
        training: whether it is going to be trained.
    """
    given = ", ".join(f"model.{k} = {show(v, 80)}" for k, v in options.items() if k != "name")
    given = f" with {given}" if given else ""
    try:
        model = build()
    # Numbers too large for a shape, deep nests, wrong types inside specs: every library says it in
    # a way of its own.
    except Exception as error:
        return [f"model '{options['name']}' cannot be built{given}: {_said(error)}"], error
    try:
        tasks.check_model(config, model)
    except ValueError as error:
        return [f"model '{options['name']}': {_said(error)}"], error
    problems: list[str] = []
    if isinstance(model, nnx.Module) and any(map(_has_mapping, options.values())):
        # options of blocks are free enough to make a block that does not fit its place
        try:
            _run(model, tasks.input_shape(config))
        except Exception as error:
            return [f"model '{options['name']}' cannot run{given}: {_said(error)}"], error
    if training:
        if "train.auxiliary_losses" not in failed:
            problems += auxiliary_problems(config.train.auxiliary_losses, model)
        sections = {key.partition(".")[0] for key in failed}
        if isinstance(model, nnx.Module) and "optim" not in sections:
            try:
                optimizer.check_rules(config.optim, *split_model(model)[1:])
            except ValueError as wrong:
                problems.append(str(wrong))
        if isinstance(model, nnx.Module) and not sections & {"optim", "train", "data"}:
            problems += config_memory.model_problems(config, model)
    return problems, None


def _run(model: nnx.Module, shape: tuple[int, ...]) -> None:
    """Evaluates the model abstractly on one image [h, w, c], or one clip; raises what it raises."""
    view = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, weights = nnx.split(view)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    jax.eval_shape(lambda w, x: nnx.merge(graphdef, w)(x), weights, image)


def _has_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, tuple) and any(map(_has_mapping, value))
    )


def _said(error: Exception) -> str:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{kind}{str(error)[:2000]}"


def auxiliary_problems(pairs: tuple[tuple[str, float], ...], model: Any) -> list[str]:
    """Returns what is wrong with `train.auxiliary_losses` for a model: terms that it does not
    declare, one text each.

    A model with such terms has an attribute `auxiliary_losses`, their names.
    """
    known = getattr(model, "auxiliary_losses", ())
    has = f"it has {', '.join(known)}" if known else "it has none"
    return [
        f"train.auxiliary_losses: {type(model).__name__} has no auxiliary loss {name!r}; "
        f"{has}.{suggest(name, known)}"
        for name, _ in pairs
        if name not in known
    ]
