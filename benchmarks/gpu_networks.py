"""Part `networks` of `python -m benchmarks gpu`: the training step of train.py in bfloat16, at
batch sizes that double until the device's memory says no.

A batch fits if what the compiler says that the program needs, state and batch included, is in the
device's memory, and if the step then runs. If the first one does not fit, it is halved until one
does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

import models
from benchmarks import step_times
from benchmarks.gpu_sizes import Sizes
from benchmarks.harness import Case, Prepared
from configs import base

Records = Sequence[Mapping[str, Any]]
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def case_name(name: str, batch: int, side: int) -> str:
    """Returns what a network at a batch size is called."""
    return f"{name}_b{batch}_{side}"


def cases(sizes: Sizes, records: Records) -> list[Case]:
    """Returns for every network the batch sizes that were tried, and the one to be tried next."""
    side = sizes.image[0]
    return [
        Case(
            "networks",
            case_name(name, batch, side),
            "train",
            "auto",
            functools.partial(prepare, name, dict(options), batch, sizes),
        )
        for name, options in sizes.networks
        for batch in batches(sizes.batch, tried(records, name))
    ]


def tried(records: Records, name: str) -> dict[int, bool]:
    """Returns the batch sizes of a network that were tried, and whether they fit and ran."""
    return {
        r["batch"]: r["fits"] and "error" not in r
        for r in records
        if r.get("network") == name and "fits" in r
    }


def batches(first: int, fits: Mapping[int, bool]) -> list[int]:
    """Returns the batch sizes to try, up to the first that nothing is known of.

    Args:
        first: where to start.
        fits: what is known.
    """
    found = [first]
    if fits.get(first) is False:
        while found[-1] > 1 and fits.get(found[-1]) is False:
            found.append(found[-1] // 2)
    else:
        while fits.get(found[-1]):
            found.append(2 * found[-1])
    return found


def prepare(name: str, options: Mapping[str, Any], batch: int, sizes: Sizes) -> Prepared:
    """Compiles a step and, if it fits, checks and runs it; the gate is `step_times.check_step`,
    but for repeatability, which XLA does not promise on GPUs.
    """
    config = base.get_config()
    side, config.data.channels = sizes.image
    config.data.image_size = (side, side)
    config.data.mean, config.data.std = ((0.5,) * sizes.image[1] for _ in range(2))
    config.model = dict(name=name, dtype="bfloat16", **options)
    limit = memory(sizes.memory)
    facts = dict(network=name, batch=batch, dtype="bfloat16", limit_mib=limit / 2**20)
    try:
        make, train_step, images = step_times.training_step(
            config, num_classes=sizes.classes, batch_size=batch
        )
        compiled = train_step.lower(make(), images).compile()
        needs = needed(compiled.memory_analysis())
        facts |= dict(needs_mib=needs / 2**20, fits=needs <= limit)
        if needs > limit:
            return Prepared(None, lambda: None, facts=facts)
        repeatable = jax.default_backend() == "cpu"
        step_times.check_step(make, compiled, images, repeatable=repeatable)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        return Prepared(None, lambda: None, facts=facts | dict(fits=False))
    current = [make()]

    def once():
        current[0], terms = compiled(current[0], images)
        jax.block_until_ready((current[0], terms))

    def build():
        return models.create_from_config(config, num_classes=sizes.classes, rngs=nnx.Rngs(0))

    return Prepared(
        once,
        lambda: None,
        items=batch,
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        flops=6.0 * batch * nnx.eval_shape(build).macs(side, side),
        facts=facts,
        close=current.clear,
    )


def needed(account: Any) -> int:
    """Returns the bytes of a program: what it is given, what it gives and what it needs between,
    donated arrays once.
    """
    return (
        account.argument_size_in_bytes
        + account.output_size_in_bytes
        - account.alias_size_in_bytes
        + account.temp_size_in_bytes
    )


def memory(given: int | None) -> int:
    """Returns the bytes that programs may have: those given, or what the device says."""
    if given is not None:
        return given
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        raise ValueError(f"{device.device_kind} does not say how much memory it has")
    return limit
