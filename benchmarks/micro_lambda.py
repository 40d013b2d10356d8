"""Part of suite `micro`: the core of the lambda layer, content and position, forward and forward +
backward.

The core is everything between the projections and the output: softmax of the keys, content lambdas,
position lambdas, applied to the queries. Every lowering of ours and, where torch is installed,
three forms of it in PyTorch (`torch_lambda`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_lambda
from benchmarks.harness import Case, Prepared
from lambdanet.ops import cost_model, lambda_mix

KEY_DEPTH = 16
TOLERANCE = 1e-4  # relative, float32


@dataclasses.dataclass(frozen=True)
class Shape:
    """One problem: a square map, channels = heads * value depth, scope = taps per axis."""

    batch: int
    side: int
    channels: int
    heads: int
    scope: int
    intra_depth: int = 1

    @property
    def name(self) -> str:
        """`lambda_<H>x<W>_d<d>_h<h>_r<r>[_u<u>]`; a batch of 64, which is a case of its own, stands
        in front.
        """
        prefix = "lambda_b64" if self.batch == 64 else "lambda"
        planes = f"_u{self.intra_depth}" if self.intra_depth > 1 else ""
        return (
            f"{prefix}_{self.side}x{self.side}_d{self.channels}_h{self.heads}_r{self.scope}{planes}"
        )


# The twelve: layers of LambdaResNets with the paper's scope of 23, a scope of 9, and one global
# table (55 = 2 * 28 - 1).
TWELVE = (
    Shape(16, 7, 512, 4, 23),
    Shape(16, 7, 512, 8, 23),
    Shape(8, 14, 256, 4, 23),
    Shape(8, 14, 512, 4, 23),
    Shape(8, 14, 256, 8, 23),
    Shape(8, 16, 256, 4, 9),
    Shape(16, 8, 512, 4, 9),
    Shape(4, 28, 128, 4, 23),
    Shape(4, 28, 128, 8, 23),
    Shape(4, 28, 256, 4, 23),
    Shape(2, 56, 128, 4, 23),
    Shape(4, 28, 128, 4, 55),
)
# Small scopes on large maps, intra-depth 4, and the first stage of a LambdaResNet-50: with these,
# the seventeen.
SEVENTEEN = (
    *TWELVE,
    Shape(4, 28, 128, 4, 7),
    Shape(2, 56, 128, 4, 7),
    Shape(8, 14, 256, 4, 23, 4),
    Shape(2, 28, 128, 4, 23, 4),
    Shape(2, 56, 64, 4, 23),
)
SHAPES = (*SEVENTEEN, Shape(64, 14, 256, 4, 23), Shape(64, 28, 128, 4, 23))


def cases() -> list[Case]:
    """Returns one case per shape, direction and candidate: ours by itself, each lowering, each form
    in PyTorch.
    """
    with_torch = importlib.util.find_spec("torch") is not None
    found = []
    for shape in SHAPES:
        for direction in ("fwd", "train"):
            found += own_cases(shape, direction)
            for form in torch_lambda.FORMS if with_torch else ():
                sizes = dict(
                    batch=shape.batch,
                    n=shape.side**2,
                    key_depth=KEY_DEPTH,
                    intra_depth=shape.intra_depth,
                )
                if torch_lambda.supports(form, **sizes):
                    run = functools.partial(prepare_torch, shape, direction, form)
                    found.append(Case("micro", shape.name, direction, form, run, framework="torch"))
    return found


def own_cases(
    shape: Shape, direction: str, *, dtype: str = "float32", tolerance: float = TOLERANCE
) -> list[Case]:
    """Returns one case per lowering of ours; the name says a dtype that is not float32."""
    name = shape.name if dtype == "float32" else f"{shape.name}_{dtype}"
    # In turns, whoever follows PyTorch finds the caches cold: 'auto' shall not be the one, nor a
    # lowering it may choose.
    return [
        Case(
            "micro",
            name,
            direction,
            impl,
            functools.partial(prepare, shape, direction, impl, dtype=dtype, tolerance=tolerance),
        )
        for impl in ("dense", "auto", *cost_model.GRID_IMPLS[1:])
        if not _hopeless(impl, shape)
    ]


def geometry(shape: Shape, dtype: str = "float32") -> cost_model.Geometry:
    """Returns a problem as the cost model sees it."""
    return cost_model.Geometry(
        batch=shape.batch,
        shape=(shape.side, shape.side),
        num_heads=shape.heads,
        key_depth=KEY_DEPTH,
        value_depth=shape.channels // shape.heads,
        intra_depth=shape.intra_depth,
        scope=(shape.scope, shape.scope),
        dilation=(1, 1),
        itemsize=jnp.dtype(dtype).itemsize,
    )


def _hopeless(impl: str, shape: Shape) -> bool:
    """Candidates for whose one call, or even compilation, there is no use in waiting on a CPU.

    XLA's CPU convolution with a large table is hundreds of times slower than the rest; all pairs of
    a large map need gigabytes.
    """
    if jax.default_backend() != "cpu":
        return False
    if impl == "conv":
        return min(shape.scope, 2 * shape.side - 1) > 13
    return impl in ("dense", "query_first") and shape.side > 28


@functools.lru_cache(maxsize=1)
def problem(shape: Shape) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Returns operands, cotangent of the answer, and the exact answer 'y' with all gradients, by
    float64 loops over dy.
    """
    b, side, h, k, u, depth = (
        shape.batch,
        shape.side,
        shape.heads,
        KEY_DEPTH,
        shape.intra_depth,
        shape.channels // shape.heads,
    )
    rng = np.random.default_rng(0)
    size = dict(q=(h, k), keys=(u, k), v=(u, depth))
    operands = {
        name: rng.normal(size=(b, side, side, *rest)).astype(np.float32)
        for name, rest in size.items()
    }
    operands["table"] = (0.1 * rng.normal(size=(shape.scope, shape.scope, u, k))).astype(np.float32)
    weight = rng.normal(size=(b, side, side, h, depth)).astype(np.float32)
    q, keys, v, table, cotangent = (a.astype(np.float64) for a in (*operands.values(), weight))
    # Content: softmax over positions, kbar^T v, and its chain rule by hand.
    flat_q, flat_keys, flat_v, flat_c = (
        a.reshape(b, side * side, *a.shape[3:]) for a in (q, keys, v, cotangent)
    )
    kbar = np.exp(flat_keys - flat_keys.max(1, keepdims=True))
    kbar /= kbar.sum(1, keepdims=True)
    lambdas = np.einsum("bmuk,bmuv->bkv", kbar, flat_v, optimize=True)
    pulled = np.einsum("bnhk,bnhv->bkv", flat_q, flat_c, optimize=True)
    exact = dict(
        y=np.einsum("bnhk,bkv->bnhv", flat_q, lambdas, optimize=True).reshape(cotangent.shape),
        q=np.einsum("bnhv,bkv->bnhk", flat_c, lambdas, optimize=True).reshape(q.shape),
        v=np.einsum("bmuk,bkv->bmuv", kbar, pulled, optimize=True).reshape(v.shape),
        table=np.zeros(table.shape),
    )
    towards = np.einsum("bmuv,bkv->bmuk", flat_v, pulled, optimize=True)
    exact["keys"] = (kbar * (towards - (kbar * towards).sum(1, keepdims=True))).reshape(keys.shape)
    # Position: for one row offset dy, all pairs of columns at once.
    reach = shape.scope // 2
    offset = np.arange(side)[None] - np.arange(side)[:, None]  # key column - query column
    inside = abs(offset) <= reach
    tap = np.where(inside, offset + reach, 0)
    for dy in range(-min(reach, side - 1), min(reach, side - 1) + 1):
        rows, seen = slice(max(0, -dy), side - max(0, dy)), slice(max(0, dy), side + min(0, dy))
        pairs = np.where(inside[..., None, None], table[dy + reach][tap], 0)  # x z u k
        logits = np.einsum("byxhk,xzuk->byxhzu", q[:, rows], pairs, optimize=True)
        exact["y"][:, rows] += np.einsum("byxhzu,byzuv->byxhv", logits, v[:, seen], optimize=True)
        exact["v"][:, seen] += np.einsum(
            "byxhzu,byxhv->byzuv", logits, cotangent[:, rows], optimize=True
        )
        met = np.einsum("byxhv,byzuv->byxhzu", cotangent[:, rows], v[:, seen], optimize=True)
        exact["q"][:, rows] += np.einsum("byxhzu,xzuk->byxhk", met, pairs, optimize=True)
        np.add.at(
            exact["table"][dy + reach],
            tap[inside],
            np.einsum("byxhzu,byxhk->xzuk", met, q[:, rows], optimize=True)[inside],
        )
    return operands, weight, exact


def prepare(
    shape: Shape,
    direction: str,
    impl: str,
    *,
    dtype: str = "float32",
    tolerance: float = TOLERANCE,
    core: Callable[..., jax.Array] | None = None,
) -> Prepared:
    """Compiles one lowering for one shape.

    Args:
        shape: the problem.
        direction: 'fwd', or 'train' for the answer and all gradients.
        impl: the lowering.
        dtype: of all operands.
        tolerance: largest relative error of the answer and of each gradient.
        core: (q, keys, v, table) -> the answer, in place of what the layer does.
    """
    operands, weight, exact = problem(shape)
    arrays = {name: jnp.asarray(a, dtype) for name, a in operands.items()}
    cotangent = jnp.asarray(weight, dtype)

    def forward(q, keys, v, table):
        if core is not None:
            return core(q, keys, v, table)
        return lambda_mix.mix(q, keys, v, table, None, impl=impl)

    def answer(arrays, cotangent):
        return dict(y=forward(**arrays))

    def train(arrays, cotangent):
        y, pull = jax.vjp(lambda arrays: forward(**arrays), arrays)
        return dict(y=y, **pull(cotangent)[0])

    compiled = jax.jit(answer if direction == "fwd" else train).lower(arrays, cotangent).compile()

    def check():
        found = compiled(arrays, cotangent)
        found = {name: np.asarray(a).astype(np.float32) for name, a in found.items()}
        _compare(found, exact, tolerance)

    lowering = impl
    if impl == "auto":
        known = geometry(shape, dtype), jax.default_backend()
        lowering = cost_model.choose_impl(*known, direction)
    flops, moved = work(shape, direction, jnp.dtype(dtype).itemsize)
    return Prepared(
        lambda: (jax.block_until_ready(compiled(arrays, cotangent)), None)[1],
        check,
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        flops=flops,
        bytes=moved,
        facts=dict(lowering=lowering, dtype=dtype),
    )


def prepare_torch(shape: Shape, direction: str, form: str) -> Prepared:
    """Sets up one of PyTorch's forms for one shape."""
    operands, weight, exact = problem(shape)
    run = torch_lambda.runner(form, operands, weight, direction)

    def check():
        _compare(
            {name: a.numpy() for name, a in run().items()},
            {name: torch_lambda.to_torch(form, name, a) for name, a in exact.items()},
            TOLERANCE,
        )

    flops, moved = work(shape, direction)
    return Prepared(lambda: (run(), None)[1], check, flops=flops, bytes=moved)


def _compare(found: dict[str, np.ndarray], exact: dict[str, np.ndarray], tolerance: float) -> None:
    for name, array in found.items():
        error = np.linalg.norm(array - exact[name]) / np.linalg.norm(exact[name])
        assert error < tolerance, (
            f"{'output' if name == 'y' else 'gradient of ' + name} is off by {error:.1e}"
        )


def work(shape: Shape, direction: str, itemsize: int = 4) -> tuple[float, float]:
    """Returns (operations, bytes) of the formula: taps inside the map, operands and results once;
    training triples it all.
    """
    side, h, u, depth = shape.side, shape.heads, shape.intra_depth, shape.channels // shape.heads
    n, reach = side * side, shape.scope // 2
    taps = (
        sum(min(reach, side - 1 - i) + min(reach, i) + 1 for i in range(side)) ** 2 / n
    )  # per query, mean
    # The cheaper of the two orders; the content part is small in both.
    position = min(
        taps * u * KEY_DEPTH * depth + h * KEY_DEPTH * depth, taps * u * h * (KEY_DEPTH + depth)
    )
    macs = shape.batch * n * (position + KEY_DEPTH * depth * (u + h))
    moved = shape.batch * n * (h * KEY_DEPTH + u * KEY_DEPTH + u * depth + h * depth) + math.prod(
        (*(shape.scope,) * 2, u, KEY_DEPTH)
    )
    passes = 1 if direction == "fwd" else 3
    return 2.0 * macs * passes, float(itemsize) * moved * (1 if direction == "fwd" else 2)
