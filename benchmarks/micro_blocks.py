"""Part of suite `micro`: five whole blocks of the survey in training mode, forward and forward +
backward, beside PyTorch's form.

`NAME_48x48_d128`: the block by its name in the registry at its defaults, 2 maps of 48x48 with 128
channels. PyTorch's form (`torch_blocks`) has the same parameters. Where PyTorch is not installed
the gate is our own result in float64.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import torch_blocks
from benchmarks.harness import Case, Prepared
from lambdanet import attention
from lambdanet.training import state

BLOCKS = ("criss_cross", "interlaced", "double_attention", "cgnl", "linformer")
BATCH, SIDE, DIM = 2, 48, 128
# Norm of a difference, relative to the norm of the output or of all gradients together: some
# gradients vanish, where a softmax or a norm cancels a parameter, and only rounding is left of
# them. With ReLUs, float32 in another order of summation flips the sign of the input of one in half
# a million, and all gradients before it change by a thousandth.
TOLERANCE, WITH_RELU = 1e-5, {"interlaced": 1e-2}


def cases() -> list[Case]:
    """Returns one case per block, direction and framework."""
    found = []
    for name in BLOCKS:
        for direction in ("fwd", "train"):
            given = "micro", f"{name}_{SIDE}x{SIDE}_d{DIM}", direction
            found.append(Case(*given, "auto", functools.partial(prepare, name, direction)))
            if importlib.util.find_spec("torch"):
                found.append(
                    Case(
                        *given,
                        "eager",
                        functools.partial(prepare_torch, name, direction),
                        framework="torch",
                    )
                )
    return found


@functools.lru_cache(maxsize=1)
def _problem(
    name: str, side: int, dim: int
) -> tuple[np.ndarray, dict, dict, np.ndarray, dict[str, np.ndarray]]:
    """Returns map, parameters, running statistics, gradient of the output, and the results in
    float64 by name.
    """
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, BATCH, side, side, dim)).astype(np.float32)
    _, params, stats = state.split_model(_build(name, side, dim)())
    # Away from the start, where a gamma of zero hides everything behind it.
    params = jax.tree.map(
        lambda a: np.asarray(a + 0.1 * rng.normal(size=a.shape)).astype(np.float32), params
    )
    stats = jax.tree.map(np.asarray, stats)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (x, params, stats, cotangent))
        found = _program(name, side, dim, "train")(*wide)
    return x, params, stats, cotangent, {key: np.asarray(value) for key, value in found.items()}


def _build(name: str, side: int, dim: int) -> Callable[[], nnx.Module]:
    return lambda: attention.create_attention(name, dim, size=(side, side), rngs=nnx.Rngs(0))


def _program(name: str, side: int, dim: int, direction: str) -> Callable[..., dict[str, jax.Array]]:
    """Jitted: map, parameters, statistics, gradient of the output -> 'y' and, for 'train', all
    gradients.
    """
    view, _ = state.views(_build(name, side, dim))

    def forward(x, params, stats):
        return nnx.merge(view, params, stats)(x)

    def train(x, params, stats, cotangent):
        y, pullback = jax.vjp(lambda x, params: forward(x, params, stats), x, params)
        of_x, of_params = pullback(cotangent)
        return {"y": y, "x": of_x, **state.flatten_names(of_params)}

    return jax.jit(
        train
        if direction == "train"
        else lambda x, params, stats, _: {"y": forward(x, params, stats)}
    )


def prepare(name: str, direction: str, *, side: int = SIDE, dim: int = DIM) -> Prepared:
    """Compiles our block."""
    x, params, stats, cotangent, expected = _problem(name, side, dim)
    arrays = jax.tree.map(jnp.asarray, (x, params, stats, cotangent))
    compiled = _program(name, side, dim, direction).lower(*arrays).compile()
    return Prepared(
        lambda: (jax.block_until_ready(compiled(*arrays)), None)[1],
        lambda: _compare(name, compiled(*arrays), expected),
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        **_work(name, side, dim, direction),
    )


def prepare_torch(name: str, direction: str, *, side: int = SIDE, dim: int = DIM) -> Prepared:
    """PyTorch's form with the same parameters."""
    x, params, _, cotangent, expected = _problem(name, side, dim)
    run = torch_blocks.runner(
        getattr(torch_blocks, name), x, state.flatten_names(params), cotangent, direction
    )
    for key in ("y", "x"):
        expected = {**expected, key: expected[key].transpose(0, 3, 1, 2)}
    return Prepared(
        lambda: (run(), None)[1],
        lambda: _compare(name, run(), expected),
        **_work(name, side, dim, direction),
    )


def _compare(name: str, found: Mapping[str, object], expected: Mapping[str, np.ndarray]) -> None:
    of_gradients = np.sqrt(
        sum(np.sum(np.square(array)) for key, array in expected.items() if key != "y")
    )
    for key, array in found.items():
        what, most, scale = f"gradient of {key}", WITH_RELU.get(name, TOLERANCE), of_gradients
        if key == "y":
            what, most, scale = "output", TOLERANCE, np.linalg.norm(expected[key])
        error = np.linalg.norm(np.asarray(array) - expected[key]) / scale
        assert error < most, f"{what} is off by {error:.1e}"


def _work(name: str, side: int, dim: int, direction: str) -> dict[str, float]:
    """Operations of the formula; bytes of map, output and their gradients."""
    macs = BATCH * _build(name, side, dim)().macs(side, side)
    elements = BATCH * side**2 * dim
    return dict(
        flops=2.0 * macs * (1 if direction == "fwd" else 3),
        bytes=4.0 * 2 * elements * (1 if direction == "fwd" else 2),
    )
