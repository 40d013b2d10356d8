"""The compiled programs of a run: the training step, or two of them, before the backbone is thawed
and from then on; and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from lambdanet import batch_split
from lambdanet.training import layer_groups
from lambdanet.training import mesh as mesh_lib
from lambdanet.training.compiling import announced
from lambdanet.training.evaluate import eval_shardings
from lambdanet.training.packing import Packed, Packing
from lambdanet.training.start_up import recomputing_options
from lambdanet.training.state import views
from lambdanet.training.step import Terms, make_train_step

Step = Callable[[int, Packed, dict], tuple[Packed, Terms]]


def held_back(model: Any, thaw: int) -> dict[str, Any]:
    """Returns dict(held, thaw): the `pretrained_rules` of a model, and the step before which they
    hold; no rules for step 0.
    """
    return dict(held=layer_groups.pretrained_rules(model) if thaw else (), thaw=thaw)


def training_program(
    config: Any,
    build: Callable[[], nnx.Module],
    tx: optax.GradientTransformation,
    packing: Packing,
    *,
    loss: Callable[..., Any],
    mix: Callable[..., Any],
    schedule: optax.Schedule,
    mesh: Mesh,
    held: Sequence[str],
    thaw: int,
    say: Callable[[str], object],
) -> Step:
    """Returns the jitted training step as a function of (number of the step, packed state, batch),
    the number counted from 0.

    Steps before `thaw` are a program of their own, without the backward pass of what is held and
    without statistics of its norms; so a second one is compiled at that step. Which of the two runs
    follows from the number alone: a run that is continued takes the same.

    Args:
        config: the whole config.
        build: makes the model.
        tx: the optimiser, of `make_optimizer` with the same held and thaw.
        packing: of the state, whose buffers are donated.
        loss: the task's; mix likewise.
        schedule: step -> learning rate, shown.
        mesh: the devices.
        held: regexes of parameters and statistics that stay as they are before `thaw`.
        thaw: 0 = one program.
        say: shows a line, while the step compiles.
    """
    options = dict(loss=loss, mix=mix, schedule=schedule, mesh=mesh)

    def program(what: str, frozen: Sequence[str]) -> Callable[..., Any]:
        return announced(
            jitted_step(config, build, tx, packing, frozen=frozen, **options), what, say
        )

    whole = program("the training step", config.optim.frozen)
    frozen = (*config.optim.frozen, *held)
    head = program("the training step of the head", frozen) if thaw else whole

    def step(number: int, state: Packed, batch: dict) -> tuple[Packed, Terms]:
        return (head if number < thaw else whole)(state, batch, packing.rows)

    return step


def jitted_step(
    config: Any,
    build: Callable[[], nnx.Module],
    tx: optax.GradientTransformation,
    packing: Packing,
    *,
    loss: Callable[..., Any],
    mix: Callable[..., Any],
    schedule: optax.Schedule,
    mesh: Mesh,
    frozen: Sequence[str],
) -> Callable[..., Any]:
    """Returns one jitted step, (packed state, batch, numbers of rows) -> (packed state, terms),
    which donates the state.

    Args:
        config, build, tx, packing, loss, mix, schedule, mesh: see `training_program`.
        frozen: regexes of parameters and statistics that stay as they are.
    """
    graphdef = views(build, frozen)[0]
    options = dict(loss=loss, mix=mix, seed=config.seed, schedule=schedule, mesh=mesh)
    step = make_train_step(graphdef, tx, config, frozen=frozen, **options)
    compiling = dict(compiler_options=recomputing_options(nnx.eval_shape(build)), donate_argnums=0)
    compiling |= dict(out_shardings=(packing.shardings, mesh_lib.replicated(mesh)))
    return jax.jit(batch_split.split(packing.step(step), mesh.size), **compiling)


def evaluation_program(
    step: Callable[..., Any], mesh: Mesh, say: Callable[[str], object]
) -> Callable[..., Any]:
    """Returns the jitted evaluation step.

    Args:
        step: of `make_eval_step`.
        mesh: the devices.
        say: shows a line, while it compiles.
    """
    step = batch_split.split(step, mesh.size)
    return announced(jax.jit(step, out_shardings=eval_shardings(mesh)), "evaluation", say)
