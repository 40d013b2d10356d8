"""Part `equality` of `python -m benchmarks gpu`: every lowering of the cores on the device, values
and all gradients, against the literal lowering in float64 on the CPU.

Three arithmetics: float32 with products at JAX's precision 'highest', bfloat16, and float32 at the
default precision, which is TF32 on NVIDIA GPUs. What is compared with is made of the operands as
that arithmetic rounds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import micro_attention, micro_lambda, micro_local
from benchmarks.harness import Case, Prepared
from lambdanet.ops import attention_lowering, cost_model, lambda_mix, neighborhood, slide_mix

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Dtype of the operands, precision of products (None: JAX's default), and the largest allowed
    norm of a difference, relative to the norm of what it should be.
    """

    dtype: str
    precision: str | None
    allowed: float


# In bfloat16 gradients that JAX derives add up over positions in bfloat16: that of Slide's bias by
# 'im2col' is off by 4e-2 on CPU.
ARITHMETICS = {
    "float32": Arithmetic("float32", "highest", 2e-5),
    "bfloat16": Arithmetic("bfloat16", None, 6e-2),
    "float32_default": Arithmetic("float32", None, 5e-3),
}


@dataclasses.dataclass(frozen=True)
class Core:
    """What several lowerings compute.

    Attributes:
        operands: makes the arrays, float32.
        function: (arrays, lowering) -> y.
        lowerings: their names; the first is the literal one.
        wide: operands that the block leaves in float32 whatever its dtype.
    """

    operands: Callable[[], Arrays]
    function: Callable[[Mapping[str, jax.Array], str], jax.Array]
    lowerings: tuple[str, ...]
    wide: tuple[str, ...] = ()


def _lambda(shape: micro_lambda.Shape) -> Core:
    def function(arrays, impl):
        return lambda_mix.mix(**arrays, embeddings=None, impl=impl)

    return Core(lambda: micro_lambda.problem(shape)[0], function, cost_model.GRID_IMPLS)


def _local(kind: str, shape: tuple[int, int, int, int], names: Sequence[str]) -> Core:
    def function(arrays, impl):
        return micro_local.FUNCTIONS[kind](**arrays, window=shape[-1], impl=impl)

    literal = micro_local.LITERAL[kind]
    rest = [name for name in names if name not in ("auto", literal)]
    wide = ("position_bias",) if kind == "slide" else ()
    return Core(lambda: micro_local.operands(kind, shape), function, (literal, *rest), wide)


def _attention(name: str, side: int) -> Core:
    ways = {"all": None, "blocks": max(2, side**2 // 4), "cudnn": "cudnn"}

    def function(arrays, impl):
        return micro_attention.CORES[name].function(arrays, ways[impl])

    fused = attention_lowering.kernels() == "cuda" and micro_attention.fits_cudnn(name, "bfloat16")
    known = tuple(ways) if fused else ("all", "blocks")
    return Core(lambda: micro_attention.operands(name, side), function, known)


@functools.cache
def cores(
    lambda_shapes: tuple[micro_lambda.Shape, ...],
    local_shapes: tuple[tuple[int, int, int, int], ...],
    attention: tuple[tuple[str, int], ...],
) -> dict[str, Core]:
    """Returns the cores by name.

    Args:
        lambda_shapes: of lambda cores.
        local_shapes: batch, side of the map, heads and window of Slide and local attention.
        attention: names of `micro_attention.CORES` and sides of their maps.
    """
    found = {shape.name: _lambda(shape) for shape in lambda_shapes}
    for kind, names in (("slide", slide_mix.IMPLS), ("local", neighborhood.LOWERINGS)):
        for shape in local_shapes:
            found[f"{kind}_{shape[1]}x{shape[1]}_k{shape[3]}"] = _local(kind, shape, names)
    for name, side in attention:
        found[f"attention_{name}_{side}x{side}"] = _attention(name, side)
    return found


def cases(found: Mapping[str, Core]) -> list[Case]:
    """Returns one case per core, arithmetic and lowering; every core before the next arithmetic."""
    return [
        Case(
            "equality",
            f"{name}_{arithmetic}",
            "train",
            impl,
            functools.partial(prepare, core, arithmetic, impl),
        )
        for arithmetic in ARITHMETICS
        for name, core in found.items()
        for impl in core.lowerings
        if impl != "cudnn" or ARITHMETICS[arithmetic].dtype == "bfloat16"
    ]


def prepare(core: Core, arithmetic: str, impl: str) -> Prepared:
    """Runs one lowering; nothing is timed, the fact is `off`, the largest error of the output and
    the gradients.
    """
    chosen, facts = ARITHMETICS[arithmetic], {}
    arrays, cotangent, expected = _reference(core, chosen.dtype)
    with _precision(chosen.precision):
        found = _program(core, impl)(*jax.tree.map(jnp.asarray, (arrays, cotangent)))

    def check():
        errors = {name: _off(np.asarray(found[name]), expected[name]) for name in expected}
        worst = max(errors, key=errors.get)
        facts.update(off=errors[worst], allowed=chosen.allowed, worst=worst)
        what = "output" if worst == "y" else f"gradient of {worst}"
        assert errors[worst] < chosen.allowed, (
            f"{what} is off by {errors[worst]:.1e}, allowed {chosen.allowed:.0e}"
        )

    return Prepared(None, check, facts=facts)


def _off(found: np.ndarray, expected: np.ndarray) -> float:
    off = np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected)
    return float(off) if np.isfinite(off) else float("inf")


def _precision(name: str | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if name is None else jax.default_matmul_precision(name)


@functools.cache
def _reference(core: Core, dtype: str) -> tuple[Arrays, np.ndarray, Arrays]:
    """Returns the arrays in that dtype, the gradient of the output, and the results in float64."""
    arrays = {
        name: a if name in core.wide else a.astype(jnp.dtype(dtype))
        for name, a in core.operands().items()
    }
    y = jax.eval_shape(lambda a: core.function(a, core.lowerings[0]), arrays)
    cotangent = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda a: jnp.asarray(a.astype(np.float64)), (arrays, cotangent))
        found = _program(core, core.lowerings[0])(*wide)
    return arrays, cotangent, {name: np.asarray(a) for name, a in found.items()}


def _program(core: Core, impl: str) -> Callable[..., dict[str, jax.Array]]:
    """Jitted: arrays and gradient of the output -> the output 'y' and all gradients."""

    def train(arrays, cotangent):
        y, pullback = jax.vjp(lambda arrays: core.function(arrays, impl), arrays)
        return {"y": y, **pullback(cotangent)[0]}

    return jax.jit(train)
