"""Timing of a forward pass: compilation, then the median over calls that are waited for.

build = lambda: models.create_model("resnet18", rngs=nnx.Rngs(0))
_, graphdef = state.views(build)  # of evaluation
forward = lambda weights, images: nnx.merge(graphdef, *weights)(images / 255)
weights = state.split_model(build())[1:]
results = speed.measure(forward, weights, (224, 224, 3), [1, 8, 64])
rich.print(speed.speed_table(results))
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from lambdanet.analysis.console import say
from lambdanet.analysis.text import console_table
from lambdanet.training.compiling import compiling


def measure(
    forward: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    image_shape: tuple[int, ...],
    batch_sizes: Sequence[int],
    *,
    repeats: int = 20,
    warmup: int = 3,
) -> list[dict[str, float]]:
    """Times `forward(weights, images)` for each batch size.

    Args:
        forward: maps weights and uint8 images [b, h, w, c] to logits.
        weights: pytree of arrays; an argument, so that the compiler cannot fold work on them away.
        image_shape: (height, width, channels), of clips frames before them.
        batch_sizes: batch sizes to time.
        repeats: timed calls.
        warmup: calls before them.

    Returns:
        One dict per batch size: batch_size, compile_seconds (lowering and compilation; short when
        the persistent compilation cache has the program), median_ms, fastest_ms, slowest_ms,
        images_per_second (from the median).
    """
    results = []
    for batch_size in batch_sizes:
        # Random pixels: constant images could make some operations cheaper.
        images = np.random.default_rng(0).integers(
            0, 256, (batch_size, *image_shape), dtype=np.uint8
        )
        images = jax.device_put(images)
        start = time.perf_counter()
        with compiling(f"batches of {batch_size}", say):
            compiled = jax.jit(forward).lower(weights, images).compile()
        compile_seconds = time.perf_counter() - start
        for _ in range(warmup):
            jax.block_until_ready(compiled(weights, images))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(weights, images))
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        results.append(
            {
                "batch_size": batch_size,
                "compile_seconds": compile_seconds,
                "median_ms": 1e3 * median,
                "fastest_ms": 1e3 * min(seconds),
                "slowest_ms": 1e3 * max(seconds),
                "images_per_second": batch_size / median,
            }
        )
    return results


def speed_table(results: list[dict[str, float]]) -> Table:
    """Returns the measurements as a rich table."""
    times = ("median_ms", "fastest_ms", "slowest_ms", "compile_seconds")
    rows = [
        [r["batch_size"], f"{r['images_per_second']:,.1f}", *(f"{r[key]:.2f}" for key in times)]
        for r in results
    ]
    columns = ("batch", "images/s", "median ms", "fastest ms", "slowest ms", "compile s")
    return console_table(columns, rows, right=range(len(columns)))
