"""Part of suite `micro`: softmax attention over all pairs after its projections, forward and
forward + backward.

`attention_NAME_SxS`: the core of a block at its defaults on one map of SxS with 256 channels.
Candidates: 'auto' as the block runs, 'all' holds the logits of all pairs, 'chunk_N' those of N
queries of all heads at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import memory_suite
from benchmarks.harness import Case, Prepared
from lambdanet.ops.attention_lowering import Pairs, choose_chunk
from lambdanet.ops.relative_logits import relative_attention
from lambdanet.ops.softmax_attention import dot_attention, softmax_attention

DIM = 256
CHUNKS = (32, 64, 128, 256, 512)
TOLERANCE = 1e-4  # relative, float32


@dataclasses.dataclass(frozen=True)
class Core:
    """How a block asks for its attention.

    Attributes:
        function: (arrays by name, query_chunk) -> the mixed values.
        shapes: side of the map -> shapes of the arrays.
        pairs: side -> pairs of positions, times heads.
        depths: of queries and values together.
    """

    function: Callable[..., jax.Array]
    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    pairs: Callable[[int], int]
    depths: int


def _mhsa(arrays, query_chunk):
    return dot_attention(**arrays, scale=32**-0.5, query_chunk=query_chunk)[0]


def _position(arrays, query_chunk):
    return softmax_attention(*arrays.values(), scale=1.0, query_chunk=query_chunk)[0]


def _bottleneck(arrays, query_chunk):
    scales = dict(scale=64**-0.5, relative_scale=1.0)
    return relative_attention(**arrays, **scales, query_chunk=query_chunk)[0]


def _listed(ratio: int) -> Callable[[int], dict[str, tuple[int, ...]]]:
    def shapes(side: int) -> dict[str, tuple[int, ...]]:
        seen = (1, (side // ratio) ** 2, 8, 32)
        return dict(q=(1, side**2, 8, 32), k=seen, v=seen)

    return shapes


def _grid(side: int) -> dict[str, tuple[int, ...]]:
    tables = dict.fromkeys(("height", "width"), (2 * side - 1, 64))
    return dict.fromkeys("qkv", (1, side, side, 4, 64)) | tables


CORES = {
    "mhsa": Core(_mhsa, _listed(1), lambda side: 8 * side**4, 64),
    "spatial_reduction": Core(_mhsa, _listed(2), lambda side: 2 * side**4, 64),
    "position": Core(
        _position,
        lambda side: dict(q=(1, side**2, 32), k=(1, side**2, 32), v=(1, side**2, DIM)),
        lambda side: side**4,
        32 + DIM,
    ),
    "bottleneck": Core(_bottleneck, _grid, lambda side: 4 * side**4, 128),
}
SIDES = (16, 32, 48, 64)


def cases() -> list[Case]:
    """Returns one case per core, map, direction and candidate."""
    candidates = {"auto": "auto", "all": None} | {f"chunk_{size}": size for size in CHUNKS}
    return [
        Case(
            "micro",
            f"attention_{name}_{side}x{side}",
            direction,
            impl,
            functools.partial(prepare, name, side, direction, query_chunk),
        )
        for name in CORES
        for side in SIDES
        for direction in ("fwd", "train")
        for impl, query_chunk in candidates.items()
        if query_chunk in ("auto", None) or query_chunk < side**2
    ]


def fits_cudnn(name: str, dtype: str) -> bool:
    """Whether the library's fused kernel takes a core in this dtype, on a GPU that has it."""
    if name == "bottleneck":  # its relative logits are a bias
        return False
    q, *_, v = CORES[name].shapes(SIDES[0]).values()
    heads = q[2] if len(q) == 4 else 1
    pairs = Pairs(q[0] * heads, q[1], v[1], q[-1], v[-1], dtype)
    return choose_chunk(pairs, "cuda") == "cudnn"


def operands(name: str, side: int) -> dict[str, np.ndarray]:
    """Draws the arrays of a core."""
    rng, shapes = np.random.default_rng(0), CORES[name].shapes(side)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


@functools.lru_cache(maxsize=1)
def _problem(
    name: str, side: int, dtype: str
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Returns the arrays as a dtype rounds them, the gradient of the output, and what every
    candidate has to find: the form with all logits in float32."""
    arrays = {key: _rounded(array, dtype) for key, array in operands(name, side).items()}
    y = jax.eval_shape(lambda a: CORES[name].function(a, None), arrays)
    cotangent = _rounded(np.random.default_rng(1).normal(size=y.shape), dtype)
    with jax.default_matmul_precision("highest"):
        found = _program(name, "train", None)(arrays, cotangent)
    return arrays, cotangent, {key: np.asarray(array) for key, array in found.items()}


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(jnp.dtype(dtype)).astype(np.float32)


def _program(name: str, direction: str, query_chunk: int | str | None) -> Callable:
    """Jitted: arrays and gradient of the output -> 'y' and, for 'train', all gradients."""

    def function(arrays):
        return CORES[name].function(arrays, query_chunk)

    def train(arrays, cotangent):
        y, pullback = jax.vjp(function, arrays)
        return {"y": y, **pullback(cotangent)[0]}

    return jax.jit(train if direction == "train" else lambda arrays, _: {"y": function(arrays)})


def prepare(
    name: str,
    side: int,
    direction: str,
    query_chunk: int | str | None,
    *,
    dtype: str = "float32",
    tolerance: float = TOLERANCE,
) -> Prepared:
    """Compiles one candidate; its temporary memory is that without library fusions, as in suite
    `memory`.

    Args:
        name: of a core.
        side: of the map.
        direction: 'fwd' or 'train'.
        query_chunk: see `softmax_attention`.
        dtype: of all arrays.
        tolerance: largest difference of the output and of each gradient, relative to the largest
            element.
    """
    arrays, cotangent, expected = _problem(name, side, dtype)
    given = jax.tree.map(lambda a: jnp.asarray(a, dtype), (arrays, cotangent))
    lowered = _program(name, direction, query_chunk).lower(*given)
    compiled = lowered.compile()
    options = memory_suite.without_fusions()
    account = (lowered.compile(options) if options else compiled).memory_analysis()
    core, factor = CORES[name], 1 if direction == "fwd" else 3
    elements = sum(array.size for array in arrays.values()) + cotangent.size
    return Prepared(
        lambda: (jax.block_until_ready(compiled(*given)), None)[1],
        lambda: _compare(compiled(*given), expected, tolerance),
        temp_mib=account.temp_size_in_bytes / 2**20,
        flops=2.0 * factor * core.pairs(side) * core.depths,
        bytes=float(jnp.dtype(dtype).itemsize) * elements * (1 if direction == "fwd" else 2),
        facts=dict(dtype=dtype),
    )


def _compare(
    found: Mapping[str, jax.Array], expected: Mapping[str, np.ndarray], tolerance: float
) -> None:
    for name, array in found.items():
        off = np.asarray(array).astype(np.float32) - expected[name]
        error = np.abs(off).max() / np.abs(expected[name]).max()
        assert error < tolerance, (
            f"{'output' if name == 'y' else 'gradient of ' + name} is off by {error:.1e}"
        )
