"""The parts of `python -m benchmarks gpu`, in their order.

A part is a function of sizes and of what was measured so far, which only `networks` and `torch` go
by; it returns cases of the harness. Those that take turns are a unit, which is measured whole or
not at all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks import gpu_equality, micro_attention, micro_lambda
from benchmarks.gpu_equality import ARITHMETICS
from benchmarks.gpu_sizes import Sizes
from benchmarks.harness import Case, Prepared
from lambdanet.ops import attention_lowering, lambda_mix, relative_table

Records = Sequence[Mapping[str, Any]]
DTYPES = {"float32": ARITHMETICS["float32_default"], "bfloat16": ARITHMETICS["bfloat16"]}
"""What is timed, as users have it: float32 at JAX's default precision, and bfloat16."""


# --------------------------------------------------------------------------------------------------
# Equality, and the constants of the cost model


def equality(sizes: Sizes, records: Records) -> list[Case]:
    """Every lowering on the device against float64 on the CPU."""
    return gpu_equality.cases(gpu_equality.cores(*sizes.equality))


def constants(sizes: Sizes, records: Records) -> list[Case]:
    """Matrix products, a copy, a call, and an operation that waits for the one before."""
    found = [
        Case(
            "constants",
            f"gemm_{name}",
            "fwd",
            "xla",
            functools.partial(prepare_product, name, sizes.gemm),
        )
        for name in ARITHMETICS
    ]
    for name, length in (("copy", sizes.copy), ("call", 1)):
        made = functools.partial(prepare_copy, length)
        found.append(Case("constants", name, "fwd", "xla", made))
    chains = [(f"{n}_products", functools.partial(prepare_chain, n)) for n in sizes.chains]
    return found + [Case("constants", "launch", "fwd", name, make) for name, make in chains]


def prepare_product(arithmetic: str, side: int) -> Prepared:
    """The product of two square matrices of ones."""
    chosen = ARITHMETICS[arithmetic]
    a = jnp.ones((side, side), chosen.dtype)
    program = jax.jit(lambda a: jnp.matmul(a, a, precision=chosen.precision))

    def check():
        assert (program(a) == side).all(), f"a sum of {side} ones is not {side}"

    run = functools.partial(_wait, program, a)
    return Prepared(run, check, flops=2.0 * side**3, facts=dict(dtype=chosen.dtype))


def prepare_copy(length: int) -> Prepared:
    """Reads and writes float32 numbers."""
    x, program = jnp.zeros(length, jnp.float32), jax.jit(lambda x: x + 1)

    def check():
        assert (program(x) == 1).all(), "0 + 1 is not 1"

    return Prepared(functools.partial(_wait, program, x), check, bytes=2.0 * x.nbytes)


def prepare_chain(products: int) -> Prepared:
    """Products of 32 x 32 matrices in one program, each of the result of the one before."""
    x, unit = jnp.ones((32, 32)), jnp.eye(32)

    @jax.jit
    def program(x):
        for _ in range(products):
            x = jnp.matmul(x, unit, precision=lax.Precision.HIGHEST)
        return x

    def check():
        assert (program(x) == x).all(), "a product with the unit matrix changes the matrix"

    return Prepared(functools.partial(_wait, program, x), check, facts=dict(products=products))


def _wait(program: Callable[[jax.Array], jax.Array], x: jax.Array) -> None:
    jax.block_until_ready(program(x))


# --------------------------------------------------------------------------------------------------
# Cores


def lambdas(sizes: Sizes, records: Records) -> list[Case]:
    """Every lowering of the lambda core; all of a shape in a row, whose exact answer is costly."""
    return [
        case
        for shape in sizes.lambdas
        for dtype, arithmetic in DTYPES.items()
        for direction in ("fwd", "train")
        for case in micro_lambda.own_cases(
            shape, direction, dtype=dtype, tolerance=arithmetic.allowed
        )
    ]


def fused(sizes: Sizes, records: Records) -> list[Case]:
    """The fused kernel in turns with what `impl='auto'` takes; in miniature where there is no such
    GPU, by Pallas' interpreter.
    """
    if not _hopper() and sizes.memory is None:
        return [
            _skipped("fused", "the kernel needs an NVIDIA GPU of compute capability 9.0 or newer")
        ]
    core, fused_name = (None, "fused") if _hopper() else (_interpreted, "fused_interpreted")
    return [
        Case(
            "fused",
            f"fused_{shape.name}_{dtype}",
            direction,
            impl,
            functools.partial(
                micro_lambda.prepare,
                shape,
                direction,
                "auto" if impl == "auto" or own is not None else impl,
                dtype=dtype,
                tolerance=arithmetic.allowed,
                core=own,
            ),
        )
        for shape in sizes.lambdas
        for dtype, arithmetic in DTYPES.items()
        for direction in ("fwd", "train")
        for impl, own in (("auto", None), (fused_name, core))
    ]


def _hopper() -> bool:
    if attention_lowering.kernels() != "cuda":
        return False
    return float(jax.devices()[0].compute_capability) >= 9


def _interpreted(q, keys, v, table):
    """The lambda core with the fused kernel, run by Pallas' interpreter."""
    from lambdanet.experimental.fused_lambda import fused_position_term

    table = relative_table.clip_table(table, v.shape[1:3], (1, 1))
    content = lambda_mix.mix(q, keys, v, None, None)
    return content + fused_position_term(q, v, table, interpret=True)


def _skipped(part: str, reason: str) -> Case:
    """A case that says why nothing is measured."""
    return Case(
        part, part, "fwd", "none", lambda: Prepared(None, lambda: None, facts={"skipped": reason})
    )


def attention(sizes: Sizes, records: Records) -> list[Case]:
    """Softmax over all pairs: as blocks run it, all logits at once, in blocks, and by cuDNN where
    it takes the core.
    """
    ways = {"all": None, "auto": "auto"} | {f"chunk_{size}": size for size in sizes.chunks}
    if attention_lowering.kernels() == "cuda":
        ways["cudnn"] = "cudnn"
    return [
        Case(
            "attention",
            f"attention_{name}_{side}x{side}_{dtype}",
            direction,
            impl,
            functools.partial(
                micro_attention.prepare,
                name,
                side,
                direction,
                query_chunk,
                dtype=dtype,
                tolerance=arithmetic.allowed,
            ),
        )
        for name, side in sizes.attention
        for dtype, arithmetic in DTYPES.items()
        for direction in ("fwd", "train")
        for impl, query_chunk in ways.items()
        if not isinstance(query_chunk, int) or query_chunk < side**2
        if impl != "cudnn" or micro_attention.fits_cudnn(name, dtype)
    ]


# --------------------------------------------------------------------------------------------------
# Networks and the host; what needs more than JAX is imported by its own part


def networks(sizes: Sizes, records: Records) -> list[Case]:
    """Training steps at the batch sizes that are known to fit, and the next ones."""
    from benchmarks import gpu_networks

    return gpu_networks.cases(sizes, records)


def host(sizes: Sizes, records: Records) -> list[Case]:
    """The suite `input`; in miniature one case."""
    from benchmarks import input_suite

    found = input_suite.cases(sizes.threads)
    return found if sizes.threads else [c for c in found if c.name == "decode_centre_crop"]


def torch(sizes: Sizes, records: Records) -> list[Case]:
    """PyTorch and timm on the same device, where they are installed."""
    from benchmarks import gpu_torch

    reason = gpu_torch.missing(miniature=sizes.memory is not None)
    return [_skipped("torch", reason)] if reason else gpu_torch.cases(sizes, records)


@dataclasses.dataclass(frozen=True)
class Part:
    """What is measured, the share of the time that it may take before the later parts had theirs,
    and what its process needs in its environment.
    """

    cases: Callable[[Sizes, Records], list[Case]]
    share: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


PARTS = {
    "equality": Part(equality, 0.20),
    "constants": Part(constants, 0.02),
    "lambda": Part(lambdas, 0.26),
    "fused": Part(fused, 0.10),
    "attention": Part(attention, 0.10),
    "networks": Part(networks, 0.20, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}),
    "host": Part(host, 0.04),
    # JAX leaves the device to PyTorch.
    "torch": Part(torch, 0.08, {"JAX_PLATFORMS": "cpu"}),
}
