"""How softmax attention runs: all logits at once, a block of queries at a time, samples and heads
one after the other, or as one kernel of cuDNN.

Decided by static shapes, dtype and backend alone, so it is the same on every host of a job and from
run to run. Logits that stay in the cache are cheap to hold, and the gradient then need not make
them again; beyond, what counts is memory traffic. The bounds per backend are in
`cost_model.DEVICES`; those of the CPU were measured (docs/performance.md), those of accelerators
are assumptions.
"""

from __future__ import annotations

import dataclasses
import functools
import logging

import jax

from lambdanet.ops.cost_model import device_of

SMALLEST_BLOCK = 128
"""Queries; fewer would have the keys read too often."""
CUDNN_DTYPES, CUDNN_DEPTH = ("bfloat16", "float16"), 128

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Static shapes of one call: `problems` of queries x keys, samples and heads together.

    `plain`: neither bias nor mask. `turns`: whether problems may be computed one after the other.
    """

    problems: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    dtype: str = "float32"
    plain: bool = True
    turns: bool = False


@dataclasses.dataclass(frozen=True)
class Turns:
    """How many problems are computed at a time, and how many queries of each."""

    problems: int
    queries: int


def kernels() -> str:
    """Returns the backend, 'cuda' for a GPU whose cuDNN has fused attention (Ampere and later)."""
    backend = jax.default_backend()
    if backend == "gpu":
        device = jax.devices()[0]
        if "cuda" in device.client.platform_version and float(device.compute_capability) >= 8:
            return "cuda"
    return backend


@functools.cache
def choose_chunk(pairs: Pairs, backend: str) -> int | str | Turns | None:
    """Chooses how attention of some shape runs; logs the choice once per shape and backend.

    Args:
        pairs: static shapes of the call.
        backend: of `kernels`.

    Returns:
        Queries whose logits are held at a time, None for all, turns, or 'cudnn'.
    """
    device = device_of(backend)
    row = pairs.problems * pairs.keys * max(4, 8 * (pairs.dtype == "float64"))
    chosen: int | str | Turns | None = None
    if backend == "cuda" and _fits_cudnn(pairs):
        chosen = "cudnn"
    elif _take_turns(pairs, row * pairs.queries, device.turn_logits):
        sizes = (
            (device.turn_problems, device.turn_block) if pairs.plain else (device.turn_sums,) * 2
        )
        chosen = _turns(pairs, row // pairs.problems, *sizes)
    elif pairs.queries > SMALLEST_BLOCK and row * pairs.queries > device.all_logits:
        chosen = max(SMALLEST_BLOCK, device.block_logits // row)
    how = {None: "all logits at once", "cudnn": "the kernel of cuDNN"}
    if isinstance(chosen, Turns):
        how[chosen] = f"{chosen.problems} problems at a time"
        if chosen.queries < pairs.queries:
            how[chosen] += f", of each {chosen.queries} queries"
    how = how.get(chosen, f"the logits of up to {chosen} queries at a time")
    _log.info("softmax attention %s on %s: %s", pairs, backend, how)
    return chosen


def _take_turns(pairs: Pairs, logits: int, bounds: tuple[int, int] | None) -> bool:
    return bounds is not None and pairs.turns and logits > bounds[0 if pairs.plain else 1]


def _turns(pairs: Pairs, row: int, together: int, block: int) -> Turns:
    """Turns whose logits take so many bytes at most, those of several problems, or of a block of
    one; `row` is a query's, of one problem.
    """
    fitting = together // (row * pairs.queries)
    if fitting > 1:
        counts = range(1, min(fitting, pairs.problems) + 1)
        return Turns(max(n for n in counts if pairs.problems % n == 0), pairs.queries)
    return Turns(1, min(pairs.queries, max(SMALLEST_BLOCK, block // row)))


def _fits_cudnn(pairs: Pairs) -> bool:
    """Whether the fused kernel takes it; with a mask it is not asked, since what it gives a query
    that may see nothing is another thing.
    """
    return (
        pairs.plain
        and pairs.dtype in CUDNN_DTYPES
        and pairs.depth == pairs.value_depth <= CUDNN_DEPTH
        and pairs.depth % 8 == 0
    )
