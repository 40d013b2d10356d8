"""Which lowering of the position lambdas to run: estimated seconds from static shapes, backend and
dtype.

Every lowering takes time for multiply-adds, bytes inside the cache, bytes beyond it and steps, each
at a rate of its own; the fastest whose temporaries stay below the memory cap is taken. Bytes are
the operands once and every written-out intermediate twice. Forward alone and training (forward +
backward) have their own rates and may choose differently. The choice depends on nothing but shapes,
backend and dtype, so it is the same on every host of a job and from run to run.

Where the rates come from. CPU: fitted to the records of `python -m benchmarks micro` by `python -m
benchmarks.fit_cost_model`, which also prints what the choice loses to the fastest lowering
(benchmarks/results/cpu_micro_lambda.jsonl has the records, cpu_micro_lambda_choices.jsonl the
table). Some are set by hand: bytes of 'query_first' beyond the cache, after 64 maps of 14x14 on a
quiet machine, those of 'halo_tiles', in proportion to 'spectral' in a run of both, and bytes of
'spectral' in the cache, forward, after 16x16 maps. `conv` is no candidate there: it has C_in = u
input channels, which XLA's CPU convolution runs 10 to 100 times slower than a matrix product. GPU
and TPU: data-sheet peaks of an H100 (bfloat16 and TF32, dense)
and a TPU v4 with assumed efficiencies, not measurements; 'spectral' and 'halo_tiles' have none
there and are never chosen.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lambdanet import batch_split
from lambdanet.ops import spectral_lambda

GRID_IMPLS = ("dense", "conv", "query_first", "row_chunks", "halo_tiles", "spectral")
FLAT_IMPLS = ("dense", "query_first")
DIRECTIONS = ("fwd", "train")
MAX_CHUNK_ROWS = 8
TILE = 4  # queries per axis of a tile of 'halo_tiles', at most

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Static shapes of one call; `scope` None means all pairs of n queries and m context elements
    (flat embeddings).
    """

    batch: int
    shape: tuple[int, ...]
    num_heads: int
    key_depth: int
    value_depth: int
    intra_depth: int = 1
    itemsize: int = 4
    scope: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    context: int | None = None


def static_batch(*sizes: Any) -> int:
    """Returns the batch size to estimate with: of all that are examples together, those of one
    device (`batch_split`), at least 1; a symbolic size (`jax.export`), whose value is not known,
    counts as 1.
    """
    whole = math.prod(size for size in sizes if isinstance(size, int))
    return max(whole // batch_split.devices(), 1)


# Seconds per multiply-add, per byte inside the cache, per byte beyond it and per step (an operation
# that cannot be fused away).
Rates = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Device:
    """What a backend can do, in float32."""

    rates: Mapping[
        str, Mapping[str, Rates]
    ]  # direction -> lowering -> rates; a lowering without an entry is never chosen
    slower: Mapping[
        int, float
    ]  # seconds per multiply-add relative to float32, by bytes per element
    cache: float  # bytes
    memory: float  # cap on temporaries, bytes
    chunk_logits: int  # elements of logits to aim for, per chunk of 'row_chunks', 'halo_tiles'
    all_logits: int  # bytes up to which softmax attention holds the logits of all pairs
    block_logits: int  # bytes of the logits of a block to aim for, beyond
    # Bytes of logits beyond which problems take turns, of plain products and of sums of three;
    # None = never.
    turn_logits: tuple[int, int] | None
    # Bytes of logits of one turn to aim for: of several problems, of a block of one, and of either
    # where each logit is a sum of three, which are passed over more often.
    turn_problems: int = 0
    turn_block: int = 0
    turn_sums: int = 0


@dataclasses.dataclass(frozen=True)
class Terms:
    """What one lowering has to do: multiply-adds, bytes moved inside and beyond the cache, steps;
    peak bytes of temporaries.
    """

    macs: float
    cached: float
    beyond: float
    steps: float
    temporary: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """Estimate for one lowering: multiply-adds, bytes moved, peak bytes of temporaries, seconds."""

    macs: float
    bytes: float
    temporary: float
    seconds: float


def _data_sheet(
    flops: float, bandwidth: float, launch: float, efficiency: Mapping[str, float]
) -> dict[str, dict[str, Rates]]:
    """Rates from a peak, the share of it each lowering reaches, and a bandwidth; training takes
    three times as long.
    """
    forward = {
        name: (2 / (flops * share), 1 / bandwidth, 1 / bandwidth, launch)
        for name, share in efficiency.items()
    }
    return {
        "fwd": forward,
        "train": {name: tuple(3 * rate for rate in rates) for name, rates in forward.items()},
    }


DEVICES = {
    "cpu": Device(
        rates={
            "fwd": {
                "dense": (8e-12, 4.83e-11, 2.15e-10, 3.61e-06),
                "query_first": (8e-12, 3.48e-11, 3.76e-11, 2.34e-05),
                "row_chunks": (1.61e-11, 1e-11, 1.04e-10, 8.75e-06),
                "halo_tiles": (3.4e-11, 1e-11, 5e-11, 0.0),
                "spectral": (1.03e-11, 2.4e-11, 1.05e-10, 1.82e-06),
            },
            "train": {
                "dense": (2.4e-11, 1.62e-10, 4.74e-10, 0.000177),
                "query_first": (2.62e-11, 4.62e-11, 1.03e-10, 0.000112),
                "row_chunks": (4.15e-11, 3.58e-11, 3.09e-10, 2.92e-05),
                "halo_tiles": (9.5e-11, 3e-11, 1e-10, 0.0),
                "spectral": (3.59e-11, 8.98e-11, 3e-10, 0.0),
            },
        },
        slower={2: 1.0, 4: 1.0, 8: 2.0},
        cache=32 * 2**20,
        memory=2 * 2**30,
        chunk_logits=2**18,
        all_logits=2**25,
        block_logits=2**22,
        turn_logits=(2**20, 6 * 2**20),
        turn_problems=3 * 2**20,
        turn_block=15 * 2**19,
        turn_sums=2 * 2**20,
    ),
    "gpu": Device(
        rates=_data_sheet(
            495e12,
            3.35e12,
            5e-6,
            {"dense": 0.4, "query_first": 0.3, "row_chunks": 0.25, "conv": 0.05},
        ),
        slower={2: 0.5, 4: 1.0, 8: 7.4},
        cache=50 * 2**20,
        memory=8 * 2**30,
        chunk_logits=2**25,
        all_logits=2**30,
        block_logits=2**28,
        turn_logits=None,
    ),
    "tpu": Device(
        rates=_data_sheet(
            137e12,
            1.2e12,
            2e-6,
            {"dense": 0.5, "query_first": 0.25, "row_chunks": 0.25, "conv": 0.02},
        ),
        slower={2: 0.5, 4: 1.0, 8: 46.0},
        cache=32 * 2**20,
        memory=4 * 2**30,
        chunk_logits=2**24,
        all_logits=2**29,
        block_logits=2**27,
        turn_logits=None,
    ),
}


def clipped_taps(
    scope: Sequence[int], shape: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Taps per axis that can reach a key from anywhere on the map."""
    return tuple(
        2 * min((r - 1) // 2, (s - 1) // d) + 1
        for r, s, d in zip(scope, shape, dilation, strict=True)
    )


def device_of(backend: str) -> Device:
    """Returns the constants of a backend; one that has none of its own gets those of 'gpu'."""
    return DEVICES.get(backend, DEVICES["gpu"])


def rows_seen(geometry: Geometry, rows: int) -> int:
    """Rows of keys that a chunk of query rows works on in 'row_chunks'."""
    reach = (
        (clipped_taps(geometry.scope, geometry.shape, geometry.dilation)[0] - 1)
        // 2
        * geometry.dilation[0]
    )
    return min(rows + 2 * reach, geometry.shape[0])


def default_chunk_rows(geometry: Geometry, device: Device) -> int:
    """Query rows per chunk of 'row_chunks': the largest power of two that keeps its logits within
    `chunk_logits`.
    """
    g = geometry
    rest = math.prod(g.shape[1:])
    rows = 1
    while 2 * rows <= min(MAX_CHUNK_ROWS, g.shape[0]):
        logits = (
            g.batch * 2 * rows * rest * rows_seen(g, 2 * rows) * rest * g.num_heads * g.intra_depth
        )
        if logits > device.chunk_logits:
            break
        rows *= 2
    return rows


def halo_tile(size: int, reach: int) -> tuple[int, int, int]:
    """Cuts an axis into equal tiles of at most `TILE` queries for 'halo_tiles'.

    Returns:
        How many there are, queries per tile, and keys that one sees if taps reach so many pixels.
    """
    count = -(-size // TILE)
    queries = -(-size // count)
    return count, queries, queries + 2 * reach


def tiles_per_group(count: int, logits: int, device: Device) -> int:
    """Of so many tiles with so many logits each, how many 'halo_tiles' works on at once: as many as
    keep within `chunk_logits`, in equal groups.
    """
    groups = -(-count // max(1, device.chunk_logits // logits))
    return -(-count // groups)


def terms(geometry: Geometry, impl: str, device: Device) -> Terms:
    """Counts what one forward pass of a lowering does; see the module's docstring."""
    g = geometry
    b, h, k, v, u = g.batch, g.num_heads, g.key_depth, g.value_depth, g.intra_depth
    n = math.prod(g.shape)
    m = n if g.context is None else g.context
    operands = b * (n * h * k + m * u * v + n * h * v)
    repeats = images = 1
    if impl == "dense":
        macs = b * n * (m * k * v * u + h * k * v)
        written, steps = n * m * k * u + b * n * k * v, 6
    elif impl == "query_first":
        macs = b * n * m * h * u * (k + v)
        written, steps = n * m * k * u + 2 * b * n * m * h * u, 8
    elif impl == "conv":
        taps = math.prod(clipped_taps(g.scope, g.shape, g.dilation))
        macs = b * n * (taps * k * v * u + h * k * v)
        written, steps = b * m * u * v + 2 * b * n * k * v, 4
    elif impl == "row_chunks":
        rows = default_chunk_rows(g, device)
        rest = n // g.shape[0]
        repeats = -(-g.shape[0] // rows)
        seen = rows_seen(g, rows) * rest
        macs = b * repeats * rows * rest * seen * h * u * (k + v)
        written, steps = rows * rest * seen * u * (k + 2 * b * h), 8 * repeats
        # A chunk's logits are used up image by image right after they are made: only one image's
        # share has to stay in the cache.
        images = b
    elif impl == "halo_tiles":
        taps = clipped_taps(g.scope, g.shape, g.dilation)
        reaches = (c // 2 * d for c, d in zip(taps, g.dilation, strict=True))
        counts, queries, keys = map(math.prod, zip(*map(halo_tile, g.shape, reaches), strict=True))
        logits = b * queries * keys * h * u
        group = tiles_per_group(counts, logits, device)
        repeats = -(-counts // group)
        macs = counts * logits * (k + v)
        # The table for the pairs of a tile is written once, but small.
        written = queries * keys * k * u + group * (b * keys * u * v + 2 * logits)
        steps = 8 * repeats
    elif impl == "spectral":
        rows, columns = spectral_lambda.plan(
            g.shape, clipped_taps(g.scope, g.shape, g.dilation), g.dilation
        )
        tiles, frequencies = b * rows.tiles * columns.tiles, 2 * columns.frequencies
        values, product = frequencies * rows.span * u * v, frequencies * rows.size * k * v
        kept, pairs = (
            rows.size * columns.size * k * v,
            frequencies * rows.size * k * 2 * rows.span * u,
        )
        macs = tiles * (
            values * columns.span + product * (2 * rows.span * u + columns.size) + kept * h
        )
        group = spectral_lambda.tiles_per_group(rows, columns, k, v)
        repeats = -(-tiles // group)
        written, steps = pairs + min(tiles, group) * (values + product + kept), 8 + 8 * repeats
    else:
        raise ValueError(f"no estimate for impl {impl!r}; allowed: {', '.join(GRID_IMPLS)}")
    temporary = written * g.itemsize
    moved = (operands + 2 * written * repeats) * g.itemsize
    fits = temporary / images <= device.cache
    return Terms(macs, moved if fits else 0, 0 if fits else moved, steps, temporary)


def estimate(geometry: Geometry, impl: str, device: Device, direction: str = "train") -> Cost:
    """Estimates a lowering, forward alone ('fwd') or with the backward pass ('train'); see the
    module's docstring.
    """
    t = terms(geometry, impl, device)
    amounts = (t.macs * device.slower[geometry.itemsize], t.cached, t.beyond, t.steps)
    seconds = sum(
        amount * rate for amount, rate in zip(amounts, device.rates[direction][impl], strict=True)
    )
    return Cost(t.macs, t.cached + t.beyond, t.temporary, seconds)


@functools.cache
def choose_impl(geometry: Geometry, backend: str, direction: str = "train") -> str:
    """Chooses the lowering for a shape; logs the choice once per distinct shape, backend and
    direction.

    Args:
        geometry: static shapes of the call.
        backend: 'cpu', 'gpu' or 'tpu'; an accelerator of another name is treated as 'gpu'.
        direction: 'fwd' for the fastest forward pass, 'train' for the fastest forward and backward
            together.

    Returns:
        The lowering with the smallest estimate among those whose temporaries fit the device's cap;
        if none fits, the one with the smallest temporaries.
    """
    device = device_of(backend)
    names = FLAT_IMPLS if geometry.scope is None else GRID_IMPLS
    names = [name for name in names if name in device.rates[direction]]
    if len(geometry.shape) > 2 and "spectral" in names:
        names.remove("spectral")
    costs = {name: estimate(geometry, name, device, direction) for name in names}
    fitting = {name: c for name, c in costs.items() if c.temporary <= device.memory}
    if fitting:
        chosen = min(fitting, key=lambda name: fitting[name].seconds)
    else:
        chosen = min(costs, key=lambda name: costs[name].temporary)
    table = ", ".join(
        f"{name} {c.seconds * 1e3:.3g} ms {c.temporary / 2**20:.3g} MiB"
        for name, c in costs.items()
    )
    _log.info(
        "position lambdas %s on %s, %s: impl '%s' (estimates: %s)",
        geometry,
        backend,
        direction,
        chosen,
        table,
    )
    return chosen


def check_impl(impl: str, allowed: Sequence[str]) -> None:
    """Raises ValueError for a name that is not allowed."""
    if impl not in allowed:
        raise ValueError(f"impl is {impl!r}; allowed here: {', '.join(allowed)}")
