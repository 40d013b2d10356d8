"""Which lowering of the position lambdas to run: estimated seconds from static shapes, backend and dtype.

Every lowering costs time = multiply-adds / (peak * efficiency) + bytes / bandwidth + steps * launch; the
fastest whose temporaries stay below the memory cap is taken. Bytes are the operands once and every
written-out intermediate twice, at the slower bandwidth once the temporaries leave the cache. The estimate is
for one forward pass, the choice is meant for training: that multiplies all lowerings by about the same
factor. It depends on nothing but shapes, backend and dtype, so it is the same on every host of a job and from
run to run.

Where the constants come from. CPU: fitted by hand to forward and forward + backward times of 19 shapes (4x4
to 56x56, r 7 to 55, u 1 and 4) on two cores of an AMD EPYC with 32 MiB of last-level cache, float32, JAX
0.10.2; the choice is the fastest of the four on each of them, within the spread of the timings. `conv` is no candidate
there: it has C_in = u input channels, which XLA's CPU convolution runs 10 to 100 times slower than a matrix product. GPU
and TPU: data-sheet peaks of an H100 (bfloat16 and TF32, dense) and a TPU v4 with assumed efficiencies, not measurements.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence

GRID_IMPLS = ("dense", "conv", "query_first", "row_chunks")
FLAT_IMPLS = ("dense", "query_first")
MAX_CHUNK_ROWS = 8

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Static shapes of one call; `scope` None means all pairs of n queries and m context elements (flat embeddings)."""

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


def static_batch(size: int) -> int:
    """Returns the batch size to estimate with: 1 for a symbolic one (`jax.export`), whose value is not known."""
    return size if isinstance(size, int) else 1


@dataclasses.dataclass(frozen=True)
class Device:
    """What a backend can do; efficiencies are fractions of `flops` that each lowering reaches."""

    flops: dict[int, float]  # multiply-adds count two, per second, by bytes per element
    bandwidth: float  # bytes per second
    cached_bandwidth: float  # the same while all temporaries stay in the cache
    cache: float  # bytes
    launch: float  # seconds per operation that cannot be fused away
    memory: float  # cap on temporaries, bytes
    chunk_logits: int  # elements of logits per chunk of 'row_chunks' to aim for
    efficiency: dict[str, float]  # a lowering without an entry is never chosen


@dataclasses.dataclass(frozen=True)
class Cost:
    """Estimate for one lowering: multiply-adds, bytes moved, peak bytes of temporaries, seconds."""

    macs: float
    bytes: float
    temporary: float
    seconds: float


DEVICES = {
    "cpu": Device(
        flops={2: 220e9, 4: 220e9, 8: 110e9},
        bandwidth=4.5e9,
        cached_bandwidth=30e9,
        cache=32 * 2**20,
        launch=5e-6,
        memory=2 * 2**30,
        chunk_logits=2**18,
        efficiency={"dense": 0.6, "query_first": 0.45, "row_chunks": 0.4},
    ),
    "gpu": Device(
        flops={2: 990e12, 4: 495e12, 8: 67e12},
        bandwidth=3.35e12,
        cached_bandwidth=3.35e12,
        cache=50 * 2**20,
        launch=5e-6,
        memory=8 * 2**30,
        chunk_logits=2**25,
        efficiency={"dense": 0.4, "query_first": 0.3, "row_chunks": 0.25, "conv": 0.05},
    ),
    "tpu": Device(
        flops={2: 275e12, 4: 137e12, 8: 3e12},
        bandwidth=1.2e12,
        cached_bandwidth=1.2e12,
        cache=32 * 2**20,
        launch=2e-6,
        memory=4 * 2**30,
        chunk_logits=2**24,
        efficiency={"dense": 0.5, "query_first": 0.25, "row_chunks": 0.25, "conv": 0.02},
    ),
}


def clipped_taps(scope: Sequence[int], shape: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Taps per axis that can reach a key from anywhere on the map."""
    return tuple(2 * min((r - 1) // 2, (s - 1) // d) + 1 for r, s, d in zip(scope, shape, dilation, strict=True))


def device_of(backend: str) -> Device:
    """Returns the constants of a backend; one that has none of its own gets those of 'gpu'."""
    return DEVICES.get(backend, DEVICES["gpu"])


def rows_seen(geometry: Geometry, rows: int) -> int:
    """Rows of keys that a chunk of query rows works on in 'row_chunks'."""
    reach = (clipped_taps(geometry.scope, geometry.shape, geometry.dilation)[0] - 1) // 2 * geometry.dilation[0]
    return min(rows + 2 * reach, geometry.shape[0])


def default_chunk_rows(geometry: Geometry, device: Device) -> int:
    """Query rows per chunk of 'row_chunks': the largest power of two that keeps its logits within `chunk_logits`."""
    g = geometry
    rest = math.prod(g.shape[1:])
    rows = 1
    while 2 * rows <= min(MAX_CHUNK_ROWS, g.shape[0]):
        logits = g.batch * 2 * rows * rest * rows_seen(g, 2 * rows) * rest * g.num_heads * g.intra_depth
        if logits > device.chunk_logits:
            break
        rows *= 2
    return rows


def estimate(geometry: Geometry, impl: str, device: Device) -> Cost:
    """Estimates one forward pass of a lowering; see the module's docstring for the model."""
    g = geometry
    b, h, k, v, u = g.batch, g.num_heads, g.key_depth, g.value_depth, g.intra_depth
    n = math.prod(g.shape)
    m = n if g.context is None else g.context
    operands = b * (n * h * k + m * u * v + n * h * v)
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
        chunks = -(-g.shape[0] // rows)
        seen = rows_seen(g, rows) * rest
        macs = b * chunks * rows * rest * seen * h * u * (k + v)
        written, steps = rows * rest * seen * u * (k + 2 * b * h), 8 * chunks
    else:
        raise ValueError(f"no estimate for impl {impl!r}; allowed: {', '.join(GRID_IMPLS)}")
    temporary = written * g.itemsize
    moved = (operands + 2 * written * (chunks if impl == "row_chunks" else 1)) * g.itemsize
    # A chunk's logits are used up image by image right after they are made, so only one image's share has to stay in the cache.
    # The cases `lambda_b64_*` of `python -m benchmarks ops` are there to hold this against (docs/benchmarks.md).
    resident = temporary / b if impl == "row_chunks" else temporary
    bandwidth = device.cached_bandwidth if resident <= device.cache else device.bandwidth
    seconds = (
        2 * macs / (device.flops[g.itemsize] * device.efficiency[impl]) + moved / bandwidth + steps * device.launch
    )
    return Cost(macs, moved, temporary, seconds)


@functools.cache
def choose_impl(geometry: Geometry, backend: str) -> str:
    """Chooses the lowering for a shape; logs the choice once per distinct shape and backend.

    Args:
        geometry: static shapes of the call.
        backend: 'cpu', 'gpu' or 'tpu'; an accelerator of another name is treated as 'gpu'.

    Returns:
        The lowering with the smallest estimate among those whose temporaries fit the device's cap; if none fits, the one
        with the smallest temporaries.
    """
    device = device_of(backend)
    names = FLAT_IMPLS if geometry.scope is None else GRID_IMPLS
    names = [name for name in names if name in device.efficiency]
    costs = {name: estimate(geometry, name, device) for name in names}
    fitting = {name: c for name, c in costs.items() if c.temporary <= device.memory}
    if fitting:
        chosen = min(fitting, key=lambda name: fitting[name].seconds)
    else:
        chosen = min(costs, key=lambda name: costs[name].temporary)
    table = ", ".join(f"{name} {c.seconds * 1e3:.3g} ms {c.temporary / 2**20:.3g} MiB" for name, c in costs.items())
    _log.info("position lambdas %s on %s: impl '%s' (estimates: %s)", geometry, backend, chosen, table)
    return chosen


def resolve_impl(impl: str, geometry: Geometry, backend: str, allowed: Sequence[str]) -> str:
    """Returns `impl`, or the cost model's choice for 'auto'; raises ValueError for a name that is not allowed."""
    if impl not in allowed:
        raise ValueError(f"impl is {impl!r}; allowed here: {', '.join(allowed)}")
    return choose_impl(geometry, backend) if impl == "auto" else impl
