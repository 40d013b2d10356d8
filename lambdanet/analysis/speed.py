"""Timing of a forward pass: compilation, then the median over calls that are waited for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table


def measure(
    forward: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    image_shape: tuple[int, int, int],
    batch_sizes: Sequence[int],
    *,
    repeats: int = 20,
    warmup: int = 3,
) -> list[dict[str, float]]:
    """Times `forward(weights, images)` for each batch size.

    Args:
        forward: maps weights and uint8 images [b, h, w, c] to logits.
        weights: pytree of arrays; an argument, so that the compiler cannot fold work on them away.
        image_shape: (height, width, channels).
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
    table = Table()
    for name in ("batch", "images/s", "median ms", "fastest ms", "slowest ms", "compile s"):
        table.add_column(name, justify="right")
    for r in results:
        times = [
            f"{r[key]:.2f}" for key in ("median_ms", "fastest_ms", "slowest_ms", "compile_seconds")
        ]
        table.add_row(str(r["batch_size"]), f"{r['images_per_second']:,.1f}", *times)
    return table
