"""Suite `scale`: one attention layer on maps of up to a megapixel, and what it costs to compile
whole networks.

`lambda_<H>x<W>` (64 channels, scope 23) and `slide_<H>x<W>` (64 channels): one call at batch 1,
float32, `fwd` in the evaluation view, `train` with the gradients of all parameters and of the
input. Temporary memory by the compiler's account; `total_mib` adds operands and results.
Milliseconds, and `grown_mib`, by how much the process grew beyond what it held, are those of the
second of two calls: too long for the harness's rounds. Programs that need more than `LARGEST` are
not run.

`compile_<model>`: seconds to trace and to compile a network at 224 px, `fwd` and the training step
of train.py, without the compilation cache.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models
from benchmarks import memory_suite, step_times
from benchmarks.harness import Case, Prepared
from configs import base
from lambdanet.attention import create_attention
from lambdanet.training import state

SIDES, DIM = (256, 512, 1024), 64
LARGEST = 8 * 2**30  # bytes; a program that needs more is compiled, but not run
LAYERS = {"lambda": dict(name="lambda", scope=23), "slide": dict(name="slide", num_heads=2)}
MODELS = (
    "resnet50",
    "lambda_resnet50",
    "slide_pvt_tiny",
    "slide_swin_tiny",
    "lavit_tiny",
    "swin_tiny",
    "pvt_v2_b1",
)
BATCH_SIZE, IMAGE_SIZE, CLASSES = 8, 224, 1000


def cases() -> list[Case]:
    """Returns the cases of the suite."""
    found = []
    for direction in ("fwd", "train"):
        for name in LAYERS:
            for side in SIDES:
                prepare = functools.partial(prepare_layer, name, side, direction)
                found.append(Case("scale", f"{name}_{side}x{side}", direction, "auto", prepare))
        for name in MODELS:
            prepare = functools.partial(prepare_compile, name, direction)
            found.append(Case("scale", f"compile_{name}", direction, "auto", prepare))
    return found


def prepare_layer(name: str, side: int, direction: str) -> Prepared:
    """Compiles a layer for a square map and calls it twice; the facts are its memory and its
    seconds.
    """
    spec = LAYERS[name]
    function, (params, stats, *maps) = memory_suite.program(spec, direction, side, DIM)
    _, params, stats = state.split_model(
        create_attention(spec, DIM, size=(side, side), rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(0)
    operands = (
        params,
        stats,
        *(jnp.asarray(rng.standard_normal(a.shape, np.float32)) for a in maps),
    )
    started = time.perf_counter()
    compiled = jax.jit(function).lower(*operands).compile()
    facts: dict[str, Any] = {"compile_s": time.perf_counter() - started}
    memory = compiled.memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    facts |= {"temp_mib": memory.temp_size_in_bytes / 2**20, "total_mib": total / 2**20}
    if total > LARGEST:
        return Prepared(
            None,
            lambda: None,
            facts=facts | {"error": f"not run: it needs {total / 2**30:.1f} GiB"},
        )
    finite = jax.tree.all(jax.tree.map(lambda a: bool(jnp.isfinite(a).all()), compiled(*operands)))
    before = _resident(reset=True)
    started = time.perf_counter()
    jax.block_until_ready(compiled(*operands))
    facts["ms"] = 1e3 * (time.perf_counter() - started)
    if before is not None:
        facts["grown_mib"] = (_resident() - before) / 2**20

    def check():
        assert finite, "a result is not finite"

    return Prepared(None, check, facts=facts)


def _resident(reset: bool = False) -> int | None:
    """Returns the largest memory this process has held, in bytes; `reset` forgets what was before.
    None where Linux is not.
    """
    try:
        if reset:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        with open("/proc/self/status") as file:
            peak = next(line for line in file if line.startswith("VmHWM:"))
    except OSError:
        return None
    return int(peak.split()[1]) * 1024


def prepare_compile(name: str, direction: str) -> Prepared:
    """Compiles a network; the facts are seconds of tracing and of compiling."""
    config = base.get_config()
    config.data.channels, config.data.image_size, config.train.cache_dir = (
        3,
        (IMAGE_SIZE, IMAGE_SIZE),
        "",
    )
    config.model = dict(name=name)
    if direction == "train":
        make, function, batch = step_times.training_step(
            config, num_classes=CLASSES, batch_size=BATCH_SIZE
        )
        operands = (jax.eval_shape(make), batch)
    else:

        def build():
            return models.create_from_config(config, num_classes=CLASSES, rngs=nnx.Rngs(0))

        graphdef = state.views(build)[1]
        function = jax.jit(lambda params, stats, x: nnx.merge(graphdef, params, stats)(x))
        image = jax.ShapeDtypeStruct((BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
        operands = (*state.abstract_weights(build), image)
    started = time.perf_counter()
    lowered = function.lower(*operands)
    traced = time.perf_counter()
    temp = lowered.compile().memory_analysis().temp_size_in_bytes / 2**20
    facts = {
        "trace_s": traced - started,
        "compile_s": time.perf_counter() - traced,
        "temp_mib": temp,
    }
    return Prepared(None, lambda: None, facts=facts)
