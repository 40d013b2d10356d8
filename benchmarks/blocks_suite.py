"""Suite `blocks`: every block of `lambdanet.attention`, whole and in training mode, forward and
forward + backward, beside PyTorch's form of it.

`NAME_SxS_dC`: the block at its defaults on 2 maps of SxS with C channels, in heads as deep as a
host network has them. PyTorch's forms (`torch_blocks`: timm's modules, else the formula as public
code writes it) have the same parameters and run eagerly. What counts has to have our outputs and
all gradients in float64; without PyTorch and timm only ours is measured.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import torch_blocks, torch_forms
from benchmarks.harness import Case, Prepared
from lambdanet import attention
from lambdanet.attention.vanilla_attention import VanillaAttention
from lambdanet.training import state

BATCH = 2
DIRECTIONS = ("fwd", "train")


@dataclasses.dataclass(frozen=True)
class Block:
    """What is built, and for which maps.

    Attributes:
        options: the block's name in the registry, where that is another, and its options.
        maps: (side, channels) of the measured maps.
        head_depth: channels of a head; a block without heads does not look.
        spread: of the map's entries. Such that a softmax neither takes one key, which leaves the
            others no gradient, nor all alike, where a norm behind it would enlarge the rounding.
    """

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    maps: tuple[tuple[int, int], ...] = ((28, 256), (56, 128))
    head_depth: int = 32
    spread: float = 1.0


# timm's HaloAttn takes multiples of its blocks of 8 alone, public interlaced attention maps that
# its 8 groups per axis divide.
_EIGHTHS = ((32, 256), (64, 128))
_LAVIT = dict(maps=((7, 512), (14, 320)), head_depth=64)  # the stages that have less attention
BLOCKS: dict[str, Block] = {
    "mhsa": Block(),
    "bottleneck_attention": Block(),
    "halo_attention": Block(maps=_EIGHTHS),
    # As timm's layer: a bias of the position convolution, and its scope.
    "lambda": Block(dict(num_heads=4, scope=9, pos_bias=True)),
    "slide": Block(),
    "window": Block(),
    "shifted_window": Block(),
    "cross_shaped_window": Block(),
    "neighborhood": Block(),
    "spatial_reduction": Block(),
    "linformer": Block(),
    "se": Block(),
    "cbam": Block(),
    "gc": Block(),
    "nonlocal": Block(spread=2.0),
    "nonlocal_gaussian": Block(dict(name="nonlocal", mode="gaussian"), spread=0.5),
    "nonlocal_dot": Block(dict(name="nonlocal", mode="dot_product")),
    "nonlocal_concatenation": Block(dict(name="nonlocal", mode="concatenation"), spread=3.0),
    "nonlocal_timm": Block(),
    "cgnl": Block(),
    "cgnlx": Block(spread=10.0),  # else one power of its series counts
    "double_attention": Block(),
    "criss_cross": Block(),
    "rcca": Block(),
    "interlaced": Block(maps=_EIGHTHS),
    "position_attention": Block(),
    "channel_attention": Block(spread=0.2),
    "object_context": Block(),
    "pyramid_object_context": Block(),
    "asp_object_context": Block(),
    "vanilla_attention": Block(**_LAVIT),
    "less_attention": Block(**_LAVIT),
}
"""By name of the case. `vanilla_attention` makes the logits that less-attention begins with and is
in no registry."""

_SAME = "the program of `nonlocal`, with other options"
WITHOUT_CASE: dict[str, str] = {
    "nonlocal_fair": _SAME,
    "nonlocal_paper": _SAME,
    "nonlocal_alexhex7": _SAME,
    "nonlocal_cgnl_repo": _SAME,
    "nonlocal_mmcv": _SAME,
}
"""Registered names without a case, and why."""

# Norm of a difference in float32, relative to the norm of the output, and to that of all gradients
# together: some of them vanish, where a softmax or a norm cancels a parameter, and only rounding is
# left. In float64 tests/test_benchmarks_blocks.py has 1e-9 for all.
TOLERANCES = 1e-5, 1e-5
# The order of summation flips the sign of the input of one ReLU in half a million, and all
# gradients before it change by a thousandth.
_RECTIFIED = 1e-5, 1e-2
TOLERANCES_OF = {
    "interlaced": _RECTIFIED,
    "object_context": _RECTIFIED,
    "pyramid_object_context": _RECTIFIED,
    # Besides, the context is nearly constant over the map before it meets a batch norm, whose
    # variance, ours being E[x^2] - E[x]^2 as flax has it, keeps fewer digits.
    "asp_object_context": (1e-4, 1e-2),
    # What positions get is nearly one curve for all channels, and the batch norm behind it leaves
    # small differences of large gradients, in PyTorch as here.
    "nonlocal_concatenation": (1e-5, 1e-4),
}


def cases() -> list[Case]:
    """Returns one case per block, map, direction and candidate."""
    found = []
    for name, block in BLOCKS.items():
        for side, dim in block.maps:
            for direction in DIRECTIONS:
                case = functools.partial(Case, "blocks", case_name(name, side, dim), direction)
                given = name, direction, side, dim
                found.append(case("auto", functools.partial(prepare, *given)))
                for impl in torch_blocks.FORMS[name] if torch_forms.installed() else ():
                    theirs = functools.partial(prepare_torch, *given, impl)
                    found.append(case(impl, theirs, framework="torch"))
    return found


def case_name(name: str, side: int, dim: int) -> str:
    """Returns the name of the case of a block on square maps."""
    return f"{name}_{side}x{side}_d{dim}"


def build(name: str, side: int, dim: int) -> nnx.Module:
    """Builds a block of `BLOCKS` for square maps."""
    block = BLOCKS[name]
    num_heads = max(dim // block.head_depth, 1)
    if name == "vanilla_attention":
        return VanillaAttention(dim, num_heads=num_heads, rngs=nnx.Rngs(0))
    spec = {"name": name, **block.options}
    size = (side, side)
    return attention.create_attention(spec, dim, size=size, num_heads=num_heads, rngs=nnx.Rngs(0))


@dataclasses.dataclass(frozen=True)
class Problem:
    """One block's operands, and what every candidate has to find.

    Attributes:
        inputs: 'x' [b, side, side, dim]; less attention has 'logits' beside it.
        params: by path.
        stats: likewise.
        cotangents: gradients of the outputs: 'y', and 'handed_on' of blocks that hand on logits.
        expected: outputs and gradients of inputs and parameters by name, in float64.
    """

    inputs: dict[str, np.ndarray]
    params: dict
    stats: dict
    cotangents: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


@functools.lru_cache(maxsize=1)
def problem(name: str, side: int, dim: int) -> Problem:
    """Draws the operands of a block and computes its results in float64."""
    rng = np.random.default_rng(0)
    make = functools.partial(build, name, side, dim)
    params, stats = (jax.tree.map(np.asarray, t) for t in state.split_model(make())[1:])

    def moved(a: np.ndarray) -> np.ndarray:
        # Away from the start, where a gamma of zero hides everything behind it.
        spread = 0.1 if a.ndim < 2 else np.prod(a.shape[:-1]) ** -0.5
        return (a + spread * rng.normal(size=a.shape)).astype(np.float32)

    params = jax.tree.map(moved, params)
    x = BLOCKS[name].spread * rng.normal(size=(BATCH, side, side, dim))
    inputs = {"x": x.astype(np.float32)}
    if name == "less_attention":
        shape = (BATCH, dim // BLOCKS[name].head_depth, side**2, side**2)
        inputs["logits"] = rng.normal(size=shape).astype(np.float32)
    view, _ = state.views(make)
    outputs = jax.eval_shape(functools.partial(_forward, view), inputs, params, stats)
    cotangents = {
        key: rng.normal(size=output.shape).astype(np.float32) for key, output in outputs.items()
    }
    operands = inputs, params, stats, cotangents
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), operands)
        found = _program(name, side, dim, "train")(*wide)
        expected = {key: np.asarray(value) for key, value in found.items()}
    return Problem(*operands, expected)


def _forward(view: Any, inputs: Mapping, params: Mapping, stats: Mapping) -> dict[str, jax.Array]:
    given = [inputs[name] for name in torch_forms.INPUTS if name in inputs]
    found = nnx.merge(view, params, stats)(*given)
    outputs = found if isinstance(found, tuple) else (found,)
    return dict(zip(torch_forms.OUTPUTS[: len(outputs)], outputs, strict=True))


def _program(name: str, side: int, dim: int, direction: str) -> Callable[..., dict[str, jax.Array]]:
    """Jitted: inputs, parameters, statistics, gradients of the outputs -> the outputs and, for
    'train', all gradients.
    """
    view, _ = state.views(functools.partial(build, name, side, dim))

    def train(inputs, params, stats, cotangents):
        outputs, pullback = jax.vjp(
            lambda inputs, params: _forward(view, inputs, params, stats), inputs, params
        )
        of_inputs, of_params = pullback(cotangents)
        return {**outputs, **of_inputs, **state.flatten_names(of_params)}

    return jax.jit(
        train
        if direction == "train"
        else lambda inputs, params, stats, _: _forward(view, inputs, params, stats)
    )


def prepare(name: str, direction: str, side: int, dim: int) -> Prepared:
    """Compiles our block."""
    given = problem(name, side, dim)
    operands = given.inputs, given.params, given.stats, given.cotangents
    arrays = jax.tree.map(jnp.asarray, operands)
    compiled = _program(name, side, dim, direction).lower(*arrays).compile()
    return Prepared(
        lambda: (jax.block_until_ready(compiled(*arrays)), None)[1],
        lambda: compare(name, compiled(*arrays), given.expected),
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        **_work(name, side, dim, direction),
    )


def prepare_torch(name: str, direction: str, side: int, dim: int, impl: str) -> Prepared:
    """One of PyTorch's forms, with the same parameters."""
    given = problem(name, side, dim)
    run, read = torch_runner(name, impl, given, direction)
    return Prepared(
        lambda: (run(), None)[1],
        lambda: compare(name, read(run()), given.expected),
        **_work(name, side, dim, direction),
    )


def torch_runner(name: str, impl: str, given: Problem, direction: str) -> torch_forms.Runner:
    """Returns what `torch_forms.runner` does of one of `torch_blocks.FORMS`, in the dtype of the
    problem's arrays.
    """
    _, side, _, dim = given.inputs["x"].shape
    block = nnx.eval_shape(functools.partial(build, name, side, dim))
    form = torch_blocks.FORMS[name][impl](block, side, state.flatten_names(given.params))
    return torch_forms.runner(form, given.inputs, given.cotangents, direction)


def compare(name: str, found: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> None:
    """Raises AssertionError unless outputs and gradients are those expected."""
    outputs = torch_forms.OUTPUTS
    of_output, of_gradient = TOLERANCES_OF.get(name, TOLERANCES)
    of_gradients = np.sqrt(
        sum(np.sum(np.square(array)) for key, array in expected.items() if key not in outputs)
    )
    for key, array in found.items():
        what, most, scale = f"gradient of {key}", of_gradient, of_gradients
        if key in outputs:
            what, most, scale = f"output {key}", of_output, np.linalg.norm(expected[key])
        error = np.linalg.norm(np.asarray(array) - expected[key]) / scale
        assert error < most, f"{what} is off by {error:.1e}"


def _work(name: str, side: int, dim: int, direction: str) -> dict[str, float]:
    """Operations of the formula; bytes of map, output and their gradients."""
    block = nnx.eval_shape(functools.partial(build, name, side, dim))
    elements = BATCH * side**2 * dim
    return dict(
        flops=2.0 * BATCH * block.macs(side, side) * (1 if direction == "fwd" else 3),
        bytes=4.0 * 2 * elements * (1 if direction == "fwd" else 2),
    )
